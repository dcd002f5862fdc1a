//! What simulations of many cores need: a common beginning, and looks inside that build no snapshot.

use std::time::Instant;

use mesh_identity::NodeId;

use super::Membership;
use super::node::{Node, Phase};
use super::own::Own;
use super::record::Record;
use super::table::Table;
use super::trust::Trust;
use crate::member::{Incarnation, State};

/// A node's own record, as [`Membership::own_record`] gives it.
#[derive(Debug, Clone)]
pub struct OwnRecord(Record);

/// Records of members that all hold for alive, shared by the cores that begin with them until one of them learns more.
#[derive(Debug, Clone, Default)]
pub struct Known(Table);

impl Known {
    /// All of these, alive.
    #[must_use]
    pub fn new(records: impl IntoIterator<Item = OwnRecord>, now: Instant) -> Self {
        let mut table = Table::default();
        for OwnRecord(record) in records {
            table.insert(record.id, Node { phase: Phase::Alive, ..Node::new(record, now) });
        }
        Self(table)
    }
}

impl<T: Trust> Membership<T> {
    /// What this node says of itself; none of a passive one.
    #[must_use]
    pub fn own_record(&self) -> Option<OwnRecord> {
        self.own.as_ref().map(|Own { record, .. }| OwnRecord(record.clone()))
    }

    /// Forgets all others and knows these instead, without a word about it. Links and [`Membership::members`] follow with the
    /// next input.
    pub fn adopt(&mut self, known: &Known) {
        self.nodes = known.0.clone();
        self.nodes.remove(&self.me);
        self.overlay.is_stale = true;
        self.is_adopted = true;
    }

    /// What this node thinks of another, without a snapshot.
    #[must_use]
    pub fn state_of(&self, id: &NodeId) -> Option<State> {
        self.nodes.get(id).and_then(|node| super::state_of(node.phase))
    }

    /// The incarnation of another node that is known here.
    #[must_use]
    pub fn incarnation_of(&self, id: &NodeId) -> Option<Incarnation> {
        self.nodes.get(id).map(|node| node.record.card.incarnation)
    }

    /// The version of another node's value that is known here.
    #[must_use]
    pub fn version_of(&self, id: &NodeId, key: &str) -> Option<u64> {
        self.nodes.get(id)?.record.entries.get(key).map(|entry| entry.version)
    }

    /// How many other nodes are known, in whatever state.
    #[must_use]
    pub fn known_count(&self) -> usize {
        self.nodes.len()
    }
}
