//! What a third of liars can do to the rest: nothing that lasts.

use std::time::Duration;

use super::{Lie, Sim, Weather, for_seeds};
use crate::config::Config;
use crate::event::Event;
use crate::member::State;

const SECOND: Duration = Duration::from_secs(1);
const NODES: usize = 30;
/// The last ten of them lie.
const HONEST: usize = 20;

fn mesh(seed: u64, lie: Lie, loss: f64) -> Sim {
    let mut sim = Sim::new(seed, NODES, Weather { loss, ..Weather::default() }, &Config::default());
    sim.acquaint();
    sim.run(5 * SECOND);
    for liar in HONEST..NODES {
        sim.lie(liar, lie);
    }
    sim
}

/// Deaths of others, as honest nodes were told of them since the last look.
fn deaths(sim: &mut Sim) -> Vec<(usize, usize)> {
    let mut deaths = Vec::new();
    for observer in 0..HONEST {
        for event in sim.take_events(observer) {
            if let Event::MemberDown { node, .. } = event {
                deaths.push((observer, sim.number(&node).expect("added")));
            }
        }
    }
    deaths
}

fn all_honest_hold(sim: &mut Sim, subject: usize, state: State) -> bool {
    (0..HONEST).all(|observer| observer == subject || sim.state(observer, subject) == Some(state))
}

#[test]
fn liars_who_accuse_everybody_convict_nobody() {
    for_seeds(0..2, |seed| {
        let mut sim = mesh(seed, Lie::Accuse, 0.05);
        for _ in 0..40 {
            sim.run(SECOND);
            assert_eq!(deaths(&mut sim), [], "convicted by liars (observer, subject)");
            let subject = sim.id(0);
            for observer in 1..HONEST {
                let core = sim.core(observer);
                let mut neighbours: Vec<_> = core.around(&subject, |_| false).into_iter().flatten().collect();
                neighbours.sort_unstable();
                neighbours.dedup();
                assert_eq!(core.jury(&subject), neighbours, "nobody who contradicts is missing");
            }
        }
    });
}

#[test]
fn nobody_need_contradict_a_forged_accusation() {
    for_seeds(0..1, |seed| {
        let mut sim = mesh(seed, Lie::Forge, 0.0);
        let incarnation = |sim: &mut Sim, node: usize| {
            let id = sim.id(node);
            sim.core((node + 1) % HONEST).incarnation_of(&id)
        };
        let before: Vec<_> = (0..HONEST).map(|node| incarnation(&mut sim, node)).collect();
        sim.run(10 * SECOND);
        assert_eq!(deaths(&mut sim), []);
        let after: Vec<_> = (0..HONEST).map(|node| incarnation(&mut sim, node)).collect();
        assert_eq!(before, after);
    });
}

#[test]
fn the_dead_are_convicted_although_a_third_vouches_for_them_and_do_not_return() {
    for lie in [Lie::Vouch, Lie::Replay, Lie::Withhold] {
        for_seeds(0..3, |seed| {
            let mut sim = mesh(seed, lie, 0.0);
            sim.run(5 * SECOND);
            sim.crash(3);
            let living = |sim: &mut Sim| {
                (0..HONEST).filter(|node| *node != 3).all(|node| sim.state(node, 3) == Some(State::Down))
            };
            sim.until("down at every honest node", 15 * SECOND, living);
            deaths(&mut sim);
            sim.run(60 * SECOND);
            let dead = sim.id(3);
            for observer in (0..HONEST).filter(|node| *node != 3) {
                let is_back = |event: &Event| matches!(event, Event::MemberUp { node, .. } if *node == dead);
                assert!(
                    !sim.take_events(observer).iter().any(is_back),
                    "{lie:?}: a ghost at {observer}, seed {seed}"
                );
            }
            assert!(living(&mut sim));
        });
    }
}

#[test]
fn news_gets_around_those_who_withhold_it() {
    for_seeds(0..3, |seed| {
        let mut sim = mesh(seed, Lie::Withhold, 0.1);
        sim.set(0, "models", "llama");
        let id = sim.id(0);
        sim.until("every honest node has the value", 20 * SECOND, |sim| {
            (1..HONEST).all(|node| sim.core(node).version_of(&id, "models").is_some())
        });
        sim.kill(1);
        sim.until("and knows of a death", 10 * SECOND, |sim| {
            (0..HONEST).filter(|node| *node != 1).all(|node| sim.state(node, 1) == Some(State::Down))
        });
    });
}

#[test]
fn two_contents_under_one_version_end_as_one_everywhere() {
    for_seeds(0..3, |seed| {
        let mut sim = mesh(seed, Lie::Equivocate, 0.0);
        sim.set(NODES - 1, "models", "llama");
        sim.run(30 * SECOND);
        let liar = sim.id(NODES - 1);
        let seen = |sim: &mut Sim, node: usize| {
            let members = sim.core(node).members();
            members.get(&liar).and_then(|member| member.value("models").cloned())
        };
        let first = seen(&mut sim, 0);
        assert!(first.is_some());
        assert!((1..HONEST).all(|node| seen(&mut sim, node) == first));
        assert!(all_honest_hold(&mut sim, 0, State::Alive));
    });
}
