//! Whatever happens to a small scope, and whatever some of its members say: the dead stay dead, the living come back, and
//! in the end everybody agrees.

use std::collections::BTreeMap;

use super::super::Known;
use super::super::sim::Lie;
use super::*;

const NODES: usize = 7;
const LIARS_MAX: usize = 2;
/// In which everybody who runs finds everybody, after the worst that the steps can do: redials are half a minute apart by then.
const QUIET: Duration = Duration::from_secs(120);

/// What can happen to a scope.
#[derive(Debug, Clone)]
enum Step {
    /// Without a word, as when a cable breaks.
    Crash(usize),
    /// Its machine tells.
    Kill(usize),
    Stop(usize),
    /// With a clock that is off by this.
    Start(usize, i64),
    /// Nodes whose bit is set are cut from those whose bit is not.
    Cut(u8),
    OneWay(usize, usize),
    Heal,
    /// For so many seconds.
    Freeze(usize, u64),
    Set(usize, u8),
}

fn steps() -> impl Strategy<Value = Vec<(Step, u64)>> {
    let node = 0..NODES;
    let step = prop_oneof![
        2 => node.clone().prop_map(Step::Crash),
        2 => node.clone().prop_map(Step::Kill),
        1 => node.clone().prop_map(Step::Stop),
        4 => (node.clone(), prop_oneof![Just(0), -100..100_i64]).prop_map(|(node, skew)| Step::Start(node, skew)),
        2 => (1..127_u8).prop_map(Step::Cut),
        1 => (node.clone(), node.clone()).prop_map(|(a, b)| Step::OneWay(a, b)),
        3 => Just(Step::Heal),
        1 => (node.clone(), 1..8_u64).prop_map(|(node, seconds)| Step::Freeze(node, seconds)),
        2 => (node, any::<u8>()).prop_map(|(node, value)| Step::Set(node, value)),
    ];
    prop::collection::vec((step, 0..4000_u64), 0..25)
}

/// A scope, who of it lies, and what the honest ones have seen.
struct World {
    sim: Sim,
    liars: Vec<usize>,
    /// Who was down for whom, and as whom.
    dead: BTreeMap<(usize, NodeId), Incarnation>,
}

impl World {
    fn new(seed: u64, count: usize, weather: Weather, lies: &[Lie]) -> Self {
        let mut sim = Sim::new(seed, count, weather, &Config::default());
        let records: Vec<_> = (0..count).map(|index| sim.core(index).own_record().unwrap()).collect();
        let known = Known::new(records, sim.now());
        for index in 0..count {
            sim.core(index).adopt(&known);
        }
        for (index, lie) in lies.iter().enumerate() {
            sim.lie(index, *lie);
        }
        sim.run(4 * SECOND);
        Self { sim, liars: (0..lies.len()).collect(), dead: BTreeMap::new() }
    }

    fn honest(&self) -> impl Iterator<Item = usize> + use<> {
        let liars = self.liars.clone();
        (0..self.sim.len()).filter(move |index| !liars.contains(index))
    }

    /// Nodes do to themselves only what they can.
    fn take(&mut self, step: &Step) {
        let sim = &mut self.sim;
        match *step {
            Step::Crash(index) if sim.is_running(index) => sim.crash(index),
            Step::Kill(index) if sim.is_running(index) => sim.kill(index),
            Step::Stop(index) if sim.is_running(index) => sim.stop(index),
            Step::Start(index, skew) if !sim.is_running(index) && !self.liars.contains(&index) => {
                sim.start(index, skew);
                self.dead.retain(|(observer, _), _| *observer != index);
                let other = (0..NODES).find(|other| *other != index && sim.is_running(*other));
                if let Some(other) = other {
                    sim.introduce(index, other);
                }
            }
            Step::Cut(bits) => {
                let (left, right): (Vec<_>, Vec<_>) = (0..NODES).partition(|index| bits & (1 << index) != 0);
                sim.cut(&left, &right);
            }
            Step::OneWay(a, b) if a != b => sim.cut_one_way(a, b),
            Step::Heal => sim.heal(),
            Step::Freeze(index, seconds) if sim.is_running(index) => {
                sim.freeze(index, SECOND * u32::try_from(seconds).unwrap())
            }
            Step::Set(index, value) if sim.is_running(index) => sim.set(index, "k", &value.to_string()),
            _ => {}
        }
    }

    /// No (node, incarnation) that was down for a node is up for it again. Returns how many went down.
    fn look(&mut self) -> usize {
        let mut downs = 0;
        for observer in self.honest() {
            for event in self.sim.take_events(observer) {
                match event {
                    Event::MemberDown { node, incarnation, .. } | Event::MemberLeft { node, incarnation } => {
                        downs += 1;
                        let dead = self.dead.entry((observer, node)).or_default();
                        *dead = incarnation.max(*dead);
                    }
                    Event::MemberUp { node, incarnation, .. } => {
                        let dead = self.dead.get(&(observer, node));
                        assert!(
                            dead.is_none_or(|dead| incarnation > *dead),
                            "a ghost of {node:?} at {observer}"
                        );
                    }
                    _ => {}
                }
            }
        }
        downs
    }

    /// Everybody who runs is alive for everybody honest who runs, and nobody else is; what they say is the same.
    fn agrees(&mut self) -> bool {
        let running: Vec<usize> = (0..self.sim.len()).filter(|index| self.sim.is_running(*index)).collect();
        let observers: Vec<usize> = self.honest().filter(|index| running.contains(index)).collect();
        let mut seen = BTreeSet::new();
        for observer in &observers {
            for other in (0..self.sim.len()).filter(|other| other != observer) {
                let is_alive = self.sim.state(*observer, other) == Some(State::Alive);
                if is_alive != running.contains(&other) {
                    return false;
                }
            }
            let members = self.sim.core(*observer).members();
            let alive: Vec<_> = words(&members)
                .into_iter()
                .filter(|(id, ..)| {
                    self.sim
                        .number(id)
                        .is_some_and(|number| running.contains(&number) && !self.liars.contains(&number))
                })
                .collect();
            seen.insert(alive);
        }
        seen.len() <= 1
    }
}

fn lies() -> impl Strategy<Value = Vec<Lie>> {
    let lie =
        prop::sample::select(vec![Lie::Withhold, Lie::Replay, Lie::Accuse, Lie::Forge, Lie::Equivocate]);
    prop::collection::vec(lie, 0..=LIARS_MAX)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_ghost_returns_no_living_node_stays_convicted_and_all_agree_after_quiet(
        seed in any::<u64>(),
        steps in steps(),
        lies in lies(),
        loss in 0.0..0.25_f64,
    ) {
        let weather = Weather { loss, duplication: 0.05, ..Weather::default() };
        let mut world = World::new(seed, NODES, weather, &lies);
        for (step, wait) in &steps {
            world.take(step);
            world.sim.run(Duration::from_millis(*wait));
            world.look();
        }
        world.sim.heal();
        world.sim.weather_mut().loss = 0.0;
        let begin = world.sim.elapsed();
        while !world.agrees() {
            prop_assert!(world.sim.elapsed() - begin < QUIET, "no agreement");
            world.sim.run(SECOND);
            world.look();
        }
    }

    #[test]
    fn a_minority_of_liars_convicts_nobody(
        seed in any::<u64>(),
        lies in prop::collection::vec(prop::sample::select(vec![Lie::Accuse, Lie::Forge, Lie::Withhold]), LIARS_MAX),
        loss in 0.0..0.2_f64,
    ) {
        let mut world = World::new(seed, NODES, Weather { loss, ..Weather::default() }, &lies);
        for _ in 0..60 {
            world.sim.run(SECOND);
            prop_assert_eq!(world.look(), 0, "convicted");
        }
    }

    #[test]
    fn a_death_is_agreed_on_although_a_minority_lies(seed in any::<u64>(), lies in lies()) {
        let mut world = World::new(seed, NODES, Weather { idle_timeout: 60 * SECOND, ..Weather::default() }, &lies);
        world.sim.crash(NODES - 1);
        let begin = world.sim.elapsed();
        while !world.honest().filter(|index| *index != NODES - 1).all(|index| world.sim.state(index, NODES - 1) == Some(State::Down)) {
            prop_assert!(world.sim.elapsed() - begin < 10 * SECOND, "not agreed on");
            world.sim.run(Duration::from_millis(100));
            world.look();
        }
        world.sim.run(30 * SECOND);
        world.look();
    }
}

#[test]
fn a_third_of_a_larger_scope_convicts_nobody_and_keeps_no_dead_alive() {
    for_seeds(0..1, |seed| {
        let lies: Vec<Lie> =
            (0..13).map(|index| if index % 2 == 0 { Lie::Accuse } else { Lie::Withhold }).collect();
        let mut world = World::new(seed, 40, Weather::default(), &lies);
        world.sim.run(20 * SECOND);
        world.look();
        // Suspicion costs little; what counts is who was held for dead.
        assert!(world.dead.is_empty(), "{:?}. Replay with SEED={seed}", world.dead);
        for dead in 30..34 {
            world.sim.crash(dead);
        }
        world.sim.until("the dead are down", 20 * SECOND, |sim| {
            let honest = (13..40).filter(|index| !(30..34).contains(index));
            honest.into_iter().all(|index| (30..34).all(|dead| sim.state(index, dead) == Some(State::Down)))
        });
    });
}
