//! The links of this node: who answers, and whom the others hear.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mesh_identity::{NodeId, Role};

use super::wire::RawId;

/// One link, from its coming up to its going down.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) role: Role,
    /// Pings in a row that stayed unanswered.
    missed: u8,
    is_awaiting: bool,
    answered: Option<Instant>,
    /// Whom the peer hears over links of its own. Clients are not believed: theirs stays empty.
    reach: BTreeSet<RawId>,
}

/// All links of this node in the scope.
#[derive(Debug)]
pub(crate) struct Links {
    links: BTreeMap<NodeId, Link>,
    missed_max: u8,
    seq: u32,
}

impl Links {
    pub(crate) fn new(missed_max: u8) -> Self {
        Self { links: BTreeMap::new(), missed_max: missed_max.max(1), seq: 0 }
    }

    /// Whether the link is new.
    pub(crate) fn up(&mut self, peer: NodeId, role: Role) -> bool {
        if let Some(link) = self.links.get_mut(&peer) {
            link.role = role;
            return false;
        }
        let link = Link { role, missed: 0, is_awaiting: false, answered: None, reach: BTreeSet::new() };
        self.links.insert(peer, link);
        true
    }

    /// The nodes that the peer had said to hear, when there was a link.
    pub(crate) fn down(&mut self, peer: &NodeId) -> Option<BTreeSet<RawId>> {
        self.links.remove(peer).map(|link| link.reach)
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

    /// A frame came from the peer. Whether it had been silent before.
    pub(crate) fn heard(&mut self, peer: &NodeId) -> bool {
        let Some(link) = self.links.get_mut(peer) else { return false };
        let was_silent = link.missed >= self.missed_max;
        (link.missed, link.is_awaiting) = (0, false);
        was_silent
    }

    /// The next ping to the peer, and whether it has just become silent.
    pub(crate) fn probe(&mut self, peer: &NodeId) -> Option<(u32, bool)> {
        let link = self.links.get_mut(peer)?;
        let was_silent = link.missed >= self.missed_max;
        link.missed = link.missed.saturating_add(u8::from(link.is_awaiting));
        link.is_awaiting = true;
        self.seq = self.seq.wrapping_add(1);
        Some((self.seq, link.missed >= self.missed_max && !was_silent))
    }

    /// Whether a link to the peer stands and the peer answers.
    pub(crate) fn hears(&self, peer: &NodeId) -> bool {
        self.links.get(peer).is_some_and(|link| link.missed < self.missed_max)
    }

    /// Whether another linked peer that answers says that it hears the node.
    pub(crate) fn has_witness(&self, node: &NodeId) -> bool {
        let mut others =
            self.links.iter().filter(|(peer, link)| *peer != node && link.missed < self.missed_max);
        others.any(|(_, link)| link.reach.contains(node.as_bytes()))
    }

    /// Whether the peer says that it hears the node.
    pub(crate) fn reaches(&self, peer: &NodeId, node: &NodeId) -> bool {
        self.links.get(peer).is_some_and(|link| link.reach.contains(node.as_bytes()))
    }

    /// Takes a peer's word on whom it hears; the nodes on which it changed its mind.
    pub(crate) fn set_reach(&mut self, peer: &NodeId, nodes: Vec<RawId>) -> Vec<RawId> {
        let Some(link) = self.links.get_mut(peer).filter(|link| link.role == Role::Member) else {
            return Vec::new();
        };
        let reach: BTreeSet<RawId> = nodes.into_iter().collect();
        let changed = reach.symmetric_difference(&link.reach).copied().collect();
        link.reach = reach;
        changed
    }

    /// Whether a digest of this peer may be answered now: one in `pause` is.
    pub(crate) fn may_answer(&mut self, peer: &NodeId, pause: Duration, now: Instant) -> bool {
        let Some(link) = self.links.get_mut(peer) else { return false };
        if link.answered.is_some_and(|last| now.saturating_duration_since(last) < pause) {
            return false;
        }
        link.answered = Some(now);
        true
    }
}
