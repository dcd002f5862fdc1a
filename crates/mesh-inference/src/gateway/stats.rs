//! Counters of a gateway.

use std::sync::atomic::{AtomicU64, Ordering};

/// A moment's counts of a [`Gateway`](super::Gateway).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GatewayStats {
    /// Callers' TCP connections open now.
    pub connections: u64,
    /// Requests taken since the start, from callers and peers.
    pub requests_total: u64,
    /// Requests that peers sent, since the start.
    pub peer_requests_total: u64,
    /// Answers made here because no backend gave one, since the start.
    pub refused_total: u64,
    /// Attempts that failed and went on to the next target, since the start.
    pub fallbacks_total: u64,
}

/// The live counters.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) peer_requests: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) fallbacks: AtomicU64,
}

/// One open connection.
pub(crate) struct Connected<'a>(&'a Stats);

impl Stats {
    pub(crate) fn connection(&self) -> Connected<'_> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Connected(self)
    }

    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> GatewayStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GatewayStats {
            connections: read(&self.connections),
            requests_total: read(&self.requests),
            peer_requests_total: read(&self.peer_requests),
            refused_total: read(&self.refused),
            fallbacks_total: read(&self.fallbacks),
        }
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
