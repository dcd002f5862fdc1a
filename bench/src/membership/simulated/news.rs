//! How far news get: a value in rounds, a revocation in seconds.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_gossip::proto::Command;
use mesh_gossip::proto::sim::{Double, Sim, Weather};
use mesh_gossip::{Config, Event};

use super::mesh::{for_each_seed, settled, weather};
use crate::report::{Goal, Lacking, Report, lack};
use crate::stats::{percentile, sort};

/// Every frame takes this long where rounds are counted, so that a round has one length.
const HOP: Duration = Duration::from_millis(10);
/// Longest wait for the last node.
const HEARD_WITHIN: Duration = Duration::from_secs(60);

/// A value that one node sets, on its way to all others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spread {
    pub(super) nodes: usize,
    /// Percent.
    pub(super) loss: u32,
    /// In rounds.
    goal: f64,
}

pub(super) const SPREADS: [Spread; 4] = [
    Spread { nodes: 1000, loss: 0, goal: 5.0 },
    Spread { nodes: 1000, loss: 20, goal: 6.0 },
    Spread { nodes: 10_000, loss: 0, goal: 6.0 },
    Spread { nodes: 10_000, loss: 20, goal: 8.0 },
];

/// A network on which every frame takes one hop's time.
pub(super) fn even() -> Weather {
    Weather { latency: (HOP, HOP), ..weather() }
}

impl Spread {
    fn what(self) -> String {
        let loss = if self.loss == 0 { String::new() } else { format!(", {} % loss", self.loss) };
        format!("spread of a record, {} simulated nodes{loss}, p99", self.nodes)
    }

    pub(super) fn lacking(self) -> Lacking {
        vec![(self.what(), "rounds", Goal::AtMost(self.goal))]
    }

    /// Rounds to each node, of `news` values, in a mesh on an even network.
    fn measure(self, sim: &mut Sim, news: usize) -> Result<Vec<f64>> {
        let round = HOP + Config::default().push_delay;
        sim.weather_mut().loss = f64::from(self.loss) / 100.0;
        sim.run(Duration::from_secs(5));
        sim.keep_events(|event| matches!(event, Event::Record { .. }));
        let mut rounds = Vec::new();
        for number in 0..news {
            let source = (number * 7919 + 17) % self.nodes;
            let (key, id, set) = (format!("news-{}-{number}", self.loss), sim.id(source), sim.elapsed());
            sim.set(source, &key, "new");
            let mut waiting: Vec<usize> = (0..self.nodes).filter(|node| *node != source).collect();
            while !waiting.is_empty() && sim.elapsed() - set < HEARD_WITHIN {
                sim.run(HOP);
                waiting.retain(|node| {
                    let told = |event: &Event| matches!(event, Event::Record { node, key: told } if *node == id && *told == key);
                    let heard = sim.take_timed_events(*node).into_iter().find(|(_, event)| told(event));
                    rounds.extend(heard.iter().map(|(at, _)| (*at - set).as_secs_f64() / round.as_secs_f64()));
                    heard.is_none()
                });
            }
            ensure!(waiting.is_empty(), "{} of {} nodes never heard of a value", waiting.len(), self.nodes);
        }
        sort(&mut rounds);
        Ok(rounds)
    }

    /// Measures and tells; what cannot be measured is left out, and the report says so.
    pub(super) fn report(self, report: &mut Report, sim: &mut Sim, news: usize) {
        match self.measure(sim, news) {
            Ok(rounds) => {
                report.exact(self.what(), "rounds", Goal::AtMost(self.goal), percentile(&rounds, 0.99));
            }
            Err(error) => lack(report, self.lacking(), &error),
        }
    }
}

const REVOKED_NODES: usize = 1000;

/// Percent of loss with the goal for it, in seconds.
const REVOKED: [(u32, Goal); 2] = [(0, Goal::AtMost(2.0)), (20, Goal::None)];

fn revoked_row(loss: u32) -> String {
    let loss = if loss == 0 { String::new() } else { format!(", {loss} % loss") };
    format!("revocation, {REVOKED_NODES} simulated nodes{loss}: the last one obeys")
}

pub(super) fn revoked_lacking() -> Lacking {
    REVOKED.into_iter().map(|(loss, goal)| (revoked_row(loss), "s", goal)).collect()
}

/// The longest of some revocations, each signed at another node.
pub(super) fn revocations(report: &mut Report, seeds: u64, each: usize) -> Result<()> {
    for (loss, goal) in REVOKED {
        let last = for_each_seed(seeds, |seed| {
            let mut sim = settled(seed, REVOKED_NODES, weather())?;
            sim.weather_mut().loss = f64::from(loss) / 100.0;
            sim.run(Duration::from_secs(5));
            sim.keep_events(|event| matches!(event, Event::Revoked { .. }));
            let mut last = Duration::ZERO;
            for number in 0..each {
                last = last.max(revoke(&mut sim, number)?);
            }
            Ok(last.as_secs_f64())
        })?;
        report.exact(revoked_row(loss), "s", goal, last.into_iter().fold(0.0, f64::max));
    }
    Ok(())
}

fn revoke(sim: &mut Sim, number: usize) -> Result<Duration> {
    let (subject, signer) = (REVOKED_NODES - 1 - number, number * 31);
    let (revocation, began) = (Double::revocation(&sim.id(subject)), sim.elapsed());
    sim.command(signer, Command::Revoke(revocation.clone()));
    let told = |event: &Event| matches!(event, Event::Revoked { revocation: told } if *told == revocation);
    // Those who were revoked before are nobody's peers any more.
    let mut waiting: Vec<usize> = (0..subject).collect();
    let mut last = Duration::ZERO;
    while !waiting.is_empty() && sim.elapsed() - began < HEARD_WITHIN {
        sim.run(Duration::from_millis(20));
        waiting.retain(|node| {
            let heard = sim.take_timed_events(*node).into_iter().find(|(_, event)| told(event));
            last = last.max(heard.as_ref().map_or(Duration::ZERO, |(at, _)| *at - began));
            heard.is_none()
        });
    }
    ensure!(waiting.is_empty(), "{} of {REVOKED_NODES} nodes never heard of a revocation", waiting.len());
    Ok(last)
}
