//! What a node is asked to do: read from a TOML file, the environment and flags, checked, and held in plain structs.
//!
//! [`load`] is the way of the binary; tests and embedders start from [`Config::at`] and set fields.

mod addr;
mod agent;
mod channel;
mod error;
mod expand;
mod load;
mod parse;
mod reader;
pub mod schema;
mod types;

#[cfg(test)]
mod tests;

pub use error::{ConfigError, Problem};
pub use load::{Environment, load};
pub use types::*;
