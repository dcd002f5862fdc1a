//! What the tests across the crates share: a laboratory of networks to run real nodes in.

#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
pub mod lab;
