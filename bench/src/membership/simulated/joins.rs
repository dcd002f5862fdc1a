//! A node that joins where many have died.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_gossip::proto::sim::Sim;
use mesh_gossip::{Event, State};
use mesh_identity::Role;

use super::mesh::{config, for_each_seed, settled, weather};
use crate::report::{Goal, Lacking, Report};

const LIVING: usize = 50;
const GHOSTS: usize = 500;
/// So many die at a time, killed, so that their neighbours know at once: what it takes to notice is measured elsewhere.
const BATCH: usize = 50;
const JOINED_WITHIN: Duration = Duration::from_secs(30);

fn row() -> String {
    format!(
        "join through a node that offers {GHOSTS} ghosts beside {LIVING} living ones: alive everywhere, sees all"
    )
}

pub(super) fn lacking() -> Lacking {
    vec![(row(), "s", Goal::AtMost(1.0)), (raised_row(), "ghosts", Goal::AtMost(0.0))]
}

fn raised_row() -> String {
    "of these ghosts, shown as alive to the application of the one that joins".to_owned()
}

/// The longest of the joins, and the ghosts that any of them saw.
pub(super) fn measure(report: &mut Report, seeds: u64) -> Result<()> {
    let all = for_each_seed(seeds, |seed| {
        let mut sim = haunted(seed)?;
        let dead: Vec<_> = (LIVING..LIVING + GHOSTS).map(|ghost| sim.id(ghost)).collect();
        sim.keep_events(|event| matches!(event, Event::MemberUp { .. }));
        let begun = sim.elapsed();
        let joiner = sim.add(Role::Member, config(LIVING + GHOSTS));
        sim.introduce(0, joiner);
        while !has_joined(&mut sim, joiner) {
            ensure!(sim.elapsed() - begun < JOINED_WITHIN, "a joiner did not become a member (seed {seed})");
            sim.run(Duration::from_millis(5));
        }
        let joined = (sim.elapsed() - begun).as_secs_f64();
        sim.run(Duration::from_secs(30));
        let is_ghost = |event: &Event| matches!(event, Event::MemberUp { node, .. } if dead.contains(node));
        Ok((joined, sim.take_events(joiner).iter().filter(|event| is_ghost(event)).count()))
    })?;
    report.exact(row(), "s", Goal::AtMost(1.0), all.iter().map(|(joined, _)| *joined).fold(0.0, f64::max));
    let raised: usize = all.iter().map(|(_, raised)| raised).sum();
    report.exact(raised_row(), "ghosts", Goal::AtMost(0.0), raised as f64);
    Ok(())
}

/// A mesh most of whose members have died, as all that live know.
fn haunted(seed: u64) -> Result<Sim> {
    let mut sim = settled(seed, LIVING + GHOSTS, weather())?;
    for batch in (LIVING..LIVING + GHOSTS).collect::<Vec<_>>().chunks(BATCH) {
        for ghost in batch {
            sim.kill(*ghost);
        }
        sim.run(Duration::from_secs(3));
    }
    for _ in 0..120 {
        let knows = |sim: &mut Sim, node: usize| sim.core(node).members().alive().count() == LIVING - 1;
        if (0..LIVING).all(|node| knows(&mut sim, node)) {
            return Ok(sim);
        }
        sim.run(Duration::from_secs(1));
    }
    anyhow::bail!("the living did not agree on who is dead (seed {seed})")
}

fn has_joined(sim: &mut Sim, joiner: usize) -> bool {
    (0..LIVING).all(|node| {
        sim.state(node, joiner) == Some(State::Alive) && sim.state(joiner, node) == Some(State::Alive)
    })
}
