//! What the application sees of a scope: members, their values, and immutable snapshots of both.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use mesh_identity::{NodeAddr, NodeId, NodeName, Role, UnixTime};

/// One life of a node and its refutations within it; of two, the higher one is the later.
///
/// The upper part is the life: the wall-clock second at which the process started, or at which its grant was issued
/// where that is later. The lower 20 bits count how often the node contradicted a report of its death. A clock that went
/// back between two lives would make the new life look old: the node notices when a peer shows it a later record that
/// carries its own signature, and then starts a life after that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation(u64);

impl Incarnation {
    const REFUTATION_BITS: u32 = 20;
    /// Lives end far beyond any honest clock and far below an overflow.
    const LIFE_MAX: u64 = (1 << (64 - Self::REFUTATION_BITS)) - 1;

    /// The incarnation of a process that starts at `now`.
    #[must_use]
    pub fn at_start(now: UnixTime) -> Self {
        Self(now.0.clamp(1, Self::LIFE_MAX / 2) << Self::REFUTATION_BITS)
    }

    /// From its number on the wire.
    #[must_use]
    pub fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// Its number on the wire.
    #[must_use]
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// Values are bound to the life, not to the refutations within it.
    #[must_use]
    pub fn life(self) -> u64 {
        self.0 >> Self::REFUTATION_BITS
    }

    /// The next one, within the same life unless its refutations are used up.
    #[must_use]
    pub(crate) fn refuted(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The first one of the next life.
    #[must_use]
    pub(crate) fn next_life(self) -> Self {
        Self(self.life().saturating_add(1).min(Self::LIFE_MAX) << Self::REFUTATION_BITS)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.life(), self.0 & ((1 << Self::REFUTATION_BITS) - 1))
    }
}

/// Who gets to see a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Audience {
    /// Members only.
    Members,
    /// Members and clients: what a client needs to route, such as the models offered.
    Everyone,
}

/// What this node thinks of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Heard over its link, or a linked peer hears it.
    Alive,
    /// Its link was lost or its pings stay unanswered; it may be back in a moment.
    Suspect,
    /// Nobody within our sight has heard it for the time of suspicion.
    Down,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
        })
    }
}

/// One value of a member's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// Grows with every change within one life of the member.
    pub version: u64,
    /// Who gets to see it.
    pub audience: Audience,
    /// What the member said; at most [`crate::limits::VALUE_BYTES_MAX`].
    pub bytes: Bytes,
}

/// One member as this node knows it. All that the member says here is signed by it and checked against its grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its key.
    pub id: NodeId,
    /// The name that its grant carries.
    pub name: NodeName,
    /// The role that its grant carries.
    pub role: Role,
    /// What this node thinks of it.
    pub state: State,
    /// Its latest known life and refutation.
    pub incarnation: Incarnation,
    /// Where it says it can be dialed.
    pub addr: NodeAddr,
    /// Its membership as it shows it, encoded: who let it in, by what, until when. Checked when it came.
    pub grant: Bytes,
    /// What it says of itself, by key.
    pub values: BTreeMap<String, Value>,
    /// Whether this node holds a link to it now.
    pub linked: bool,
}

impl Member {
    /// The bytes of one value.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Bytes> {
        self.values.get(key).map(|value| &value.bytes)
    }

    /// Whether it is alive.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.state == State::Alive
    }
}

/// An immutable picture of a scope. Cheap to clone: members are shared between pictures that did not change them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    pub(crate) me: Option<Arc<Member>>,
    pub(crate) others: BTreeMap<NodeId, Arc<Member>>,
}

impl Members {
    /// This node's own record; none while it is passive or has left.
    #[must_use]
    pub fn me(&self) -> Option<&Arc<Member>> {
        self.me.as_ref()
    }

    /// One other member, in whatever state.
    #[must_use]
    pub fn get(&self, id: &NodeId) -> Option<&Arc<Member>> {
        self.others.get(id)
    }

    /// All other members, alive, suspect or down, ordered by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.others.values()
    }

    /// The other members that are alive, ordered by id.
    pub fn alive(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.iter().filter(|member| member.is_alive())
    }

    /// How many others are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.others.len()
    }

    /// Whether no other is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.others.is_empty()
    }
}
