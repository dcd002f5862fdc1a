//! Silent deaths: how long until others know.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use mesh_gossip::Event;

use super::mesh::{for_each_seed, routes_to, settled, weather};
use crate::report::{Goal, Lacking, Report};
use crate::stats::{percentile, sort};

/// Longest wait for all to notice a death; who has not by then counts with it.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);
/// Until the nodes have measured the loss of a network that they are new to.
const SETTLE: Duration = Duration::from_secs(30);

/// One mesh of a size on one kind of network.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) nodes: usize,
    /// Percent.
    pub(super) loss: u32,
}

pub(super) const CASES: [Case; 4] = [
    Case { nodes: 100, loss: 0 },
    Case { nodes: 100, loss: 20 },
    Case { nodes: 1000, loss: 0 },
    Case { nodes: 1000, loss: 20 },
];

/// Seconds from a death to what an observer makes of it, over all pairs of both.
#[derive(Debug, Default)]
pub(super) struct Noticed {
    convicted: Vec<f64>,
    left: Vec<f64>,
    missed: usize,
}

impl Case {
    fn rows(self) -> [(String, Goal); 4] {
        let loss = if self.loss == 0 { String::new() } else { format!(", {} % loss", self.loss) };
        let place = format!("silent death, {} simulated nodes{loss}", self.nodes);
        let (p50, p99) = if self.loss == 0 { (Goal::AtMost(0.8), 1.5) } else { (Goal::None, 3.0) };
        [
            (format!("{place}: convicted, p50"), p50),
            (format!("{place}: convicted, p99"), Goal::AtMost(p99)),
            (format!("{place}: routing leaves it, p50"), Goal::None),
            (format!("{place}: routing leaves it, p99"), Goal::None),
        ]
    }

    pub(super) fn lacking(self) -> Lacking {
        self.rows().into_iter().map(|(what, goal)| (what, "s", goal)).collect()
    }

    /// `deaths` in each of `seeds` meshes, one after the other.
    pub(super) fn measure(self, seeds: u64, deaths: usize) -> Result<Noticed> {
        let all = for_each_seed(seeds, |seed| self.run(seed, deaths))?;
        let mut sum = Noticed::default();
        for mut noticed in all {
            sum.convicted.append(&mut noticed.convicted);
            sum.left.append(&mut noticed.left);
            sum.missed += noticed.missed;
        }
        sort(&mut sum.convicted);
        sort(&mut sum.left);
        Ok(sum)
    }

    fn run(self, seed: u64, deaths: usize) -> Result<Noticed> {
        let mut sim = settled(seed, self.nodes, weather())?;
        sim.weather_mut().loss = f64::from(self.loss) / 100.0;
        sim.run(SETTLE);
        sim.keep_events(|event| matches!(event, Event::MemberSuspect { .. } | Event::MemberDown { .. }));
        let mut noticed = Noticed::default();
        for round in 0..deaths {
            // Chosen and timed independently of the nodes' own steps.
            let dead =
                (0..self.nodes).rev().filter(|node| sim.is_running(*node)).nth(round).unwrap_or_default();
            sim.run(Duration::from_millis(500 + (seed * 7919 + round as u64 * 104_729) % 1000));
            self.observe(&mut sim, dead, &mut noticed);
        }
        Ok(noticed)
    }

    fn observe(self, sim: &mut mesh_gossip::proto::sim::Sim, dead: usize, noticed: &mut Noticed) {
        let (id, died) = (sim.id(dead), sim.elapsed());
        let observers: Vec<usize> =
            (0..self.nodes).filter(|node| *node != dead && sim.is_running(*node)).collect();
        let mut left = BTreeMap::new();
        for observer in &observers {
            sim.take_events(*observer);
            if !routes_to(sim, *observer, dead) {
                left.insert(*observer, 0.0);
            }
        }
        sim.crash(dead);
        let mut waiting = observers.clone();
        while !waiting.is_empty() && sim.elapsed() - died < NOTICED_WITHIN {
            sim.run(Duration::from_millis(100));
            waiting.retain(|observer| {
                let mut is_waiting = true;
                for (at, event) in sim.take_timed_events(*observer) {
                    let after = (at - died).as_secs_f64();
                    match event {
                        Event::MemberSuspect { node, .. } if node == id => {
                            left.entry(*observer).or_insert(after);
                        }
                        Event::MemberDown { node, .. } if node == id && is_waiting => {
                            left.entry(*observer).or_insert(after);
                            noticed.convicted.push(after);
                            is_waiting = false;
                        }
                        _ => {}
                    }
                }
                is_waiting
            });
        }
        noticed.missed += waiting.len();
        noticed.convicted.extend(waiting.iter().map(|_| NOTICED_WITHIN.as_secs_f64()));
        let longest = NOTICED_WITHIN.as_secs_f64();
        noticed.left.extend(observers.iter().map(|observer| left.get(observer).copied().unwrap_or(longest)));
    }

    pub(super) fn tell(self, noticed: &Noticed, report: &mut Report) {
        let figures = [
            (&noticed.convicted, 0.5),
            (&noticed.convicted, 0.99),
            (&noticed.left, 0.5),
            (&noticed.left, 0.99),
        ];
        for ((what, goal), (all, part)) in self.rows().into_iter().zip(figures) {
            report.exact(what, "s", goal, percentile(all, part));
        }
        if noticed.missed > 0 {
            report.note(format!(
                "silent death, {} nodes, {} % loss: {} of {} pairs had not noticed after {} s and count with that.",
                self.nodes,
                self.loss,
                noticed.missed,
                noticed.convicted.len(),
                NOTICED_WITHIN.as_secs()
            ));
        }
    }
}
