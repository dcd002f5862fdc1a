//! What can go wrong, sorted by operation, and the codes that travel.

use std::{fmt, io, sync::Arc, time::Duration};

use mesh_identity::{GrantError, InviteError, NodeId};

use crate::frame::FrameError;

/// The error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Why a connection is closed; travels as a QUIC application error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// The node shuts down (0).
    Shutdown,
    /// Hello was answered with a refusal (1).
    Refused,
    /// Hello took longer than its deadline (2).
    HelloTimeout,
    /// Bytes that do not follow the protocol (3).
    Malformed,
    /// A limit of the node is reached; try later (4).
    Busy,
    /// Another connection of the same pair took over (5).
    Superseded,
    /// The membership was revoked (6).
    Revoked,
    /// The grant shown in hello has ended (7).
    Expired,
    /// The node left the scope (8).
    ScopeClosed,
    /// The connection has done what it was for, such as redeeming an invite (9).
    Done,
    /// Two nodes use one key, and this is one of them (10).
    KeyInUseTwice,
    /// The address of the machine that the connection was bound to, or the relay that carried it, is gone (11).
    AddressGone,
    /// The peer's process has ended, as its machine says; hardly ever heard by a peer (12).
    Gone,
    /// A code of a later version.
    Other(u32),
}

impl CloseCode {
    /// The number that travels.
    pub fn code(self) -> u32 {
        match self {
            Self::Shutdown => 0,
            Self::Refused => 1,
            Self::HelloTimeout => 2,
            Self::Malformed => 3,
            Self::Busy => 4,
            Self::Superseded => 5,
            Self::Revoked => 6,
            Self::Expired => 7,
            Self::ScopeClosed => 8,
            Self::Done => 9,
            Self::KeyInUseTwice => 10,
            Self::AddressGone => 11,
            Self::Gone => 12,
            Self::Other(code) => code,
        }
    }

    /// The code for a number; unknown numbers are kept.
    pub fn from_code(code: u32) -> Self {
        match code {
            0 => Self::Shutdown,
            1 => Self::Refused,
            2 => Self::HelloTimeout,
            3 => Self::Malformed,
            4 => Self::Busy,
            5 => Self::Superseded,
            6 => Self::Revoked,
            7 => Self::Expired,
            8 => Self::ScopeClosed,
            9 => Self::Done,
            10 => Self::KeyInUseTwice,
            11 => Self::AddressGone,
            12 => Self::Gone,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shutdown => "shutting down",
            Self::Refused => "refused",
            Self::HelloTimeout => "hello took too long",
            Self::Malformed => "protocol violated",
            Self::Busy => "busy",
            Self::Superseded => "replaced by another connection",
            Self::Revoked => "membership revoked",
            Self::Expired => "grant expired",
            Self::ScopeClosed => "left the scope",
            Self::Done => "done",
            Self::KeyInUseTwice => "two nodes use one key",
            Self::AddressGone => "the address or the relay that it went by is gone",
            Self::Gone => "the process at the other end has ended",
            Self::Other(code) => return write!(f, "code {code}"),
        })
    }
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClosedWhy {
    /// We closed it.
    #[error("closed here: {0}")]
    Local(CloseCode),
    /// The peer closed it.
    #[error("closed by the peer: {code} ({reason})")]
    Peer {
        /// The peer's code.
        code: CloseCode,
        /// The peer's words: untrusted, at most 256 bytes.
        reason: String,
    },
    /// The peer's machine says that the process at the other end has ended. It did not say goodbye.
    #[error("the peer's process has ended")]
    Gone,
    /// Nothing was heard for the idle timeout.
    #[error("nothing heard from the peer")]
    TimedOut,
    /// The transport failed.
    #[error("transport failed: {0}")]
    Failed(String),
}

/// The connection is gone; whatever was on it is lost. A new link can be dialed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("link lost")]
pub struct ConnectionLost {
    /// How it ended.
    #[source]
    pub why: ClosedWhy,
}

/// Why one direction of a stream was abandoned; travels as a QUIC stream error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResetCode(pub u32);

impl ResetCode {
    /// The other side gave up: dropped its half, or its caller went away.
    pub const CANCELLED: Self = Self(0);
    /// Nobody serves that protocol there.
    pub const UNKNOWN_PROTOCOL: Self = Self(1);
    /// The stream header was malformed or late.
    pub const BAD_HEADER: Self = Self(2);
    /// The bytes on the stream broke its protocol or its limits.
    pub const FAULT: Self = Self(3);
    /// A limit is reached; try later.
    pub const BUSY: Self = Self(4);
    /// The caller's role does not allow it.
    pub const NOT_ALLOWED: Self = Self(5);
    /// First of the codes that protocols above may define for themselves.
    pub const USER: u32 = 64;
}

/// Why reading or writing a stream failed; found inside the [`io::Error`] by [`StreamFault::of`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamFault {
    /// The peer abandoned the direction we read.
    #[error("stream reset by the peer (code {})", .0.0)]
    Reset(ResetCode),
    /// The peer stopped reading what we write.
    #[error("peer stopped reading (code {})", .0.0)]
    Stopped(ResetCode),
    /// The link is gone.
    #[error(transparent)]
    Lost(#[from] ConnectionLost),
    /// This half was already ended here.
    #[error("stream already ended")]
    Ended,
}

impl StreamFault {
    /// The fault inside an I/O error from a [`crate::Stream`].
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<StreamFault> for io::Error {
    fn from(fault: StreamFault) -> Self {
        let kind = match &fault {
            StreamFault::Reset(_) => io::ErrorKind::ConnectionReset,
            StreamFault::Stopped(_) => io::ErrorKind::BrokenPipe,
            StreamFault::Lost(_) => io::ErrorKind::ConnectionAborted,
            StreamFault::Ended => io::ErrorKind::NotConnected,
        };
        io::Error::new(kind, fault)
    }
}

/// Why an acceptor said no in hello; each has a number of its own on the wire.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Not a member here, or no such scope here: a stranger is not told which (1).
    #[error("refused: not admitted to this scope by that node")]
    NotAdmitted,
    /// The grant has ended; ask any member that may admit to renew it (2).
    #[error("the grant has expired")]
    GrantExpired,
    /// The membership was revoked (3).
    #[error("the membership was revoked")]
    GrantRevoked,
    /// No protocol version in common (4).
    #[error("no protocol version in common (theirs {min} to {max})")]
    Version {
        /// Lowest version the acceptor speaks.
        min: u16,
        /// Highest version the acceptor speaks.
        max: u16,
    },
    /// A limit of that node is reached; try later (5).
    #[error("that node is at its limit, try later")]
    Busy,
    /// What we sent does not follow the protocol (6).
    #[error("that node could not read our hello")]
    Malformed,
    /// The invite was refused; the cause is the invite's own (7, with the invite's code).
    #[error("the invite was refused")]
    Invite(#[source] InviteError),
    /// A code of a later version.
    #[error("refused with code {0}")]
    Other(u8),
}

impl From<&GrantError> for Refusal {
    fn from(error: &GrantError) -> Self {
        match error {
            GrantError::Expired { .. } => Self::GrantExpired,
            GrantError::Revoked => Self::GrantRevoked,
            _ => Self::NotAdmitted,
        }
    }
}

/// Why no link to the peer could be made. Nothing was changed unless a variant says so.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The caller asked for a link to this node itself.
    #[error("a node does not dial itself")]
    Oneself,
    /// We hold no grant for the scope.
    #[error("this node is not a member of scope {0}")]
    NoCredential(String),
    /// No address is known for the peer in this scope.
    #[error("no address known for {0}")]
    NoAddress(NodeId),
    /// Addresses are known, but none answered; worth another try later.
    #[error("{node} did not answer ({detail})")]
    Unreachable {
        /// Whom we dialed.
        node: NodeId,
        /// What the transport said.
        detail: String,
    },
    /// The dial or the hello took longer than its deadline; worth another try later.
    #[error("{node} did not answer within {after:?}")]
    TimedOut {
        /// Whom we dialed.
        node: NodeId,
        /// The deadline that passed.
        after: Duration,
    },
    /// Somebody answers at that address with another key.
    #[error("another node answers at the address of {0}")]
    WrongIdentity(NodeId),
    /// The peer refused our hello.
    #[error("{node} refused the link")]
    Refused {
        /// Who refused.
        node: NodeId,
        /// Why.
        #[source]
        refusal: Refusal,
    },
    /// The peer's own grant does not satisfy us.
    #[error("{node} could not show a valid grant")]
    Untrusted {
        /// Whose grant.
        node: NodeId,
        /// What is wrong with it.
        #[source]
        refusal: Refusal,
    },
    /// The peer does not follow the hello protocol.
    #[error("{node} broke the hello protocol: {detail}")]
    Protocol {
        /// Who.
        node: NodeId,
        /// How.
        detail: String,
    },
    /// The connection ended during hello; worth another try.
    #[error("the connection to {node} ended during hello")]
    Lost {
        /// Who.
        node: NodeId,
        /// How it ended.
        #[source]
        source: ConnectionLost,
    },
    /// Our own limit on links is reached.
    #[error("this node is at its limit of {0} links")]
    Limit(usize),
    /// The transport is shut down, or the scope was closed meanwhile.
    #[error("the transport is closed")]
    Closed,
}

impl DialError {
    /// Whether dialing again later can help without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Lost { .. } | Self::Limit(_) => true,
            Self::Refused { refusal, .. } => matches!(refusal, Refusal::Busy),
            _ => false,
        }
    }
}

/// Why no stream could be opened. No byte of the caller has been sent.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No link.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The link was lost while opening, twice.
    #[error(transparent)]
    Lost(#[from] ConnectionLost),
    /// The peer serves no such protocol; known at the first read.
    #[error("the peer does not serve {0}")]
    UnknownProtocol(String),
}

/// Why a call has no reply.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The call was never sent.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No reply within the deadline; the server may have acted.
    #[error("no reply within {0:?}")]
    Deadline(Duration),
    /// The server answered with an error.
    #[error(transparent)]
    Fault(#[from] crate::call::CallFault),
    /// The link or the stream ended before the reply; the server may have acted.
    #[error("the call was cut off")]
    Lost(#[source] Arc<io::Error>),
    /// Request or reply broke the frame rules.
    #[error("call frame")]
    Frame(#[source] Arc<FrameError>),
}

/// Why an invite could not be redeemed. Repeating is safe: the same node redeeming again is the same use.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedeemError {
    /// The issuer cannot be reached at the invite's hints.
    #[error("the issuer of the invite cannot be reached")]
    Unreachable(#[source] DialError),
    /// The issuer, or this node, found the invite wanting.
    #[error(transparent)]
    Refused(#[from] InviteError),
    /// The issuer refused without naming the invite.
    #[error("the issuer refused")]
    Hello(#[source] Refusal),
    /// What the issuer sent as our grant does not verify.
    #[error("the issuer sent a grant that does not verify")]
    BadGrant(#[source] GrantError),
}
