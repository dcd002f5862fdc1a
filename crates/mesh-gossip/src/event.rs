//! What subscribers hear.

use mesh_identity::{NodeAddr, NodeId};

use crate::member::Incarnation;

/// Why a member is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UpWhy {
    /// Heard of for the first time, or back after it was down or had left.
    Joined,
    /// It was suspect and was heard again.
    Recovered,
    /// It runs as a new process: what it said before is gone.
    Restarted,
}

/// Why a member is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DownWhy {
    /// Its link to this node was lost, and nobody else hears it.
    LinkLost,
    /// It said that it shuts down.
    Stopped,
    /// It answered nobody any more, neither over links nor by way of others.
    Silent,
    /// Its machine says that the process has ended.
    Gone,
    /// Its grant ended without renewal.
    GrantExpired,
    /// It was revoked.
    Revoked,
}

/// One change in a scope. The snapshot that [`crate::Gossip::members`] returns already shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A member is alive that was not.
    MemberUp {
        /// Which.
        node: NodeId,
        /// Its incarnation.
        incarnation: Incarnation,
        /// What came before.
        why: UpWhy,
    },
    /// A member is no longer heard.
    MemberSuspect {
        /// Which.
        node: NodeId,
        /// Its incarnation.
        incarnation: Incarnation,
    },
    /// A member is down. This incarnation of it never returns.
    MemberDown {
        /// Which.
        node: NodeId,
        /// Its incarnation.
        incarnation: Incarnation,
        /// Why we think so.
        why: DownWhy,
        /// Who says so: those who signed that they cannot hear it, the node itself when it stopped, or this node when a
        /// grant ended or was revoked.
        witnesses: Vec<NodeId>,
    },
    /// A member said goodbye. This incarnation of it never returns.
    MemberLeft {
        /// Which.
        node: NodeId,
        /// Its incarnation.
        incarnation: Incarnation,
    },
    /// A member's value was set, changed or removed (then the snapshot has no such key).
    Record {
        /// Whose.
        node: NodeId,
        /// Which.
        key: String,
    },
    /// A member's addresses changed.
    Address {
        /// Whose.
        node: NodeId,
    },
    /// A revocation that was not known here holds from now on. Close what the revoked nodes have open.
    Revoked {
        /// The signed revocation as it goes over the wire, checked; store it and add it to the revocation set.
        revocation: bytes::Bytes,
    },
    /// Another node is alive that signs with this node's key: a key file was copied. Told again as long as it goes on.
    KeyInUseTwice {
        /// Where the other one says that it is.
        addr: NodeAddr,
    },
    /// The subscriber lagged behind and lost events: read the snapshot instead.
    Snapshot,
}
