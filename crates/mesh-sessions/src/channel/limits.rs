//! Bounds of the server.

use std::time::Duration;

/// What a server allows. `Default` suits a node among a few dozen others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// From the connection to the end of its handshake (10 s).
    pub handshake: Duration,
    /// From the last answer, or the handshake, to the whole head of the next request (60 s): longer than a client of ours
    /// keeps an idle connection, so that it is the one that leaves.
    pub head: Duration,
    /// From a request's head to the end of its body (30 s).
    pub body: Duration,
    /// The longest body in bytes (1 MiB).
    pub body_bytes_max: usize,
    /// So long the other end may take nothing of what is sent to it (30 s).
    pub stalled: Duration,
    /// Open connections with a certificate (4096), and those of one name (2048).
    pub connections_max: usize,
    /// See [`Limits::connections_max`].
    pub connections_of_one_max: usize,
    /// Connections without a certificate yet (512), and those of one address (128).
    pub handshakes_max: usize,
    /// See [`Limits::handshakes_max`].
    pub handshakes_of_one_max: usize,
    /// Delegations under way (256), and those of one name (64).
    pub delegations_max: usize,
    /// See [`Limits::delegations_max`].
    pub delegations_of_one_max: usize,
    /// How long a delegation may take when its request does not say (300 s), and however long it says (1 h).
    pub deadline: Duration,
    /// See [`Limits::deadline`].
    pub deadline_max: Duration,
    /// The longest answer of an agent in bytes (4 MiB).
    pub answer_bytes_max: usize,
    /// A delegation with an `Idempotency-Key` goes on for so long without a caller (10 s): it may come back for it.
    pub orphaned: Duration,
    /// How long a delegation that is over answers for its key (10 min).
    pub remembered: Duration,
    /// Answers that are remembered: so many (1000), with so many bytes together (32 MiB); the oldest go first.
    pub remembered_max: usize,
    /// See [`Limits::remembered_max`].
    pub remembered_bytes_max: usize,
    /// A stream without news gets a line that means nothing so often (15 s).
    pub heartbeat: Duration,
    /// How long a shutdown waits for requests under way (5 s).
    pub shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(60),
            body: Duration::from_secs(30),
            body_bytes_max: 1024 * 1024,
            stalled: Duration::from_secs(30),
            connections_max: 4096,
            connections_of_one_max: 2048,
            handshakes_max: 512,
            handshakes_of_one_max: 128,
            delegations_max: 256,
            delegations_of_one_max: 64,
            deadline: Duration::from_secs(300),
            deadline_max: Duration::from_secs(3600),
            answer_bytes_max: 4 * 1024 * 1024,
            orphaned: Duration::from_secs(10),
            remembered: Duration::from_secs(600),
            remembered_max: 1000,
            remembered_bytes_max: 32 * 1024 * 1024,
            heartbeat: Duration::from_secs(15),
            shutdown: Duration::from_secs(5),
        }
    }
}
