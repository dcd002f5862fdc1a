#![allow(clippy::unwrap_used, reason = "tests")]

mod hostile;
mod models;
mod needs;
mod properties;
mod ways;

use std::num::NonZeroU32;
use std::time::Duration;

use mesh_identity::{NodeId, NodeKey};

use super::*;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const GB: u64 = 1_000_000_000;

pub(super) fn context(tokens: u32, slots: u32) -> Context {
    Context::new(NonZeroU32::new(tokens).unwrap(), NonZeroU32::new(slots).unwrap())
}

pub(super) fn id(number: u16) -> NodeId {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&number.to_le_bytes());
    NodeKey::from_seed(seed).node_id()
}

/// A machine with a CPU of 50 GB/s that does everything, 1 ms away.
pub(super) fn machine(number: u16, memory: u64) -> Machine {
    Machine {
        id: id(number),
        name: format!("m{number}"),
        memory,
        gpus: Vec::new(),
        speed: Speed { bytes_per_second: 50e9, flops: 1e12 },
        link: Link::new(Duration::from_millis(1)),
        build: "11434".into(),
        has_file: true,
        serves: true,
        lends: true,
    }
}

/// One that lends memory and nothing else.
pub(super) fn lender(number: u16, memory: u64) -> Machine {
    Machine { has_file: false, serves: false, ..machine(number, memory) }
}

/// The machine that plans.
pub(super) fn host(memory: u64) -> Machine {
    Machine { link: Link::HERE, ..machine(0, memory) }
}

pub(super) fn gpu(memory: u64) -> Gpu {
    Gpu { name: "CUDA0".into(), memory, speed: Speed { bytes_per_second: 800e9, flops: 5e13 } }
}
