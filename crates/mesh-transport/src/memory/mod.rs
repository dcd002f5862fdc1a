//! A network inside this process: the same contract as the real drivers, with seeded faults.
//!
//! Under tokio's paused time a run is fixed by the seed: latency and jitter are timers, loss is the delay of a
//! retransmission (streams are reliable), a cut is silence until it heals or the idle timeout notices.

mod connection;
mod network;
mod pipe;

pub use network::{Conditions, MemoryDriver, Network};
