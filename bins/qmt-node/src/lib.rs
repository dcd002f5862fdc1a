//! A node of the QMT mesh, as a library: configuration, wiring, control API. The binary is a short main over it.
//!
//! The main type is [`Node`]. Each protocol is in a `mesh-*` crate; this one only wires them. A program that embeds a node
//! and serves models of its own with it must pass the argument `__child` on to [`mesh_inference::instance::guard::main`],
//! and one with agents `__tool` to [`mesh_sessions::tools::guard::main`], as this package's `main` does: the node starts its
//! own program as the guard of each model and of each program of a tool. `examples/call_service.rs`
//! embeds two nodes.

pub mod cli;
pub mod config;
mod console;
pub mod control;
pub mod logs;
mod node;
pub mod store;
pub mod traces;

pub use node::metrics;
pub use node::{
    ChannelError, Diagnosis, FilesError, HomeError, Node, RelayStartError, StartError, audit_without_node,
    diagnose,
};
