//! Counters of downloads.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What has been downloaded and given away since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FetchStats {
    /// Bytes of files that came from servers.
    pub from_servers_bytes: u64,
    /// Bytes of files that came from members, those that did not fit their hash left out.
    pub from_members_bytes: u64,
    /// Bytes of files that were given to members.
    pub to_members_bytes: u64,
    /// Members that were dropped from a download since what they sent was not what they said.
    pub lies: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) from_servers: AtomicU64,
    pub(crate) from_members: AtomicU64,
    pub(crate) to_members: AtomicU64,
    pub(crate) lies: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> FetchStats {
        FetchStats {
            from_servers_bytes: self.from_servers.load(Relaxed),
            from_members_bytes: self.from_members.load(Relaxed),
            to_members_bytes: self.to_members.load(Relaxed),
            lies: self.lies.load(Relaxed),
        }
    }
}
