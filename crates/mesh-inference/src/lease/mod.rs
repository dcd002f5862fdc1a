//! Leases on memory: a worker lends its share of a model to one host, and takes it back when either of them is gone.
//!
//! A lease is a stream that stays open. The host asks on it, the worker starts an rpc-server for that host alone and names
//! the service by which its tunnels reach it; both then say every so often that they live. When the stream ends, for
//! whatever reason, or one side falls silent, the lease is over and the rpc-server ends. `docs/protocols/lease.md` has the
//! messages and limits.

mod beat;
mod borrow;
mod lender;
mod table;
mod wire;

use std::time::Duration;

use mesh_transport::Protocol;

pub use borrow::{Lease, LeaseError};
pub use lender::{Lender, LenderConfig, Lent, WeightsOf};
pub use wire::{Ask, RefusalCode};

/// The protocol, as streams name it.
pub const PROTOCOL: Protocol = Protocol::new("lease/1");

/// Times that both sides keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseConfig {
    /// Each side says that it lives this often. Default 500 ms.
    pub beat_every: Duration,
    /// A side that has said nothing for so long is taken for gone or hung. Default 3 s: six beats, above the pauses of a
    /// machine that loads a model.
    pub silence_max: Duration,
    /// From the question to the first word of the worker, at the host: dialing included. Default 15 s.
    pub word_within: Duration,
    /// From the question to the answer, at the host, as long as the worker says that it lives: it may have a model of
    /// hundreds of gigabytes to read for the first time. Default 15 min.
    pub answer_within: Duration,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            beat_every: Duration::from_millis(500),
            silence_max: Duration::from_secs(3),
            word_within: Duration::from_secs(15),
            answer_within: Duration::from_secs(900),
        }
    }
}
