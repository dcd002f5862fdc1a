//! Counters.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[derive(Debug, Default)]
pub(crate) struct Counters {
    handshakes: AtomicU64,
    handshakes_refused: AtomicU64,
    accepted: AtomicU64,
    forbidden: AtomicU64,
    delegations_done: AtomicU64,
    delegations_failed: AtomicU64,
    cut: AtomicU64,
}

/// The counters of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Handshakes that ended well (`mesh_channel_handshakes_total{outcome="done"}`).
    pub handshakes: u64,
    /// Handshakes that did not (`mesh_channel_handshakes_total{outcome="refused"}`).
    pub handshakes_refused: u64,
    /// Requests that were admitted (`mesh_channel_requests_total{outcome="accepted"}`).
    pub accepted: u64,
    /// Requests that were refused for who sent them (`mesh_channel_requests_total{outcome="forbidden"}`).
    pub forbidden: u64,
    /// Delegations that were done (`mesh_channel_delegations_total{outcome="done"}`).
    pub delegations_done: u64,
    /// Delegations that were not (`mesh_channel_delegations_total{outcome="failed"}`).
    pub delegations_failed: u64,
    /// Connections that were closed since their certificates were accepted no more
    /// (`mesh_channel_connections_cut_total`).
    pub cut: u64,
    /// Connections that others hold open now (`mesh_channel_connections`).
    pub connections: usize,
    /// Delegations under way now (`mesh_channel_delegations`).
    pub delegations: usize,
}

impl Counters {
    pub(crate) fn handshake(&self, is_done: bool) {
        let counter = if is_done { &self.handshakes } else { &self.handshakes_refused };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn accepted(&self) {
        self.accepted.fetch_add(1, Relaxed);
    }

    pub(crate) fn forbidden(&self) {
        self.forbidden.fetch_add(1, Relaxed);
    }

    pub(crate) fn delegated(&self, is_done: bool) {
        let counter = if is_done { &self.delegations_done } else { &self.delegations_failed };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn cut(&self) {
        self.cut.fetch_add(1, Relaxed);
    }

    pub(crate) fn stats(&self, connections: usize, delegations: usize) -> Stats {
        Stats {
            handshakes: self.handshakes.load(Relaxed),
            handshakes_refused: self.handshakes_refused.load(Relaxed),
            accepted: self.accepted.load(Relaxed),
            forbidden: self.forbidden.load(Relaxed),
            delegations_done: self.delegations_done.load(Relaxed),
            delegations_failed: self.delegations_failed.load(Relaxed),
            cut: self.cut.load(Relaxed),
            connections,
            delegations,
        }
    }
}
