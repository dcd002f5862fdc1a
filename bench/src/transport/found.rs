//! How soon a node that starts has its link on a local network.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_control::PathKind;
use qmt_tests::lab::Lab;

use super::node::{Node, next_link};
use crate::report::{Goal, Lacking, Report};
use crate::stats::{estimate, estimate_at};

/// Longest wait for a link.
const LINK: Duration = Duration::from_secs(20);
const PORT: u16 = 9000;

/// How the second node finds the first.
#[derive(Debug, Clone, Copy)]
pub(super) enum How {
    Multicast,
    StaticPeer,
}

impl How {
    fn names(self) -> [&'static str; 2] {
        match self {
            Self::Multicast => {
                ["start to link on a LAN, by multicast, p50", "start to link on a LAN, by multicast, p95"]
            }
            Self::StaticPeer => {
                ["start to link on a LAN, static peer, p50", "start to link on a LAN, static peer, p95"]
            }
        }
    }

    fn goal(self) -> Goal {
        match self {
            Self::Multicast => Goal::AtMost(2.0),
            Self::StaticPeer => Goal::AtMost(0.3),
        }
    }

    /// Configurations of the first and the second node; `first` is the address of the first.
    fn configurations(self, first: std::net::Ipv4Addr) -> [String; 2] {
        match self {
            Self::Multicast => ["mesh.enabled = true\n".to_owned(), "mesh.enabled = true\n".to_owned()],
            Self::StaticPeer => [
                format!(
                    "mesh.enabled = true\nmesh.discovery = \"none\"\nmesh.listen = \"/ip4/0.0.0.0/tcp/{PORT}\"\n"
                ),
                format!(
                    "mesh.enabled = true\nmesh.discovery = \"none\"\n[[mesh.peers]]\naddr = \"/ip4/{first}/tcp/{PORT}\"\n"
                ),
            ],
        }
    }

    pub(super) fn lacking(self) -> Lacking {
        let [half, most] = self.names().map(str::to_owned);
        vec![(half, "s", Goal::None), (most, "s", self.goal())]
    }
}

/// Seconds from the start of the second node's process to its link, try by try.
pub(super) async fn measure(bin_dir: &Path, how: How, tries: usize) -> Result<Vec<f64>> {
    let mut lab = Lab::new()?;
    let lan = lab.lan();
    let hosts = [lab.host(&lan), lab.host(&lan)];
    let configurations = how.configurations(hosts[0].address());
    let first = Node::start(bin_dir, &hosts[0], "first", &configurations[0]).await?;
    let mut times = Vec::new();
    for number in 0..tries {
        let mut events = first.events().await?;
        let second = Node::start(bin_dir, &hosts[1], &format!("second{number}"), &configurations[1]).await?;
        let linked = async {
            loop {
                if let (PathKind::Direct, at) = next_link(&mut events, Some(&second.id)).await? {
                    return anyhow::Ok(at);
                }
            }
        };
        let at = tokio::time::timeout(LINK, linked).await.context("no link in time")??;
        times.push(at.saturating_sub(second.begun()) as f64 / 1e3);
    }
    Ok(times)
}

pub(super) fn tell(report: &mut Report, how: How, times: &[f64]) {
    let [half, most] = how.names();
    report.row(half, "s", Goal::None, estimate(times));
    report.row(most, "s", how.goal(), estimate_at(times, 0.95));
}
