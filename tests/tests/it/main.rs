//! Tests across the crates.

mod architecture;
