//! What can go wrong, sorted by who must act.

/// Why a value was not set. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetError {
    /// The key is empty or longer than [`crate::limits::KEY_BYTES_MAX`].
    #[error("a key has 1 to 64 bytes")]
    BadKey,
    /// The value is longer than [`crate::limits::VALUE_BYTES_MAX`].
    #[error("a value has at most 4096 bytes")]
    ValueTooLarge,
    /// All values together would be longer than [`crate::limits::NODE_BYTES_MAX`].
    #[error("the values of one node have at most 32768 bytes together")]
    RecordFull,
    /// [`crate::limits::KEYS_MAX`] keys are in use; removed ones count until the node restarts.
    #[error("one node uses at most 64 keys")]
    TooManyKeys,
    /// The key was used for another audience in this life: who has the old value would keep it for ever.
    #[error("the key is in use for another audience")]
    AudienceFixed,
    /// This node is passive: it publishes nothing.
    #[error("a passive node publishes nothing")]
    Passive,
    /// The node has left or was shut down.
    #[error("gossip has ended in this scope")]
    Closed,
}

/// What a peer did wrong. The core's state did not change; the peer is penalised, others are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerFault {
    /// The frame is no message of this protocol.
    #[error("malformed frame")]
    Malformed,
    /// The frame or a list in it is longer than the protocol allows.
    #[error("oversized frame")]
    TooLong,
}

/// Why gossip did not start. Nothing is running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// This node's own grant does not hold.
    #[error("this node's own grant does not hold")]
    BadGrant(#[source] crate::proto::Refusal),
    /// Gossip already runs in the scope over this transport.
    #[error("gossip already runs in the scope")]
    AlreadyRunning,
}
