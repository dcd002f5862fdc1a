//! What the simulator promises, shown with nodes that only echo.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::network::{Happening, Loss, Network, Node, Weather, Wish};

const MS: Duration = Duration::from_millis(1);

/// Notes what happens to it, and sends a frame to every linked peer at each tick.
#[derive(Default)]
struct Echo {
    peers: Vec<u32>,
    next: Option<Instant>,
    every: Option<Duration>,
    seen: Vec<(Instant, String)>,
}

impl Node for Echo {
    type World = ();

    fn handle(&mut self, what: Happening, (): &(), now: Instant, wishes: &mut Vec<Wish>) {
        let text = match what {
            Happening::Tick => {
                self.next = self.every.map(|every| now + every);
                let frame = Bytes::from_static(b"tick");
                wishes.extend(self.peers.iter().map(|to| Wish::Send { to: *to, frame: frame.clone() }));
                "tick".to_owned()
            }
            Happening::Frame { from, .. } => format!("frame {from}"),
            Happening::LinkUp { peer } => {
                self.peers.push(peer);
                format!("up {peer}")
            }
            Happening::LinkDown { peer, why } => {
                self.peers.retain(|known| *known != peer);
                format!("down {peer} {why:?}")
            }
            Happening::DialFailed { peer } => format!("undialed {peer}"),
        };
        self.seen.push((now, text));
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.next
    }
}

/// Nodes that are all linked with the first one and tick every 10 ms; a frame takes 5 ms.
fn star(seed: u64, count: usize, weather: Weather) -> Network<Echo> {
    let mut network = Network::new(seed, weather, ());
    for index in 0..count {
        network.add();
        let next = Some(network.now() + 10 * MS);
        network.start(index, Echo { next, every: Some(10 * MS), ..Echo::default() });
    }
    for index in 1..count {
        network.link(0, index);
    }
    network
}

fn calm() -> Weather {
    Weather { latency: (5 * MS, 5 * MS), ..Weather::default() }
}

/// What a node saw, and after how many milliseconds.
fn seen(network: &mut Network<Echo>, host: usize) -> Vec<(u128, String)> {
    let start = network.now() - network.elapsed();
    let seen = std::mem::take(&mut network.node_mut(host).expect("runs").seen);
    seen.into_iter().map(|(at, text)| (at.duration_since(start).as_millis(), text)).collect()
}

fn count(network: &mut Network<Echo>, host: usize, text: &str) -> usize {
    seen(network, host).iter().filter(|(_, what)| what == text).count()
}

#[test]
fn a_seed_fixes_a_run_and_another_seed_makes_another() {
    let run = |seed| {
        let weather = Weather { loss: 0.3, duplication: 0.2, ..Weather::default() };
        let mut network = star(seed, 4, weather);
        network.run(1000 * MS);
        (0..4).map(|host| seen(&mut network, host)).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn ticks_come_at_their_deadline_and_frames_after_their_latency() {
    let mut network = star(1, 2, calm());
    network.run(16 * MS);
    let expected = [(0, "up 0"), (10, "tick"), (15, "frame 0")].map(|(at, text)| (at, text.to_owned()));
    assert_eq!(seen(&mut network, 1), expected);
}

#[test]
fn loss_and_duplication_have_their_shares() {
    let mut network = star(1, 2, Weather { loss: 0.2, duplication: 0.5, ..calm() });
    network.run(100_000 * MS);
    // 10,000 frames, of which 80 % arrive, half of them twice; ten standard deviations are allowed.
    let arrived = count(&mut network, 1, "frame 0");
    assert!((11_300..12_700).contains(&arrived), "{arrived}");
}

#[test]
fn a_cut_stops_frames_at_once_and_links_later_and_a_healed_one_keeps_them() {
    let mut network = star(1, 3, calm());
    network.run(12 * MS);
    network.cut(&[0], &[1]);
    network.run(500 * MS);
    network.heal();
    assert_eq!(count(&mut network, 1, "frame 0"), 0, "the frame on its way was lost, too");
    network.run(5000 * MS);
    assert!(count(&mut network, 1, "frame 0") > 400, "the link stood");
    network.cut(&[0], &[1]);
    network.run(1100 * MS);
    assert_eq!(count(&mut network, 1, "down 0 Lost"), 1);
    assert_eq!(count(&mut network, 0, "down 1 Lost"), 1);
    assert_eq!(count(&mut network, 2, "down 0 Lost"), 0);
}

#[test]
fn a_way_can_lead_in_one_direction_only() {
    let mut network = star(1, 2, calm());
    network.cut_one_way(0, 1);
    network.run(1000 * MS);
    assert_eq!(count(&mut network, 1, "frame 0"), 0);
    assert!(count(&mut network, 0, "frame 1") > 90);
    network.call(1, |_, (), _, wishes| wishes.push(Wish::Dial { to: 0 }));
    network.run(2000 * MS);
    assert_eq!(count(&mut network, 1, "undialed 0"), 1);
}

#[test]
fn an_ended_node_is_told_of_with_its_reason_and_its_next_life_gets_nothing_of_the_old_one() {
    for (wait, why) in [(1000 * MS, Loss::Lost), (5 * MS, Loss::Gone), (5 * MS, Loss::Shutdown)] {
        let mut network = star(1, 2, calm());
        network.run(11 * MS);
        network.end(1, wait, why);
        network.start(1, Echo::default());
        network.run(wait + MS);
        assert_eq!(count(&mut network, 0, &format!("down 1 {why:?}")), 1);
        assert!(seen(&mut network, 1).is_empty());
    }
}

#[test]
fn a_new_link_outlives_the_news_of_the_old_ones_end() {
    let mut network = star(1, 2, calm());
    network.end(1, 1000 * MS, Loss::Lost);
    network.start(1, Echo::default());
    network.link(0, 1);
    network.run(3000 * MS);
    assert_eq!(count(&mut network, 0, "down 1 Lost"), 0);
}

#[test]
fn a_frozen_node_gets_its_late_tick_first_and_then_all_that_came() {
    let mut network = star(1, 2, calm());
    network.run(10 * MS);
    seen(&mut network, 1);
    network.freeze(1, 500 * MS);
    network.run(505 * MS);
    let after = seen(&mut network, 1);
    assert_eq!(after[0], (510, "tick".to_owned()));
    assert!(after[1..50].iter().all(|(at, text)| *at == 510 && text == "frame 0"));
    assert_eq!(count(&mut network, 0, "down 1 Lost"), 0, "it was back before the idle timeout");
    network.freeze(1, 2000 * MS);
    network.run(1500 * MS);
    assert_eq!(count(&mut network, 0, "down 1 Lost"), 1);
    assert!(seen(&mut network, 1).is_empty());
    network.run(1000 * MS);
    assert_eq!(count(&mut network, 1, "down 0 Lost"), 1);
}

#[test]
fn a_slow_node_gets_its_ticks_and_frames_late() {
    let mut network = star(1, 2, calm());
    network.slow(1, 100 * MS);
    network.run(10_000 * MS);
    let ticks = count(&mut network, 1, "tick");
    // Each tick is 10 ms after the last, and 50 ms late on average.
    assert!((120..220).contains(&ticks), "{ticks}");
    assert!(count(&mut network, 0, "tick") > 900);
}
