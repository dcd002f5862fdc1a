//! What nodes say to each other when nothing happens, by the counters of their interfaces.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use qmt_tests::fleet::{Fleet, Setup};
use qmt_tests::lab::Lab;

use crate::report::{Goal, Lacking, Report};
use crate::stats::estimate;

/// Nodes, each on a host of its own, all on one network.
const NODES: usize = 8;
/// After the last change that any of them sees: paths are found, records have spread.
const REST: Duration = Duration::from_secs(5);
const GOAL: Goal = Goal::AtMost(2_000.0);

/// Bytes per second, node by node.
#[derive(Debug)]
pub(super) struct Idle {
    time: Duration,
    /// Sent at the interface, all headers included.
    wire: Vec<f64>,
    /// Handed to the links by gossip.
    links: Vec<f64>,
}

impl Idle {
    pub(super) async fn measure(program: &Path, time: Duration) -> Result<Self> {
        let mut lab = Lab::new()?;
        let lan = lab.lan();
        let hosts = (0..NODES).map(|_| Arc::new(lab.host(&lan))).collect();
        let fleet = Fleet::start(Setup { hosts, ..Setup::on_loopback(program, NODES) }).await?;
        fleet.is_quiet_for(REST).await?;
        let (before, begun) = (counts(&fleet).await?, Instant::now());
        tokio::time::sleep(time).await;
        let (after, time) = (counts(&fleet).await?, begun.elapsed());
        let rate = |at: usize| {
            let nodes = before.iter().zip(&after);
            nodes.map(|(before, after)| (after[at] - before[at]) as f64 / time.as_secs_f64()).collect()
        };
        Ok(Self { time, wire: rate(0), links: rate(1) })
    }

    pub(super) fn tell(&self, report: &mut Report) {
        report.row(name(), "B/s", GOAL, estimate(&self.wire));
        let links = format!("{}, of it counted at the links", name());
        report.row(links, "B/s", Goal::None, estimate(&self.links));
        let most = self.wire.iter().copied().fold(0.0, f64::max);
        report.note(format!(
            "idle traffic: {NODES} processes in network namespaces, every one linked with every other, {:.0} s in which nothing happens; \
             bytes sent a second, the median of the nodes (the most of one: {most:.0}). On the wire are QUIC, UDP, IP and Ethernet headers \
             and acknowledgements too, by the counters of the interfaces; at the links the frames of gossip alone.",
            self.time.as_secs_f64()
        ));
    }

    pub(super) fn lacking() -> Lacking {
        vec![(name(), "B/s", GOAL)]
    }
}

fn name() -> String {
    format!("idle traffic sent by each of {NODES} nodes, on the wire")
}

/// For each node the bytes that its host has sent and those that its gossip has.
async fn counts(fleet: &Fleet) -> Result<Vec<[u64; 2]>> {
    let mut counts = Vec::new();
    for number in 0..fleet.count() {
        let node = fleet.node(number);
        let process = node.process_id().context("a running node")?;
        let devices = std::fs::read_to_string(format!("/proc/{process}/net/dev"))?;
        let status = node.client().status().await?;
        let scope = status.scopes.first().context("a scope")?;
        counts.push([sent(&devices).context("no interface eth0")?, scope.gossip_bytes_sent]);
    }
    Ok(counts)
}

/// Bytes that eth0 has sent: the ninth number of its line.
fn sent(devices: &str) -> Option<u64> {
    let (_, numbers) = devices.lines().find_map(|line| line.trim().split_once("eth0:"))?;
    numbers.split_whitespace().nth(8)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_sent_are_read() {
        let devices = "Inter-| Receive | Transmit\n face |bytes packets\n    lo: 1 2 3 4 5 6 7 8 9 10\n  \
                       eth0: 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26\n";
        assert_eq!(sent(devices), Some(19));
        assert_eq!(sent("    lo: 1 2 3"), None);
    }
}
