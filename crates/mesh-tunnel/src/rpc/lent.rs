//! An rpc-server on offer, and what its hosts hold of it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::RpcOffer;
use crate::proto::rpc::Buffers;

/// An offer, and what was allocated by it.
#[derive(Debug)]
pub(crate) struct Lent {
    pub(crate) offer: RpcOffer,
    /// Over all connections, in bytes.
    allocated: AtomicU64,
}

impl Lent {
    pub(crate) fn new(offer: RpcOffer) -> Self {
        Self { offer, allocated: AtomicU64::new(0) }
    }

    /// Over all connections, in bytes.
    pub(crate) fn allocated(&self) -> u64 {
        self.allocated.load(Relaxed)
    }
}

/// What one connection holds; given back when it ends, as its rpc-server does.
#[derive(Debug)]
pub(crate) struct Holding<'a> {
    lent: &'a Lent,
    buffers: Mutex<Buffers>,
}

impl<'a> Holding<'a> {
    pub(crate) fn new(lent: &'a Lent) -> Self {
        Self { lent, buffers: Mutex::default() }
    }

    pub(crate) fn buffers(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes so much more, if that is still lent.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let bytes_max = self.lent.offer.bytes_max.unwrap_or(u64::MAX);
        let more = |held: u64| held.checked_add(bytes).filter(|held| *held <= bytes_max);
        self.buffers().has_room() && self.lent.allocated.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    /// Gives so much of what was taken back.
    pub(crate) fn give_back(&self, bytes: u64) {
        let _ = self.lent.allocated.fetch_update(Relaxed, Relaxed, |held| Some(held.saturating_sub(bytes)));
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        let held = self.buffers().bytes();
        self.give_back(held);
    }
}
