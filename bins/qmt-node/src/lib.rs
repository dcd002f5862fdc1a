//! A node of the QMT mesh, as a library: configuration, wiring, control API. The binary is a short main over it.

pub mod cli;
pub mod config;
pub mod control;
mod node;
pub mod store;

pub use node::{Diagnosis, HomeError, Node, RelayStartError, StartError, diagnose};
