//! Tunnels over links in memory, with real sockets at both ends.

#![allow(clippy::unwrap_used, reason = "tests")]

mod carried;
mod refused;
mod rpc;
mod rpc_hostile;
mod rpc_world;
mod world;
