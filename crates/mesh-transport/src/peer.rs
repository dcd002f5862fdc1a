//! Who is at the other end, and which protocol a stream speaks.

use std::{fmt, ops::Deref};

use mesh_identity::{NodeId, NodeName, Permissions, Role, ScopeId};

/// The verified other end of a link: key proved by the transport, the rest by the grant shown in hello.
///
/// A handler holds this as a value; nothing in it was claimed by the peer itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The key that the connection proved.
    pub id: NodeId,
    /// The scope this link is in.
    pub scope: ScopeId,
    /// What the grant lets the peer be.
    pub role: Role,
    /// The name the grant carries.
    pub name: NodeName,
    /// What the grant lets the peer do.
    pub permissions: Permissions,
}

/// A peer whose role is member. There is none that a client could pass for, so what takes it is closed to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member(Peer);

impl Member {
    /// The peer as a member; `None` for a client.
    pub fn of(peer: Peer) -> Option<Self> {
        match peer.role {
            Role::Member => Some(Self(peer)),
            Role::Client => None,
        }
    }
}

impl Deref for Member {
    type Target = Peer;

    fn deref(&self) -> &Peer {
        &self.0
    }
}

/// Who may call a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Callers {
    /// Peers whose role is member.
    Members,
    /// Whoever has a grant of the scope, clients too: the handler itself keeps to what is shared with them.
    Everyone,
}

impl Callers {
    pub(crate) fn admits(self, peer: &Peer) -> bool {
        match self {
            Self::Members => peer.role == Role::Member,
            Self::Everyone => true,
        }
    }
}

/// A caller by type: [`Member`] for what only members may call, [`Peer`] for what everyone may.
pub trait Caller: sealed::Sealed + Send + Sized + 'static {
    /// Whom the type stands for.
    const CALLERS: Callers;

    /// The peer as this type; `None` if it is not allowed.
    fn of(peer: Peer) -> Option<Self>;
}

impl Caller for Peer {
    const CALLERS: Callers = Callers::Everyone;

    fn of(peer: Peer) -> Option<Self> {
        Some(peer)
    }
}

impl Caller for Member {
    const CALLERS: Callers = Callers::Members;

    fn of(peer: Peer) -> Option<Self> {
        Member::of(peer)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Peer {}
    impl Sealed for super::Member {}
}

/// Longest protocol name in bytes: it travels in front of every stream.
pub const PROTOCOL_NAME_MAX: usize = 32;

/// The name and version of what a stream speaks, such as `gossip/2`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Protocol(&'static str);

impl Protocol {
    /// A protocol name: 1 to 32 characters of `a-z`, `0-9`, `-`, `.` and `/`.
    ///
    /// # Panics
    /// If the name breaks that rule; in a `const` this is a compile error.
    pub const fn new(name: &'static str) -> Self {
        assert!(is_protocol_name(name.as_bytes()), "not a protocol name");
        Self(name)
    }

    /// The name as it travels.
    pub const fn as_str(&self) -> &'static str {
        self.0
    }
}

/// Whether the bytes are a well-formed protocol name.
pub(crate) const fn is_protocol_name(name: &[u8]) -> bool {
    if name.is_empty() || name.len() > PROTOCOL_NAME_MAX {
        return false;
    }
    let mut i = 0;
    while i < name.len() {
        if !matches!(name[i], b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'/') {
            return false;
        }
        i += 1;
    }
    true
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Protocol({})", self.0)
    }
}
