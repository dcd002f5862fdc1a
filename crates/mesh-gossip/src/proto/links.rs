//! The links of this node: who is at the other end, when it was heard last, and how long it takes to answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_identity::{NodeId, Role};

/// One link, from its coming up to its going down.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) role: Role,
    heard: Instant,
    /// Smoothed round trip and its deviation (RFC 6298, section 2).
    rtt: Option<(Duration, Duration)>,
    answered: Option<Instant>,
    accused: Option<Instant>,
}

/// All links of this node in the scope.
#[derive(Debug, Default)]
pub(crate) struct Links {
    links: BTreeMap<NodeId, Link>,
}

impl Links {
    /// Whether the link is new.
    pub(crate) fn up(&mut self, peer: NodeId, role: Role, now: Instant) -> bool {
        if let Some(link) = self.links.get_mut(&peer) {
            link.role = role;
            return false;
        }
        let link = Link { role, heard: now, rtt: None, answered: None, accused: None };
        self.links.insert(peer, link);
        true
    }

    /// Whether there was a link.
    pub(crate) fn down(&mut self, peer: &NodeId) -> bool {
        self.links.remove(peer).is_some()
    }

    pub(crate) fn len(&self) -> usize {
        self.links.len()
    }

    pub(crate) fn contains(&self, peer: &NodeId) -> bool {
        self.links.contains_key(peer)
    }

    /// The role of a linked peer.
    pub(crate) fn role(&self, peer: &NodeId) -> Option<Role> {
        self.links.get(peer).map(|link| link.role)
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = (NodeId, Role)> + '_ {
        self.links.iter().map(|(peer, link)| (*peer, link.role))
    }

    /// A frame came from the peer.
    pub(crate) fn heard(&mut self, peer: &NodeId, now: Instant) {
        if let Some(link) = self.links.get_mut(peer) {
            link.heard = now;
        }
    }

    /// When the peer was heard last, if it is linked.
    pub(crate) fn heard_at(&self, peer: &NodeId) -> Option<Instant> {
        self.links.get(peer).map(|link| link.heard)
    }

    /// The peer answered a ping after `took`.
    pub(crate) fn measured(&mut self, peer: &NodeId, took: Duration) {
        let Some(link) = self.links.get_mut(peer) else { return };
        link.rtt = Some(match link.rtt {
            None => (took, took / 2),
            Some((smooth, deviation)) => {
                ((smooth * 7 + took) / 8, (deviation * 3 + smooth.abs_diff(took)) / 4)
            }
        });
    }

    /// How long the peer's answer takes, and how much that varies.
    pub(crate) fn rtt(&self, peer: &NodeId) -> Option<(Duration, Duration)> {
        self.links.get(peer).and_then(|link| link.rtt)
    }

    /// Whether a digest of this peer may be answered now: one in `pause` is.
    pub(crate) fn may_answer(&mut self, peer: &NodeId, pause: Duration, now: Instant) -> bool {
        self.links.get_mut(peer).is_some_and(|link| is_due(&mut link.answered, pause, now))
    }

    /// Whether the peer may be told now that we hold it for dead: once in `pause`.
    pub(crate) fn may_accuse(&mut self, peer: &NodeId, pause: Duration, now: Instant) -> bool {
        self.links.get_mut(peer).is_some_and(|link| is_due(&mut link.accused, pause, now))
    }
}

fn is_due(last: &mut Option<Instant>, pause: Duration, now: Instant) -> bool {
    if last.is_some_and(|last| now.saturating_duration_since(last) < pause) {
        return false;
    }
    *last = Some(now);
    true
}
