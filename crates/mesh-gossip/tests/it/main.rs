//! mesh-gossip over the in-memory network.
#![allow(clippy::unwrap_used, missing_docs)]

mod driver;
