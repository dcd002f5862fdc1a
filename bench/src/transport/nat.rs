//! Whether nodes behind NATs come to a direct path, and how soon.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_control::PathKind;
use qmt_tests::lab::{Host, Lab, Lan, Nat};

use super::node::{Node, next_link, now_ms};
use crate::report::{Goal, Lacking, Report};
use crate::stats::{estimate, estimate_at};

/// Longest wait for a link, and from then on for a direct path.
const LINK: Duration = Duration::from_secs(20);
const DIRECT: Duration = Duration::from_secs(8);

/// What stands between a node and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    Router(Nat),
    /// An ordinary router at home, and a provider's NAT before it.
    Provider,
}

use Behind::{Provider, Router};
use Nat::{AddressDependent, EndpointIndependent, PortDependent, Symmetric, UdpBlocked};

const KINDS: [(Behind, &str); 6] = [
    (Router(EndpointIndependent), "open to all"),
    (Router(AddressDependent), "open to the asked address"),
    (Router(PortDependent), "ordinary"),
    (Provider, "ordinary behind a provider's"),
    (Router(Symmetric), "a new port for each peer"),
    (Router(UdpBlocked), "no UDP"),
];

/// Whether a hole can be punched: a port that nobody can foretell is only reached where the other router lets any port
/// of the asked address in.
fn can_punch(a: Behind, b: Behind) -> bool {
    let is = |nat| a == Router(nat) || b == Router(nat);
    match (is(UdpBlocked), is(Symmetric)) {
        (true, _) => false,
        (_, true) => is(EndpointIndependent) || is(AddressDependent),
        (_, false) => true,
    }
}

/// What one try showed.
enum Found {
    /// Direct, so many seconds after the link was there by the relay (0 when it was direct from the start), and so many
    /// after the node began to join.
    Direct {
        since_relayed: f64,
        since_join: f64,
    },
    Relayed,
    Nothing,
}

pub(super) struct Matrix {
    /// For each pair of kinds: its name, whether a hole can be punched, the tries.
    pairs: Vec<(String, bool, Vec<Found>)>,
}

const ALL: &str = "direct links of all tries, over all pairs of NATs";
const PUNCHED: &str = "direct links where a hole can be punched";
const HALF: &str = "from relayed to direct, p50";
const MOST: &str = "from relayed to direct, p95";
const JOINED_HALF: &str = "from joining to a direct link, p50";
const JOINED_MOST: &str = "from joining to a direct link, p95";
const SOON: Goal = Goal::AtMost(1.5);

impl Matrix {
    /// Tries every pair, or with `quick` three of them.
    pub(super) async fn measure(bin_dir: &Path, tries: usize, quick: bool) -> Result<Self> {
        let mut pairs = Vec::new();
        for (number, a) in KINDS.iter().enumerate() {
            for b in &KINDS[number..] {
                let shown = [(a.0, b.0) == (KINDS[2].0, KINDS[2].0), (a.0, b.0) == (KINDS[1].0, KINDS[4].0)];
                if quick && !shown.contains(&true) {
                    continue;
                }
                let can_punch = can_punch(a.0, b.0);
                // What cannot be is tried once, which takes the whole wait.
                let tries = if can_punch { tries } else { 1 };
                let name = format!("{} / {}", a.1, b.1);
                let found = try_pair(bin_dir, a.0, b.0, tries).await.with_context(|| name.clone())?;
                println!("  {name}: {} of {tries} direct", found.iter().filter(is_direct).count());
                pairs.push((name, can_punch, found));
            }
        }
        Ok(Self { pairs })
    }

    pub(super) fn tell(&self, report: &mut Report) {
        let share = |tries: Vec<&Found>| {
            100.0 * tries.iter().filter(|found| is_direct(found)).count() as f64 / tries.len().max(1) as f64
        };
        let tries = |punchable: bool| {
            let pairs = self.pairs.iter().filter(move |(_, can_punch, _)| !punchable || *can_punch);
            pairs.flat_map(|(_, _, tries)| tries).collect::<Vec<_>>()
        };
        report.exact(ALL, "%", Goal::None, share(tries(false)));
        report.exact(PUNCHED, "%", Goal::None, share(tries(true)));
        let direct = |time: fn(f64, f64) -> f64| -> Vec<f64> {
            let times = tries(true).into_iter().filter_map(|found| match found {
                Found::Direct { since_relayed, since_join } => Some(time(*since_relayed, *since_join)),
                Found::Relayed | Found::Nothing => None,
            });
            times.collect()
        };
        let (relayed, joined) = (direct(|relayed, _| relayed), direct(|_, joined| joined));
        if relayed.is_empty() {
            for (what, unit, goal) in Self::lacking().split_off(2) {
                report.not_measured(what, unit, goal);
            }
        } else {
            report.row(HALF, "s", Goal::None, estimate(&relayed));
            report.row(MOST, "s", SOON, estimate_at(&relayed, 0.95));
            report.row(JOINED_HALF, "s", Goal::None, estimate(&joined));
            report.row(JOINED_MOST, "s", Goal::None, estimate_at(&joined, 0.95));
        }
        let pairs = self.pairs.iter().map(|(name, can_punch, tries)| {
            let direct = tries.iter().filter(is_direct).count();
            let linked = tries.iter().filter(|found| !matches!(found, Found::Nothing)).count();
            let mark = if *can_punch { "" } else { " (no hole can be punched)" };
            format!("{name}: {direct} of {} direct, {linked} linked{mark}", tries.len())
        });
        report.note(format!(
            "NATs: a relay of ours on the internet, one node behind each NAT, the second one started anew for each try; a try that is \
             not direct {} s after its link is counted as relayed. {}.",
            DIRECT.as_secs(),
            pairs.collect::<Vec<_>>().join("; ")
        ));
    }

    pub(super) fn lacking() -> Lacking {
        let figures = [
            (ALL, "%", Goal::None),
            (PUNCHED, "%", Goal::None),
            (HALF, "s", Goal::None),
            (MOST, "s", SOON),
            (JOINED_HALF, "s", Goal::None),
            (JOINED_MOST, "s", Goal::None),
        ];
        figures.map(|(what, unit, goal)| (what.to_owned(), unit, goal)).into()
    }
}

fn is_direct(found: &&Found) -> bool {
    matches!(found, Found::Direct { .. })
}

async fn try_pair(bin_dir: &Path, a: Behind, b: Behind, tries: usize) -> Result<Vec<Found>> {
    let mut lab = Lab::new()?;
    let wan = lab.wan();
    let relay_host = lab.host(&wan);
    let (a_host, b_host) = (settle(&mut lab, &wan, a), settle(&mut lab, &wan, b));
    let relay = Node::start(bin_dir, &relay_host, "relay", "relay.enabled = true\n").await?;
    let token = relay.invite().await?;
    let first = Node::start(bin_dir, &a_host, "first", "").await?;
    first.join(&token).await.context("the first node cannot join")?;
    let mut found = Vec::new();
    for number in 0..tries {
        let second = Node::start(bin_dir, &b_host, &format!("second{number}"), "").await?;
        found.push(try_once(&second, &first.id, &token).await?);
    }
    Ok(found)
}

async fn try_once(node: &Node, other: &str, token: &str) -> Result<Found> {
    let mut events = node.events().await?;
    let begin = now_ms();
    node.join(token).await.context("the second node cannot join")?;
    // A link is opened on use.
    let using = async {
        loop {
            node.reaches(other).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let watching = async {
        let up = async {
            loop {
                match next_link(&mut events, Some(other)).await? {
                    (PathKind::None, _) => {}
                    link => return anyhow::Ok(link),
                }
            }
        };
        let Ok(up) = tokio::time::timeout(LINK, up).await else { return Ok(Found::Nothing) };
        let (path, since) = up?;
        let found = |at: u64| Found::Direct {
            since_relayed: at.saturating_sub(since) as f64 / 1e3,
            since_join: at.saturating_sub(begin) as f64 / 1e3,
        };
        if path == PathKind::Direct {
            return Ok(found(since));
        }
        let direct = async {
            loop {
                if let (PathKind::Direct, at) = next_link(&mut events, Some(other)).await? {
                    return anyhow::Ok(at);
                }
            }
        };
        match tokio::time::timeout(DIRECT, direct).await {
            Ok(at) => Ok(found(at?)),
            Err(_) => Ok(Found::Relayed),
        }
    };
    tokio::select! {
        found = watching => found,
        () = using => unreachable!("it goes on for ever"),
    }
}

fn settle(lab: &mut Lab, wan: &Lan, behind: Behind) -> Host {
    let home = lab.lan();
    match behind {
        Router(nat) => drop(lab.router(wan, &home, nat)),
        Provider => {
            let carrier = lab.carrier();
            lab.router(wan, &carrier, EndpointIndependent);
            lab.router(&carrier, &home, PortDependent);
        }
    }
    lab.host(&home)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_punched_where_one_side_can_be_foretold_or_does_not_mind() {
        let punchable =
            |a: usize| -> Vec<bool> { KINDS.iter().map(|b| can_punch(KINDS[a].0, b.0)).collect() };
        assert_eq!(punchable(0), [true, true, true, true, true, false]);
        assert_eq!(punchable(2), [true, true, true, true, false, false]);
        assert_eq!(punchable(3), punchable(2));
        assert_eq!(punchable(4), [true, true, false, false, false, false]);
        assert_eq!(punchable(5), [false; 6]);
    }
}
