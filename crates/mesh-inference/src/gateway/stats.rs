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
    /// Answers that lost their backend in the middle and went on elsewhere, or at the same one once it was back, each
    /// time anew, since the start.
    pub continued_total: u64,
    /// Answers that could be gone on with in principle, and ended in a declared error, since the start.
    pub lost_total: u64,
    /// Answers that their callers asked to be able to resume, since the start.
    pub resumable_total: u64,
    /// Answers resumed here by their response id, since the start.
    pub resumed_total: u64,
    /// Events that waited for their copy at another member, since the start.
    pub replicated_total: u64,
    /// Time that they waited together, in microseconds: what resumable answers cost.
    pub replication_micros_total: u64,
    /// Copies that were lost with their holder, or that it had no room for, since the start.
    pub replicas_lost_total: u64,
    /// Copies that were made at another member in the place of lost ones, or that could not be made earlier, since the start.
    pub replicas_replaced_total: u64,
    /// Answers kept here now, own ones and other gateways' copies.
    pub kept_answers: u64,
    /// Bytes of them.
    pub kept_bytes: u64,
}

/// The live counters.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    connections: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) peer_requests: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) fallbacks: AtomicU64,
    pub(crate) continued: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) resumable: AtomicU64,
    pub(crate) resumed: AtomicU64,
    pub(crate) replicated: AtomicU64,
    pub(crate) replication_micros: AtomicU64,
    pub(crate) replicas_lost: AtomicU64,
    pub(crate) replicas_replaced: AtomicU64,
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

    pub(crate) fn add_many(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }

    /// `kept`: answers kept for resuming, and their bytes.
    pub(crate) fn read(&self, kept: (usize, usize)) -> GatewayStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GatewayStats {
            connections: read(&self.connections),
            requests_total: read(&self.requests),
            peer_requests_total: read(&self.peer_requests),
            refused_total: read(&self.refused),
            fallbacks_total: read(&self.fallbacks),
            continued_total: read(&self.continued),
            lost_total: read(&self.lost),
            resumable_total: read(&self.resumable),
            resumed_total: read(&self.resumed),
            replicated_total: read(&self.replicated),
            replication_micros_total: read(&self.replication_micros),
            replicas_lost_total: read(&self.replicas_lost),
            replicas_replaced_total: read(&self.replicas_replaced),
            kept_answers: kept.0 as u64,
            kept_bytes: kept.1 as u64,
        }
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
