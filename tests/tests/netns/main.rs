//! Real nodes on hosts of their own, with routers, NATs and broken cables between them.
//!
//! Each test skips with a printed reason where the machine cannot have such hosts, or where the programs are not built.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod changes;
mod circuits;
mod copied;
mod doctor;
mod faults;
mod laboratory;
mod meet;
mod mesh;
mod paths;
mod relays;
mod samples;
mod wire;
