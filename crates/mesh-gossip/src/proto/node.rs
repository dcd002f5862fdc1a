//! What the core thinks of one other node, beside the node's own words.

use std::sync::Arc;
use std::time::Instant;

use mesh_identity::Role;

use super::record::{Record, View};
use super::rings::{self, Places};
use super::wire::{self, Course};
use crate::event::DownWhy;

/// Another node: its record and our opinion of it.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// Shared between cores of one simulation, as long as none of them learns something else.
    pub(crate) record: Arc<Record>,
    pub(crate) places: Places,
    pub(crate) phase: Phase,
    /// Since when it is in this phase.
    pub(crate) since: Instant,
    /// Whether the record is passed on; the long dead are not.
    pub(crate) is_offered: bool,
}

/// Where a node stands within its incarnation. Down and Left are final for the incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its record is here, but nobody whom we are linked with says that it lives. The application has not been told of it: a
    /// replayed record of a dead node ends here.
    Unheard,
    Alive,
    Suspect,
    Down(DownWhy),
    Left,
}

impl Phase {
    /// Whether the node counts as alive: suspects do until they are down.
    pub(crate) fn is_up(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

/// Our attempts to have a link to a node, member or contact.
#[derive(Debug, Default)]
pub(crate) struct Dial {
    pub(crate) at: Option<Instant>,
    pub(crate) is_running: bool,
    pub(crate) failed: u32,
}

impl Node {
    pub(crate) fn new(record: Record, now: Instant) -> Self {
        let places = rings::places(&record.id);
        Self { record: Arc::new(record), places, phase: Phase::Unheard, since: now, is_offered: true }
    }

    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.phase, Phase::Down(_) | Phase::Left)
    }

    /// Whether it counts as alive.
    pub(crate) fn is_up(&self) -> bool {
        self.phase.is_up()
    }

    /// Whether it is a place on the rings: clients come to members, and are watched by them.
    pub(crate) fn is_on_rings(&self) -> bool {
        self.is_up() && self.record.card.standing.role == Role::Member
    }

    /// Whether witnesses, and not the node itself or its grant, say that it is dead.
    pub(crate) fn is_convicted(&self) -> bool {
        let by_others = matches!(
            self.phase,
            Phase::Down(DownWhy::LinkLost | DownWhy::Silent | DownWhy::Gone | DownWhy::Stopped)
        );
        by_others && self.record.card.course == Course::Running
    }

    /// Whether it may be dialed at all: who left or lost its right is let go.
    pub(crate) fn is_welcome(&self) -> bool {
        let is_gone =
            matches!(self.phase, Phase::Left | Phase::Down(DownWhy::Revoked | DownWhy::GrantExpired));
        self.record.card.standing.role == Role::Member && !is_gone
    }

    /// What it adds to the sum of all that is passed on, seen as `view`: equal opinions on equal records, equal prints.
    pub(crate) fn print(&self, view: View) -> u128 {
        if !self.is_offered {
            0
        } else if self.is_convicted() {
            let mut hasher = blake3::Hasher::new();
            hasher.update(b"dead").update(self.record.id.as_bytes());
            hasher.update(&self.record.card.incarnation.as_u64().to_le_bytes());
            u128::from_le_bytes(wire::half(&hasher.finalize()))
        } else {
            u128::from_le_bytes(self.record.print_of(view))
        }
    }
}
