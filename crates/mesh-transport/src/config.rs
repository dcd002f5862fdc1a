//! Limits and deadlines of a transport. Each has one meaning.

use std::time::Duration;

/// Parameters of a [`crate::Transport`]. `Default` suits a node on a workstation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// From the start of a dial to an authenticated connection (5 s).
    pub dial_timeout: Duration,
    /// From the connection to the end of hello, at either side (5 s).
    pub hello_timeout: Duration,
    /// From an inbound stream's opening to its whole header (5 s).
    pub header_timeout: Duration,
    /// The whole of redeeming an invite, retries included (15 s).
    pub redeem_timeout: Duration,
    /// Connections with and without hello, all scopes together. `None`: a quarter of the process's file limit, at most
    /// [`CONNECTIONS_MAX_DEFAULT`]; start logs what it came to.
    pub connections_max: Option<usize>,
    /// Inbound connections in hello at once (64): a silent connection costs one place for `hello_timeout`.
    pub hellos_max: usize,
    /// Of these, from one remote IP address (16).
    pub hellos_per_address_max: usize,
    /// Of these, from one key (4).
    pub hellos_per_peer_max: usize,
    /// Streams of one peer served at once on a link (1024); more wait at the peer.
    pub inbound_streams_max: usize,
    /// Longest request or reply of a call (1 MiB).
    pub call_bytes_max: usize,
    /// Addresses remembered, all scopes together (16384).
    pub addresses_max: usize,
    /// Link events kept for a slow subscriber before it lags (1024).
    pub events_max: usize,
    /// How long a connection that lost the rule of two waits for late streams once it is idle (1 s).
    pub superseded_linger: Duration,
    /// How long handlers of an ended link may go on before they are dropped (5 s).
    pub handler_grace: Duration,
    /// How long `shutdown` lets running handlers finish (500 ms).
    pub shutdown_grace: Duration,
    /// How often at least links are checked for grants that ended, whatever the clock said before (30 s).
    pub expiry_check: Duration,
    /// Words told to peers in hello, at most 16 of 32 bytes each.
    pub features: Vec<String>,
}

/// Most connections without being asked for more: 1,000 nodes in a scope, linked on use.
pub const CONNECTIONS_MAX_DEFAULT: usize = 1024;

impl Default for Config {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(5),
            hello_timeout: Duration::from_secs(5),
            header_timeout: Duration::from_secs(5),
            redeem_timeout: Duration::from_secs(15),
            connections_max: None,
            hellos_max: 64,
            hellos_per_address_max: 16,
            hellos_per_peer_max: 4,
            inbound_streams_max: 1024,
            call_bytes_max: 1 << 20,
            addresses_max: 16 * 1024,
            events_max: 1024,
            superseded_linger: Duration::from_secs(1),
            handler_grace: Duration::from_secs(5),
            shutdown_grace: Duration::from_millis(500),
            expiry_check: Duration::from_secs(30),
            features: Vec::new(),
        }
    }
}

impl Config {
    /// The cap on connections, and the file limit it came from.
    pub(crate) fn connections_cap(&self) -> (usize, Option<u64>) {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let quarter = files.map_or(usize::MAX, |files| usize::try_from(files / 4).unwrap_or(usize::MAX));
        let cap = self.connections_max.unwrap_or(CONNECTIONS_MAX_DEFAULT.min(quarter));
        (cap.max(1), files)
    }
}
