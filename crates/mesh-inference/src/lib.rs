//! Models: what is on disk, what runs, and how callers reach it.
//!
//! A [`catalogue::Catalogue`] knows the GGUF files of this machine, an [`instance::Instance`] keeps one `llama-server`
//! alive behind a guard process, [`backend::Backends`] lists everything that answers requests here, and [`gateway`]
//! serves them to callers. The crate decides nothing about who is in the mesh and never opens a non-loopback port for a
//! child process.

pub mod backend;
pub mod catalogue;
pub mod gateway;
pub mod gguf;
pub mod instance;
pub mod llama;
pub mod memory;
