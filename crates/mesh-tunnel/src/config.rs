//! Limits and deadlines.

use std::time::Duration;

use crate::Policy;

/// Parameters of [`Tunnels`](crate::Tunnels).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// From an inbound stream's start to the answer, at the exit: reading the question and reaching the service. 5 s.
    pub handshake_timeout: Duration,
    /// From a local connection to the peer's answer, at the entry: dialing included. 10 s, the transport's dial and hello
    /// timeouts together.
    pub open_timeout: Duration,
    /// Connections carried at once, for others' entries (exit) and for our own (entry) each. 1000: two sockets or streams
    /// each, below the usual 4096 files of a process with room for the rest of it.
    pub connections_max: usize,
    /// Bytes read at once in each direction. 64 KiB: what a loopback socket yields in one read under load.
    pub buffer_bytes: usize,
    /// What may pass to an rpc-server.
    pub rpc: Policy,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            open_timeout: Duration::from_secs(10),
            connections_max: 1000,
            buffer_bytes: 64 * 1024,
            rpc: Policy::default(),
        }
    }
}
