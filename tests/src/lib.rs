//! What the tests across the crates share: a laboratory of networks to run real nodes in, and meshes of real nodes.

#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
pub mod fleet;
#[cfg(target_os = "linux")]
pub mod lab;
