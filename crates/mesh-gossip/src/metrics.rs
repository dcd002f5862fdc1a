//! Counters of one scope's gossip.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since start; `mesh_gossip_<name>_total` each.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    dropped: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
    faults: AtomicU64,
    refused: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MetricsSnapshot {
    /// Frames handed to a link.
    pub frames_sent: u64,
    /// Their bytes, lengths in front included, as they are handed to the link.
    pub bytes_sent: u64,
    /// Frames lost because a peer was slow or its link went away; anti-entropy mends.
    pub frames_dropped: u64,
    /// Frames that arrived whole.
    pub frames_received: u64,
    /// Their bytes, lengths in front included.
    pub bytes_received: u64,
    /// Frames and streams that broke the protocol.
    pub peer_faults: u64,
    /// Records and revocations that were not accepted.
    pub records_refused: u64,
}

impl Metrics {
    pub(crate) fn sent(&self, frame: &[u8]) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes_of(frame), Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, frame: &[u8]) {
        self.received.fetch_add(1, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes_of(frame), Ordering::Relaxed);
    }

    pub(crate) fn fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> MetricsSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        MetricsSnapshot {
            frames_sent: read(&self.sent),
            bytes_sent: read(&self.sent_bytes),
            frames_dropped: read(&self.dropped),
            frames_received: read(&self.received),
            bytes_received: read(&self.received_bytes),
            peer_faults: read(&self.faults),
            records_refused: read(&self.refused),
        }
    }
}

/// What a frame takes on its stream: itself and the four bytes of its length.
fn bytes_of(frame: &[u8]) -> u64 {
    frame.len() as u64 + 4
}
