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
    pub(crate) requests: AtomicU64,
    pub(crate) replies: AtomicU64,
    pub(crate) weights_by_reference: AtomicU64,
    pub(crate) weights_by_reference_bytes: AtomicU64,
    pub(crate) weights_sent_bytes: AtomicU64,
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

/// What passed to and from rpc-servers until now, at whichever end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RpcStats {
    /// Commands (`mesh_tunnel_rpc_frames_total{direction="request"}`).
    pub requests: u64,
    /// Replies, those that the tunnel gave itself too (`mesh_tunnel_rpc_frames_total{direction="reply"}`).
    pub replies: u64,
    /// Weights that went by reference (`mesh_tunnel_rpc_references_total`).
    pub weights_by_reference: u64,
    /// Their size: bytes that did not cross the link (`mesh_tunnel_rpc_weight_bytes_total{by="reference"}`).
    pub weights_by_reference_bytes: u64,
    /// Weights of the host's file that crossed the link, in bytes, counted at the entry
    /// (`mesh_tunnel_rpc_weight_bytes_total{by="sent"}`).
    pub weights_sent_bytes: u64,
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

    pub(crate) fn rpc_stats(&self) -> RpcStats {
        RpcStats {
            requests: self.requests.load(Relaxed),
            replies: self.replies.load(Relaxed),
            weights_by_reference: self.weights_by_reference.load(Relaxed),
            weights_by_reference_bytes: self.weights_by_reference_bytes.load(Relaxed),
            weights_sent_bytes: self.weights_sent_bytes.load(Relaxed),
        }
    }
}

/// Adds to one counter of each.
pub(crate) fn add(all: &[&Counters], counter: impl Fn(&Counters) -> &AtomicU64, more: u64) {
    if more > 0 {
        all.iter().for_each(|counters| _ = counter(counters).fetch_add(more, Relaxed));
    }
}
