//! Many deaths at once: the neighbours whose word counts are dead themselves.

use super::*;

fn mesh(seed: u64, count: usize) -> Sim {
    let mut sim = Sim::new(seed, count, Weather::default(), &Config::default());
    sim.acquaint();
    sim.run(8 * SECOND);
    sim
}

/// The living see each other alive and all others down.
fn is_agreed(sim: &mut Sim, living: usize) -> bool {
    (0..living).all(|observer| {
        let others = (0..sim.len()).filter(|other| *other != observer);
        others.into_iter().all(|other| {
            sim.state(observer, other) == Some(if other < living { State::Alive } else { State::Down })
        })
    })
}

#[test]
fn the_living_find_each_other_and_agree_when_most_die_at_once() {
    // Nine tenths dead leave most of the living without a link.
    for (living, limit) in [(30, 20), (10, 45)] {
        for_seeds(0..1, |seed| {
            let mut sim = mesh(seed, 150);
            for dead in living..150 {
                sim.crash(dead);
            }
            sim.run(limit * SECOND);
            assert!(is_agreed(&mut sim, living), "{living} living. Replay with SEED={seed}");
            sim.run(30 * SECOND);
            assert!(is_agreed(&mut sim, living), "a ghost. Replay with SEED={seed}");
        });
    }
}

#[test]
fn the_living_agree_at_once_when_a_tenth_dies_at_a_time() {
    for_seeds(0..1, |seed| {
        let mut sim = mesh(seed, 150);
        for batch in 1..10 {
            let living = 150 - batch * 15;
            for dead in living..living + 15 {
                sim.kill(dead);
            }
            sim.run(5 * SECOND);
            assert!(is_agreed(&mut sim, living), "{living} living. Replay with SEED={seed}");
        }
    });
}
