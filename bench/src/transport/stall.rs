//! How long two nodes do not reach each other when the network of one of them changes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_control::{Client, PingRequest};
use qmt_tests::lab::{Host, Lab};
use rustix::process::Signal;
use tokio::task::JoinSet;

use super::node::Node;
use crate::report::{Goal, Lacking, Report};

/// Between two pings; each is given up on its own, so that one without an answer does not hold up the next.
const PING_EVERY: Duration = Duration::from_millis(50);
/// Before the change, and after it is over: a stall that lasts longer is said to last as long.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(10);
/// How long an interface is down, and how long a process is frozen.
const DOWN: Duration = Duration::from_secs(2);
const FROZEN: Duration = Duration::from_secs(10);
/// Before the next change everything has settled: paths that were given up, suspicions.
const REST: Duration = Duration::from_secs(2);

/// What happens to one of the nodes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    Address,
    Interface,
    Frozen,
}

/// What carries the link.
#[derive(Debug, Clone, Copy)]
pub(super) enum Carried {
    Lan,
    Internet,
}

impl Carried {
    fn configuration(self) -> &'static str {
        match self {
            Self::Lan => "mesh.enabled = true\n",
            Self::Internet => "mesh.enabled = true\nmesh.transport = \"iroh\"\n",
        }
    }
}

fn name(carried: Carried, change: Change) -> &'static str {
    match (carried, change) {
        (Carried::Lan, Change::Address) => "LAN: stall after another address came, longest",
        (Carried::Lan, Change::Interface) => "LAN: stall after the interface came back, longest",
        (Carried::Lan, Change::Frozen) => "LAN: stall after a node went on that was frozen for 10 s, longest",
        (Carried::Internet, Change::Address) => "internet: stall after another address came, longest",
        (Carried::Internet, Change::Interface) => "internet: stall after the interface came back, longest",
        (Carried::Internet, Change::Frozen) => {
            "internet: stall after a node went on that was frozen for 10 s, longest"
        }
    }
}

const GOAL: Goal = Goal::AtMost(1.0);

pub(super) fn lacking(carried: Carried, changes: &[Change]) -> Lacking {
    changes.iter().map(|change| (name(carried, *change).to_owned(), "s", GOAL)).collect()
}

/// For each change the stalls in seconds, try by try.
pub(super) async fn measure(
    bin_dir: &Path,
    carried: Carried,
    changes: &[Change],
    tries: usize,
) -> Result<Vec<Vec<f64>>> {
    let mut lab = Lab::new()?;
    let lan = lab.lan();
    let (still, mut moved) = (lab.host(&lan), lab.host(&lan));
    let a = Node::start(bin_dir, &still, "still", carried.configuration()).await?;
    let b = Node::start(bin_dir, &moved, "moved", carried.configuration()).await?;
    if let Carried::Internet = carried {
        b.join(&a.invite().await?).await?;
    }
    let mut all = Vec::new();
    for change in changes {
        let mut stalls = Vec::new();
        for _ in 0..tries {
            a.wait_for(&b.id).await.context("before the change")?;
            b.wait_for(&a.id).await.context("before the change")?;
            tokio::time::sleep(REST).await;
            stalls.push(stall(&mut lab, &mut moved, [&a, &b], *change).await?);
        }
        println!("  {}: {stalls:.2?} s", name(carried, *change));
        all.push(stalls);
    }
    Ok(all)
}

pub(super) fn tell(report: &mut Report, carried: Carried, changes: &[Change], stalls: &[Vec<f64>]) {
    for (change, stalls) in changes.iter().zip(stalls) {
        report.exact(name(carried, *change), "s", GOAL, stalls.iter().copied().fold(0.0, f64::max));
    }
}

/// The longest time without an answer, in either direction, from the moment at which the change is over.
async fn stall(lab: &mut Lab, moved: &mut Host, [a, b]: [&Node; 2], change: Change) -> Result<f64> {
    let series = [
        tokio::spawn(answers(a.client().clone(), b.id.clone(), BEFORE + change.lasts() + AFTER)),
        tokio::spawn(answers(b.client().clone(), a.id.clone(), BEFORE + change.lasts() + AFTER)),
    ];
    tokio::time::sleep(BEFORE).await;
    change.happen(lab, moved, b).await?;
    let over = Instant::now();
    let mut longest = Duration::ZERO;
    for answers in series {
        longest = longest.max(longest_gap(&answers.await?, over, over + AFTER - PING_EVERY * 4));
    }
    Ok(longest.as_secs_f64())
}

impl Change {
    fn lasts(self) -> Duration {
        match self {
            Self::Address => Duration::ZERO,
            Self::Interface => DOWN,
            Self::Frozen => FROZEN,
        }
    }

    /// Returns when it is over.
    async fn happen(self, lab: &mut Lab, host: &mut Host, node: &Node) -> Result<()> {
        match self {
            Self::Address => drop(lab.change_address(host)),
            Self::Interface => {
                let set = |state: &str| {
                    let output = host.run("ip", &["link", "set", "eth0", state]);
                    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                    Ok(())
                };
                set("down")?;
                tokio::time::sleep(DOWN).await;
                set("up")?;
            }
            Self::Frozen => {
                node.signal(Signal::STOP)?;
                tokio::time::sleep(FROZEN).await;
                node.signal(Signal::CONT)?;
            }
        }
        Ok(())
    }
}

/// When pings were answered, in order, of a series that lasts so long.
async fn answers(client: Client, other: String, lasts: Duration) -> Vec<Instant> {
    let request = PingRequest { node: other, count: Some(1) };
    let (begin, mut pings, mut answers) = (Instant::now(), JoinSet::new(), Vec::new());
    let mut ticks = tokio::time::interval(PING_EVERY);
    while begin.elapsed() < lasts {
        tokio::select! {
            _ = ticks.tick() => {
                let (client, request) = (client.clone(), request.clone());
                pings.spawn(async move {
                    let answered = client.ping(&request).await.is_ok_and(|pongs| !pongs.is_empty());
                    answered.then(Instant::now)
                });
            }
            Some(ping) = pings.join_next() => answers.extend(ping.ok().flatten()),
        }
    }
    answers.sort_unstable();
    answers
}

/// The longest time between two answers, or from `from` to the first or from the last to `to`.
fn longest_gap(answers: &[Instant], from: Instant, to: Instant) -> Duration {
    let inside = answers.iter().copied().filter(|at| (from..to).contains(at));
    let points: Vec<Instant> = std::iter::once(from).chain(inside).chain([to]).collect();
    points.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_counts_from_the_end_of_the_change_to_the_end_of_the_series() {
        let begin = Instant::now();
        let at = |tenths: u32| begin + Duration::from_millis(100) * tenths;
        let gap = |answers: &[u32]| {
            let answers: Vec<_> = answers.iter().map(|tenths| at(*tenths)).collect();
            longest_gap(&answers, at(10), at(20)).as_millis()
        };
        assert_eq!(gap(&[1, 12, 14, 16, 18]), 200);
        assert_eq!(gap(&[1, 9, 17, 18]), 700);
        assert_eq!(gap(&[11, 12, 19, 30]), 700);
        assert_eq!(gap(&[11, 13]), 700);
        assert_eq!(gap(&[]), 1000);
    }
}
