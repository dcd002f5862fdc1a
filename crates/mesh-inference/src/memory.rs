//! How much memory models may take here.

use sysinfo::System;

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
}
