//! Meshes in which nobody dies: what they say, and whom they take for dead all the same.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use mesh_gossip::Event;
use mesh_gossip::proto::sim::Sim;

use super::mesh::{for_each_seed, settled, weather};
use crate::report::{Goal, Report};

/// The length before each frame in gossip's stream.
const LENGTH_BYTES: u64 = 4;
/// What a link adds to a small frame of its own: IPv4 20, UDP 8, QUIC's short header 13, the stream's frame header 4 and the
/// AEAD's tag 16 (RFC 9000, sections 17.3 and 19.8; RFC 9001, section 5.3). Acknowledgements are not counted.
pub(super) const LINK_BYTES: u64 = 61;

/// Bytes per second and node: at the link, and on the wire.
#[derive(Debug, Clone, Copy)]
pub(super) struct Idle {
    pub(super) link: f64,
    pub(super) wire: f64,
}

pub(super) fn idle_rows(nodes: usize) -> [(String, Goal); 2] {
    [
        (format!("idle traffic of one of {nodes} simulated nodes, at the link"), Goal::None),
        (
            format!("idle traffic of one of {nodes} simulated nodes, with the links' headers"),
            Goal::AtMost(2.0),
        ),
    ]
}

/// What the nodes of a settled mesh send in `span`.
pub(super) fn idle(sim: &mut Sim, span: Duration) -> Idle {
    let total = |sim: &Sim| {
        let all = (0..sim.len()).map(|node| sim.traffic(node));
        all.fold((0, 0), |sum, one| (sum.0 + one.frames, sum.1 + one.bytes))
    };
    let before = total(sim);
    sim.run(span);
    let after = total(sim);
    let (frames, bytes) = (after.0 - before.0, after.1 - before.1);
    let share = |count: u64| count as f64 / sim.len() as f64 / span.as_secs_f64();
    Idle {
        link: share(bytes + frames * LENGTH_BYTES),
        wire: share(bytes + frames * (LENGTH_BYTES + LINK_BYTES)),
    }
}

pub(super) fn tell_idle(nodes: usize, idle: Idle, report: &mut Report) {
    for ((what, goal), bytes) in idle_rows(nodes).into_iter().zip([idle.link, idle.wire]) {
        report.exact(what, "kB/s", goal, bytes / 1000.0);
    }
}

/// Living nodes that were taken for dead.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wrong {
    pub(super) node_hours: f64,
    /// Incarnations that at least one node held for dead.
    pub(super) convicted: usize,
    /// How often a node stopped routing to a living one.
    pub(super) suspected: usize,
    /// Inputs that cores took.
    pub(super) inputs: u64,
}

/// Meshes of `nodes` on a network that loses `loss` percent of all frames, for `hours` each, one for each of `seeds`.
pub(super) fn wrongly(nodes: usize, loss: u32, seeds: u64, hours: f64) -> Result<Wrong> {
    let all = for_each_seed(seeds, |seed| {
        let mut sim = settled(seed, nodes, weather())?;
        sim.weather_mut().loss = f64::from(loss) / 100.0;
        sim.run(Duration::from_secs(30));
        sim.keep_events(|event| matches!(event, Event::MemberSuspect { .. } | Event::MemberDown { .. }));
        let (begun, inputs) = (sim.elapsed(), sim.happened());
        let mut convicted = BTreeSet::new();
        let mut suspected = 0;
        while (sim.elapsed() - begun).as_secs_f64() < hours * 3600.0 {
            sim.run(Duration::from_secs(10));
            for node in 0..nodes {
                for event in sim.take_events(node) {
                    match event {
                        Event::MemberDown { node, incarnation, .. } => {
                            convicted.insert((node, incarnation));
                        }
                        _ => suspected += 1,
                    }
                }
            }
        }
        let node_hours = (sim.elapsed() - begun).as_secs_f64() / 3600.0 * nodes as f64;
        Ok(Wrong { node_hours, convicted: convicted.len(), suspected, inputs: sim.happened() - inputs })
    })?;
    Ok(all.into_iter().fold(Wrong::default(), |sum, one| Wrong {
        node_hours: sum.node_hours + one.node_hours,
        convicted: sum.convicted + one.convicted,
        suspected: sum.suspected + one.suspected,
        inputs: sum.inputs + one.inputs,
    }))
}
