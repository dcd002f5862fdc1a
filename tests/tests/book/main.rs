//! The documentation, held against the programs: what is written from the code is as the code is, what it shows can be typed, and
//! the tutorial is done as it stands there.
//!
//! `WRITE_DOCS=1` writes the pages under `docs/reference/` anew, and the log of the tutorial.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod commands;
mod errors;
mod links;
mod page;
mod protocols;
mod reference;
#[cfg(target_os = "linux")]
mod tutorial;
