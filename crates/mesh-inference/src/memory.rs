//! How much memory models may take here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sysinfo::System;
use tokio::sync::watch;

/// Memory of this machine, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it, or what the control group of this process allows, if less.
    pub total: u64,
    /// What can be taken without swapping.
    pub free: u64,
    /// What models may take: `total`, or less when the owner says so. Never above `total`.
    pub cap: u64,
}

impl Memory {
    /// Reads the facts now. `cap` is the owner's bound (`--max-vram`). Takes some microseconds of system calls.
    /// `None` when the platform does not tell.
    pub fn read(cap: Option<u64>) -> Option<Self> {
        let mut system = System::new().ok()?;
        system.refresh_memory();
        let group = system.cgroup_limits();
        let total = group.as_ref().map_or(u64::MAX, |limits| limits.total_memory).min(system.total_memory());
        let free =
            group.map_or(u64::MAX, |limits| limits.free_memory).min(system.available_memory()).min(total);
        Some(Self { total, free, cap: cap.unwrap_or(total).min(total) })
    }

    /// What a further model may take: the free part, within the cap, given what models hold already.
    pub fn available(&self, held_by_models: u64) -> u64 {
        self.cap.saturating_sub(held_by_models).min(self.free)
    }
}

/// What models hold of this node's memory, so that two of them are never promised the same bytes. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    cap: Option<u64>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    held: Mutex<Held>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    entries: BTreeMap<u64, (String, u64)>,
}

/// Memory promised to one holder until it is dropped.
#[derive(Debug)]
pub struct Reservation {
    number: u64,
    bytes: u64,
    shared: Arc<Shared>,
}

/// Not so much memory is left. Nothing was reserved; try again when something else has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{wanted} bytes of memory are wanted and {available} are left of {cap}{}",
    holders_text(.holders)
)]
pub struct NotEnough {
    /// What was asked for.
    pub wanted: u64,
    /// What could be had.
    pub available: u64,
    /// What models may take in all.
    pub cap: u64,
    /// Who holds the rest, and how much.
    pub holders: Vec<(String, u64)>,
}

fn holders_text(holders: &[(String, u64)]) -> String {
    let all: Vec<String> = holders.iter().map(|(name, bytes)| format!("{name} {bytes}")).collect();
    if all.is_empty() { String::new() } else { format!("; held: {}", all.join(", ")) }
}

impl Ledger {
    /// Nothing is held yet. `cap` is the owner's bound (`--max-vram`).
    pub fn new(cap: Option<u64>) -> Self {
        Self { cap, shared: Arc::default() }
    }

    /// Promises memory to a holder, whose name shows in the errors of others.
    ///
    /// Weights that are mapped from a file count as free for the system; the ledger counts them.
    ///
    /// # Errors
    /// [`NotEnough`], by the memory of this moment.
    pub fn reserve(&self, holder: impl Into<String>, bytes: u64) -> Result<Reservation, NotEnough> {
        let memory = Memory::read(self.cap);
        let mut held = self.shared.lock();
        let sum = held.sum();
        // A platform that does not tell leaves only the owner's bound.
        let cap = memory.map_or(self.cap.unwrap_or(u64::MAX), |memory| memory.cap);
        let available = memory.map_or_else(|| cap.saturating_sub(sum), |memory| memory.available(sum));
        if bytes > available {
            let holders = held.entries.values().cloned().collect();
            return Err(NotEnough { wanted: bytes, available, cap, holders });
        }
        let number = held.next;
        held.next += 1;
        held.entries.insert(number, (holder.into(), bytes));
        drop(held);
        self.shared.tell();
        Ok(Reservation { number, bytes, shared: self.shared.clone() })
    }

    /// All promises: to whom, and how much.
    pub fn list(&self) -> Vec<(String, u64)> {
        self.shared.lock().entries.values().cloned().collect()
    }

    /// The sum of all promises.
    pub fn held(&self) -> u64 {
        self.shared.lock().sum()
    }

    /// What could be promised in this moment; `None` when the platform does not tell.
    pub fn available(&self) -> Option<u64> {
        let memory = Memory::read(self.cap)?;
        Some(memory.available(self.held()))
    }

    /// Signals promises made and given back (a counter).
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

impl Held {
    fn sum(&self) -> u64 {
        self.entries.values().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }
}

impl Reservation {
    /// How much it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.lock().entries.remove(&self.number);
        self.shared.tell();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn facts_are_consistent() {
        let memory = Memory::read(None).unwrap();
        assert!(memory.total > 0 && memory.free <= memory.total && memory.cap == memory.total);
        assert_eq!(Memory::read(Some(1)).unwrap().cap, 1);
        assert_eq!(Memory::read(Some(u64::MAX)).unwrap().cap, memory.total);
    }

    #[test]
    fn the_cap_counts_what_models_hold() {
        let memory = Memory { total: 100, free: 80, cap: 50 };
        assert_eq!(memory.available(0), 50);
        assert_eq!(memory.available(30), 20);
        assert_eq!(memory.available(60), 0);
        assert_eq!(Memory { free: 10, ..memory }.available(0), 10);
    }

    #[test]
    fn the_same_bytes_are_promised_once() {
        let ledger = Ledger::new(Some(1000));
        let first = ledger.reserve("a", 600).unwrap();
        let error = ledger.reserve("b", 500).unwrap_err();
        assert_eq!((error.wanted, error.available, error.cap), (500, 400, 1000));
        assert_eq!(error.to_string(), "500 bytes of memory are wanted and 400 are left of 1000; held: a 600");
        let second = ledger.clone().reserve("b", 400).unwrap();
        assert_eq!((ledger.held(), ledger.available()), (1000, Some(0)));
        assert!(ledger.reserve("c", u64::MAX).is_err());
        drop(first);
        assert_eq!((ledger.held(), second.bytes()), (400, 400));
        let mut changes = ledger.watch();
        drop(ledger.reserve("c", 600).unwrap());
        assert!(changes.has_changed().unwrap() && *changes.borrow_and_update() == 5);
        assert!(ledger.reserve("c", 601).is_err() && !changes.has_changed().unwrap());
    }
}
