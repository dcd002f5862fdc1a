//! What holds after every storm.

use std::time::Duration;

use super::Rng;
use super::world::{QUIET, World};
use crate::election::tests::{MODEL, needs};
use crate::election::{Member, ModelFacts};
use crate::plan::{Machine, Way, Wishes, plan};

const NODES: usize = 8;

/// Runs what is given for each seed, for as many as `SEEDS` says, or for `SEED` alone.
fn for_seeds(count: u64, run: impl Fn(u64, &mut World)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let all = 0..number("SEEDS").unwrap_or(count);
    let seeds = number("SEED").map_or(all, |seed| seed..seed + 1);
    for seed in seeds {
        let mut world = World::new(seed, mesh(seed));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed, &mut world)));
        if let Err(panic) = result {
            let start = world.trace.len().saturating_sub(60);
            println!("SEED={seed} fails:\n{}", world.trace[start..].join("\n"));
            std::panic::resume_unwind(panic);
        }
    }
}

/// Servers, lenders and a client, of 40 to 110 MiB: few hold the model alone, most pairs and threes do.
fn mesh(seed: u64) -> Vec<Member> {
    let mut rng = Rng(seed ^ 0xE1EC);
    (0..NODES)
        .map(|number| {
            let mut member = World::member(number, 40 + rng.below(70));
            if number >= 4 {
                member.models.insert(MODEL.into(), ModelFacts::default());
            }
            member.is_passive = number == NODES - 1;
            member
        })
        .collect()
}

/// Everything that must hold once nothing has happened for a while.
fn check(world: &World) {
    for node in 0..NODES {
        if !world.is_up(node) {
            continue;
        }
        let side: Vec<usize> =
            (0..NODES).filter(|other| *other == node || world.reaches(node, *other)).collect();
        if side[0] == node {
            check_side(world, &side);
        }
    }
}

fn check_side(world: &World, side: &[usize]) {
    let hosts: Vec<usize> = side.iter().copied().filter(|node| world.nodes[*node].launch.is_some()).collect();
    let alone: Vec<usize> = side.iter().copied().filter(|node| world.nodes[*node].runs_alone).collect();
    let (can_alone, can_split, is_forced) = possible(world, side);
    assert!(hosts.len() <= 1, "two hosts of one model: {hosts:?}");
    let is_split = can_split && (is_forced || can_alone.is_empty());
    assert_eq!(!hosts.is_empty(), is_split, "hosts {hosts:?}, alone {alone:?}, could {can_alone:?}");
    if is_split {
        assert!(alone.is_empty(), "none runs it alone beside a split");
    } else {
        assert_eq!(alone, can_alone, "every node that holds it runs it alone");
    }
    for node in side.iter().copied() {
        if let Some((host, epoch)) = world.nodes[node].lent {
            assert_eq!(hosts, [host], "{node} lends to a node that does not host");
            let launch = world.nodes[host].launch.as_ref().unwrap();
            assert!(launch.epoch == epoch && launch.workers.contains(&node));
        }
    }
    for host in hosts {
        let launch = world.nodes[host].launch.as_ref().unwrap();
        assert_eq!(launch.granted, launch.workers, "{host} has all shares");
        for worker in launch.workers.iter().filter(|worker| **worker != host) {
            assert_eq!(world.nodes[*worker].lent, Some((host, launch.epoch)));
        }
    }
}

/// Which of a side hold the model alone, whether one of them could host a split, and whether one is asked for.
fn possible(world: &World, side: &[usize]) -> (Vec<usize>, bool, bool) {
    let facts = |node: usize| world.nodes[node].facts.models[MODEL].clone();
    let machine = |node: usize| {
        let member = &world.nodes[node].facts;
        Machine { has_file: facts(node).on_disk, serves: facts(node).serves, ..member.machine.clone() }
    };
    let active = || side.iter().copied().filter(|node| !world.nodes[*node].facts.is_passive);
    let servers = || active().filter(|node| facts(*node).serves && facts(*node).on_disk);
    let is_forced = servers().any(|node| facts(node).wants_split);
    let alone = |node: &usize| {
        let plan = plan(MODEL, &needs(), &machine(*node), &[], &Wishes::default());
        plan.chosen().is_some_and(|chosen| chosen.way == Way::Solo)
    };
    let split = |node: usize| {
        let others: Vec<Machine> = active()
            .filter(|other| *other != node)
            .map(|other| Machine { serves: false, ..machine(other) })
            .collect();
        let wishes = Wishes { split: true, ..Wishes::default() };
        plan(MODEL, &needs(), &machine(node), &others, &wishes).split().is_some()
    };
    (servers().filter(alone).collect(), servers().any(split), is_forced)
}

fn storm(world: &mut World, rng: &mut Rng) {
    let node = rng.index(NODES);
    match rng.below(8) {
        0 | 1 if world.is_up(node) => world.kill(node),
        0..=3 if !world.is_up(node) => world.start(node),
        0..=4 => world.partition((0..NODES).map(|_| rng.below(2)).collect()),
        5 => world.partition(vec![0; NODES]),
        6 => world.change(node, |member| {
            if let Some(facts) = member.models.get_mut(MODEL).filter(|facts| facts.on_disk) {
                facts.serves = !facts.serves;
            }
        }),
        _ => world.change(node, |member| {
            if let Some(facts) = member.models.get_mut(MODEL).filter(|facts| facts.on_disk) {
                facts.wants_split = !facts.wants_split;
            }
        }),
    }
    world.run(Duration::from_millis(rng.below(4000)));
}

#[test]
fn after_every_storm_one_host_stays_and_nothing_is_lent_twice() {
    for_seeds(120, |seed, world| {
        let mut rng = Rng(seed);
        for _ in 0..3 {
            for _ in 0..rng.below(6) {
                storm(world, &mut rng);
            }
            world.run(QUIET);
            check(world);
        }
        world.partition(vec![0; NODES]);
        world.run(QUIET);
        check(world);
    });
}

#[test]
fn a_quiet_mesh_starts_its_server_once() {
    for_seeds(40, |_, world| {
        world.run(10 * QUIET);
        check(world);
        // At most: one for each claim that met a better one while all came up.
        let starts: u32 = world.nodes.iter().map(|node| node.starts).sum();
        assert!(starts <= 3, "{starts} starts");
    });
}

#[test]
fn a_healed_partition_keeps_one_host_and_does_not_restart_it() {
    for_seeds(40, |seed, world| {
        world.run(QUIET);
        let sides: Vec<u64> = (0..NODES).map(|node| (node as u64 + seed) % 2).collect();
        world.partition(sides);
        world.run(QUIET);
        check(world);
        let hosts = |world: &World| -> Vec<(usize, u64, u32)> {
            let of = |(node, known): (usize, &super::world::Node)| {
                known.launch.as_ref().map(|launch| (node, launch.epoch, known.starts))
            };
            world.nodes.iter().enumerate().filter_map(of).collect()
        };
        let before = hosts(world);
        world.partition(vec![0; NODES]);
        world.run(Duration::from_secs(3));
        if let (2, [left]) = (before.len(), &hosts(world)[..]) {
            let highest = before.iter().map(|(_, epoch, _)| *epoch).max().unwrap();
            assert_eq!(left.1, highest, "the higher epoch stays");
            assert!(before.contains(left), "and was not started again");
        }
        world.run(QUIET);
        check(world);
    });
}
