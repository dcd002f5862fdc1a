//! What happens to whom and when: all of it follows from a seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

/// So many nodes at most are away at once, of thirty: the others remain a mesh.
const AWAY_MAX: usize = 8;
/// Between two acts.
const PAUSE_MS: std::ops::Range<u64> = 50..900;
/// So many of the dead are left dead at the end, so that it shows whether somebody brings them back.
const LEFT_DEAD: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Kill(usize),
    Restart { node: usize, life: u32 },
    Freeze(usize),
    Thaw(usize),
    Cut { node: usize, is_silent: bool },
    Mend(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Being {
    Well,
    Dead,
    Frozen,
    Cut,
}

/// Acts with their times, in order.
pub(crate) struct Schedule {
    acts: Vec<(Duration, Act)>,
    beings: Vec<Being>,
    lives: u32,
    random: StdRng,
}

impl Schedule {
    pub(crate) fn new(seed: u64, nodes: usize, time: Duration, can_cut: bool) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let mut schedule = Self { acts: Vec::new(), beings: vec![Being::Well; nodes], lives: 0, random };
        let mut at = Duration::ZERO;
        while at < time {
            schedule.harm_or_heal(at, can_cut);
            at += Duration::from_millis(schedule.random.random_range(PAUSE_MS));
        }
        schedule.heal_all(at);
        schedule
    }

    pub(crate) fn acts(&self) -> &[(Duration, Act)] {
        &self.acts
    }

    pub(crate) fn dead_at_the_end(&self) -> usize {
        self.beings.iter().filter(|being| **being == Being::Dead).count()
    }

    fn harm_or_heal(&mut self, at: Duration, can_cut: bool) {
        let well = self.those(|being| being == Being::Well);
        let away = self.those(|being| being != Being::Well);
        if away.len() == AWAY_MAX || (!away.is_empty() && self.random.random_bool(0.4)) {
            let node = *away.choose(&mut self.random).unwrap();
            return self.heal(at, node);
        }
        let node = *well.choose(&mut self.random).unwrap();
        let (being, act) = match self.random.random_range(0..if can_cut { 4 } else { 2 }) {
            0 => (Being::Dead, Act::Kill(node)),
            1 => (Being::Frozen, Act::Freeze(node)),
            kind => (Being::Cut, Act::Cut { node, is_silent: kind == 2 }),
        };
        self.beings[node] = being;
        self.acts.push((at, act));
    }

    fn heal(&mut self, at: Duration, node: usize) {
        let act = match std::mem::replace(&mut self.beings[node], Being::Well) {
            Being::Dead => {
                self.lives += 1;
                Act::Restart { node, life: self.lives }
            }
            Being::Frozen => Act::Thaw(node),
            Being::Cut => Act::Mend(node),
            Being::Well => return,
        };
        self.acts.push((at, act));
    }

    /// All come back, but for some of the dead.
    fn heal_all(&mut self, at: Duration) {
        for node in self.those(|being| matches!(being, Being::Frozen | Being::Cut)) {
            self.heal(at, node);
        }
        let dead = self.those(|being| being == Being::Dead);
        for node in dead.into_iter().skip(LEFT_DEAD) {
            self.heal(at, node);
        }
        while self.dead_at_the_end() < LEFT_DEAD {
            let node = *self.those(|being| being == Being::Well).choose(&mut self.random).unwrap();
            self.beings[node] = Being::Dead;
            self.acts.push((at, Act::Kill(node)));
        }
    }

    fn those(&self, are: impl Fn(Being) -> bool) -> Vec<usize> {
        (0..self.beings.len()).filter(|node| are(self.beings[*node])).collect()
    }
}

#[test]
fn a_seed_repeats_the_schedule_and_all_but_the_dead_come_back() {
    for seed in 0..50 {
        let schedule = Schedule::new(seed, 30, Duration::from_secs(40), true);
        assert_eq!(schedule.acts(), Schedule::new(seed, 30, Duration::from_secs(40), true).acts());
        assert_eq!(schedule.dead_at_the_end(), LEFT_DEAD);
        let (mut frozen, mut cut, mut dead) = (0_i32, 0_i32, 0_i32);
        for (_, act) in schedule.acts() {
            match act {
                Act::Kill(_) => dead += 1,
                Act::Restart { .. } => dead -= 1,
                Act::Freeze(_) => frozen += 1,
                Act::Thaw(_) => frozen -= 1,
                Act::Cut { .. } => cut += 1,
                Act::Mend(_) => cut -= 1,
            }
        }
        assert_eq!((frozen, cut, dead), (0, 0, 3), "seed {seed}");
    }
}
