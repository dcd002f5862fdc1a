//! Counters.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Counters of one listener, or of all tunnels of a node. Live: they grow while bytes flow.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) opened: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) broken: AtomicU64,
    pub(crate) open: AtomicUsize,
    pub(crate) to_peers_bytes: AtomicU64,
    pub(crate) from_peers_bytes: AtomicU64,
}

/// The counters of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Connections that were accepted (`mesh_tunnel_connections_total{outcome="opened"}`).
    pub opened: u64,
    /// Connections that were refused, here or at the peer (`mesh_tunnel_connections_total{outcome="refused"}`).
    pub refused: u64,
    /// Connections that were cut off, at either side (`mesh_tunnel_connections_total{outcome="broken"}`).
    pub broken: u64,
    /// Connections carried now (`mesh_tunnel_connections`).
    pub open: usize,
    /// Bytes handed to peers (`mesh_tunnel_bytes_total{direction="to_peers"}`).
    pub to_peers_bytes: u64,
    /// Bytes received from peers and handed on (`mesh_tunnel_bytes_total{direction="from_peers"}`).
    pub from_peers_bytes: u64,
}

impl Counters {
    pub(crate) fn stats(&self) -> Stats {
        Stats {
            opened: self.opened.load(Relaxed),
            refused: self.refused.load(Relaxed),
            broken: self.broken.load(Relaxed),
            open: self.open.load(Relaxed),
            to_peers_bytes: self.to_peers_bytes.load(Relaxed),
            from_peers_bytes: self.from_peers_bytes.load(Relaxed),
        }
    }
}
