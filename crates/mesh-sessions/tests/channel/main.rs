//! The agent channel over real TLS on loopback: who gets in, what for, and what becomes of the rest.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod a2a;
mod delegations;
mod handshakes;
mod limits;
mod programs;
mod reloads;
mod requests;
mod support;
