//! With whom this node has links of its own accord, and over which links news goes on.

use std::collections::BTreeSet;

use mesh_identity::{NodeId, Role};

use super::node::{Node, Phase};
use super::rings::{self, NEIGHBOURS};
use super::trust::Trust;
use super::{Membership, SMALL};

/// How far along a side of a ring somebody within reach is looked for at a time. When four fifths of a scope have died at
/// once, five of six sides have a living one within that; those that are found dead make room for the ones behind them.
const DEPTH: usize = 8;
/// After so many failed dials a neighbour counts as out of reach, and the next on its ring is linked as well.
const OUT_OF_REACH: u32 = 2;

/// Whom this node keeps links with.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    /// Neighbours on the rings, and stand-ins for those out of reach.
    pub(crate) peers: BTreeSet<NodeId>,
    /// Somebody came or went since the last look.
    pub(crate) is_stale: bool,
}

impl<T: Trust> Membership<T> {
    /// Those on either side of a node on each ring, this one included, up to the first that is none of those that `is_out`
    /// says.
    pub(super) fn around(&self, id: &NodeId, is_out: impl Fn(&NodeId) -> bool) -> Vec<Vec<NodeId>> {
        let is_member = self.own.is_some() && self.role == Role::Member;
        let me = (is_member && *id != self.me).then_some((self.me, &self.places));
        let places = self.nodes.get(id).map_or_else(|| rings::places(id), |node| node.places);
        self.nodes.rings().walk((*id, &places), me, DEPTH, |_, one| is_out(one))
    }

    /// Brings links and watches in line with who is there.
    pub(super) fn refresh_overlay(&mut self) {
        if !std::mem::take(&mut self.overlay.is_stale) {
            return;
        }
        let members = self.nodes.rings();
        let peers = if members.len() <= NEIGHBOURS || self.config.uninvited {
            self.nodes
                .iter()
                .filter(|(_, node)| node.is_on_rings() || self.config.uninvited && node.is_up())
                .map(|(id, _)| *id)
                .collect()
        } else {
            self.reachable()
        };
        let peers: Vec<NodeId> = peers.into_iter().take(self.config.links_max).collect();
        self.watch_only(&peers);
        let peers: BTreeSet<NodeId> = peers.into_iter().collect();
        let new: Vec<NodeId> = peers.difference(&self.overlay.peers).copied().collect();
        self.overlay.peers = peers;
        for id in new {
            self.dial_soon(&id);
        }
    }

    /// The neighbours, and for each one that is out of reach the next ones of its side, up to a linked one: as many at a
    /// time as were out of reach, so that among many dead ones the next living one is soon found.
    fn reachable(&self) -> Vec<NodeId> {
        let (mut out, mut untried) = ([0_usize; NEIGHBOURS], [0_usize; NEIGHBOURS]);
        let sides = self.nodes.rings().walk((self.me, &self.places), None, DEPTH, |side, id| {
            if self.links.contains(id) {
                return false;
            }
            let is_doubted = self.nodes.get(id).is_some_and(|node| node.phase == Phase::Suspect);
            if is_doubted || self.dials.get(id).is_some_and(|dial| dial.failed >= OUT_OF_REACH) {
                out[side] += 1;
                return true;
            }
            untried[side] += 1;
            untried[side] < out[side]
        });
        rings::nearest_first(&sides)
    }

    pub(super) fn dial_soon(&mut self, id: &NodeId) {
        let is_planned = self.dials.get(id).is_some_and(|dial| dial.at.is_some() || dial.is_running);
        if !self.links.contains(id) && !is_planned {
            let wait = self.first_dial_wait(id);
            self.dial_in(*id, wait);
        }
    }

    /// The linked peers to which news goes on: neighbours that are members.
    pub(super) fn flood_peers(&self) -> impl Iterator<Item = NodeId> + '_ {
        let is_neighbour = |peer: &NodeId| self.overlay.peers.contains(peer) || self.overlay.peers.is_empty();
        let members = self.links.peers().filter(|(_, role)| *role == Role::Member);
        members.map(|(peer, _)| peer).filter(is_neighbour)
    }

    /// Whether a link to the node is worth having: it is a neighbour, the scope is so small that everybody is linked with
    /// everybody, or it may have come back without anybody here knowing.
    pub(super) fn is_wanted(&self, id: &NodeId) -> bool {
        let Some(node) = self.nodes.get(id) else { return self.contacts.contains(id) };
        let is_due = self.overlay.peers.contains(id) || self.nodes.len() <= SMALL || self.is_lost(node);
        is_due && node.is_welcome()
    }

    fn is_lost(&self, node: &Node) -> bool {
        node.is_dead() || self.contacts.contains(&node.record.id) && !node.is_up()
    }
}
