//! What the tests across the crates share: a laboratory of networks to run real nodes in, and meshes of real nodes, and answers and
//! sessions that outlive what is done to those.

#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
pub mod answers;
#[cfg(target_os = "linux")]
pub mod browser;
#[cfg(target_os = "linux")]
pub mod fleet;
#[cfg(target_os = "linux")]
pub mod lab;
#[cfg(target_os = "linux")]
pub mod sessions;
pub mod stand_in;
