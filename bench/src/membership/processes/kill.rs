//! `kill -9` of one process among many: when the others know.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_control::NodeState;
use qmt_tests::fleet::{Book, Fleet, Setup, Sighting};
use qmt_tests::lab::Lab;

use super::NODES;
use crate::report::{Goal, Lacking, Report};
use crate::stats::{estimate, estimate_at};

/// Nobody has seen a change for so long before the next one is killed: what the last one's return caused is over.
const REST: Duration = Duration::from_millis(700);
/// Has no common divisor with [`NODES`], so that each in turn is killed and neighbours in number are not.
const STRIDE: usize = 7;

/// Milliseconds from the kill, kill by kill.
#[derive(Debug, Default)]
pub(super) struct Kills {
    /// Until the last linked peer doubts it, and knows it to be down.
    neighbours: Times,
    /// The same of all nodes.
    all: Times,
    /// Peers with a link, of all kills together.
    linked: usize,
    /// Doubts about nodes that ran, while one was killed and came back, and of these how many were convicted.
    wrongly: [usize; 2],
}

#[derive(Debug, Default)]
struct Times {
    doubted: Vec<f64>,
    known: Vec<f64>,
}

impl Kills {
    pub(super) async fn measure(program: &Path, kills: usize) -> Result<Self> {
        // One host for all: over its loopback, by an address as they have at home, whatever this machine's is.
        let mut lab = Lab::new()?;
        let lan = lab.lan();
        let host = Arc::new(lab.host(&lan));
        let hosts = vec![host; NODES];
        let mut fleet = Fleet::start(Setup { hosts, ..Setup::on_loopback(program, NODES) }).await?;
        let mut measured = Self::default();
        for kill in 0..kills {
            let victim = kill * STRIDE % NODES;
            measured
                .kill(&mut fleet, victim)
                .await
                .with_context(|| format!("kill {kill}, of node {victim}"))?;
        }
        Ok(measured)
    }

    async fn kill(&mut self, fleet: &mut Fleet, victim: usize) -> Result<()> {
        fleet.is_quiet_for(REST).await?;
        let id = fleet.node(victim).id().to_owned();
        let neighbours = fleet.linked_with(victim);
        let at = fleet.kill(victim);
        let living = fleet.living();
        let knows = |book: &Book, number: usize| {
            matches!(book.view(number).state_of(&id), None | Some(NodeState::Down))
        };
        fleet
            .until("all know", |book| living.iter().all(|number| knows(book, *number)).then_some(()))
            .await?;
        let seen = fleet.sightings_since(at);
        let (doubted, known) = (firsts(&seen, &id, false, at), firsts(&seen, &id, true, at));
        self.neighbours.doubted.push(last(&doubted, &neighbours));
        self.neighbours.known.push(last(&known, &neighbours));
        self.all.doubted.push(last(&doubted, &living));
        self.all.known.push(last(&known, &living));
        self.linked += neighbours.len();
        if let (Goal::AtMost(most), Some(took)) = (NEAR, self.neighbours.known.last())
            && *took > most
        {
            // For whoever looks for the reason.
            println!("node {victim}, linked with {neighbours:?}: doubted {doubted:?}, known {known:?}");
        }
        fleet.restart(victim, "").await?;
        fleet.all_see_the_living().await?;
        let returned = fleet.node(victim).id().to_owned();
        for seen in fleet.sightings_since(at) {
            let is_other = seen.subject != returned && seen.observer != victim;
            self.wrongly[0] += usize::from(is_other && seen.state == Some(NodeState::Suspect));
            self.wrongly[1] += usize::from(is_other && seen.state == Some(NodeState::Down));
        }
        Ok(())
    }

    pub(super) fn tell(&self, report: &mut Report) {
        let [near, near_most, far, far_most] = names();
        let doubt = |what: &str| format!("{what}, doubted (routing leaves it)");
        report.row(doubt(&near), "ms", Goal::None, estimate(&self.neighbours.doubted));
        report.row(doubt(&near_most), "ms", Goal::None, estimate_at(&self.neighbours.doubted, 0.99));
        report.row(near, "ms", Goal::None, estimate(&self.neighbours.known));
        report.row(near_most, "ms", NEAR, estimate_at(&self.neighbours.known, 0.99));
        report.row(far, "ms", Goal::None, estimate(&self.all.known));
        report.row(far_most, "ms", FAR, estimate_at(&self.all.known, 0.99));
        let kills = self.all.known.len();
        report.note(format!(
            "kill -9: {kills} kills in a mesh of {NODES} processes on one host, each in turn, started again and back before the next one; \
             from before the signal to the event at the last linked peer ({:.1} on average), and at the last of all, by their own clock, \
             which is the machine's. Meanwhile nodes that ran were doubted {} times and held for down {} times.",
            self.linked as f64 / kills.max(1) as f64,
            self.wrongly[0],
            self.wrongly[1],
        ));
    }

    pub(super) fn lacking() -> Lacking {
        let [_, near, _, far] = names();
        vec![(near, "ms", NEAR), (far, "ms", FAR)]
    }
}

const NEAR: Goal = Goal::AtMost(100.0);
const FAR: Goal = Goal::AtMost(500.0);

fn names() -> [String; 4] {
    ["linked peers know, p50", "linked peers know, p99", "all know, p50", "all know, p99"]
        .map(|who| format!("kill -9, {NODES} processes: {who}"))
}

/// When each observer first saw the subject as no longer alive, or as down, in milliseconds since `at`.
fn firsts(seen: &[Sighting], subject: &str, is_down: bool, at: u64) -> BTreeMap<usize, f64> {
    let mut firsts = BTreeMap::new();
    for seen in seen.iter().filter(|seen| seen.subject == subject) {
        let counts = match seen.state {
            None | Some(NodeState::Down) => true,
            Some(NodeState::Suspect) => !is_down,
            Some(_) => false,
        };
        if counts {
            firsts.entry(seen.observer).or_insert((seen.at_ms - at) as f64);
        }
    }
    firsts
}

/// When the last of these had seen it.
fn last(firsts: &BTreeMap<usize, f64>, observers: &[usize]) -> f64 {
    let wanted: BTreeSet<usize> = observers.iter().copied().collect();
    let of_wanted = firsts.iter().filter(|(observer, _)| wanted.contains(observer));
    of_wanted.map(|(_, at)| *at).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_first_sight_counts() {
        let seen = |observer, state, at_ms| Sighting { observer, subject: "a".to_owned(), state, at_ms };
        let seen = [
            seen(0, Some(NodeState::Suspect), 110),
            seen(1, Some(NodeState::Suspect), 105),
            seen(0, Some(NodeState::Down), 150),
            seen(1, None, 140),
            seen(1, Some(NodeState::Down), 190),
            Sighting { observer: 1, subject: "b".to_owned(), state: None, at_ms: 101 },
        ];
        assert_eq!(last(&firsts(&seen, "a", false, 100), &[0, 1]), 10.0);
        assert_eq!(last(&firsts(&seen, "a", true, 100), &[0, 1]), 50.0);
        assert_eq!(last(&firsts(&seen, "a", true, 100), &[1]), 40.0);
    }
}
