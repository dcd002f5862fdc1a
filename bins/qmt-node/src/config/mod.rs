//! What a node is asked to do: read from a TOML file, the environment and flags, checked, and held in plain structs.
//!
//! `load` is the way of the binary; tests and embedders start from [`Config::at`] and set fields.

mod types;

pub use types::*;
