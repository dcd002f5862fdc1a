//! What the core thinks of one other node, beside the node's own words.

use std::time::Instant;

use mesh_identity::Role;

use super::record::Record;
use crate::event::DownWhy;

/// Another node: its record and our opinion of it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) record: Record,
    pub(crate) phase: Phase,
    /// Since when it is in this phase.
    pub(crate) since: Instant,
}

/// Where a node stands within its incarnation. Down and Left are final for the incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its record is here, but nobody within our sight hears it. The application has not been told of it: a replayed
    /// record of a dead node ends here.
    Unheard {
        until: Instant,
    },
    Alive,
    Suspect {
        until: Instant,
    },
    Down(DownWhy),
    Left,
}

/// Our attempts to have a link to a node, member or contact.
#[derive(Debug, Default)]
pub(crate) struct Dial {
    pub(crate) at: Option<Instant>,
    pub(crate) is_running: bool,
    pub(crate) failed: u32,
}

impl Node {
    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.phase, Phase::Down(_) | Phase::Left)
    }

    /// Whether a link to it is worth having: clients come to us, and who left or lost its right is let go.
    pub(crate) fn is_wanted(&self) -> bool {
        let is_gone =
            matches!(self.phase, Phase::Left | Phase::Down(DownWhy::Revoked | DownWhy::GrantExpired));
        self.record.card.standing.role == Role::Member && !is_gone
    }
}
