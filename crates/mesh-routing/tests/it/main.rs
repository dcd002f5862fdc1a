//! What the router promises, from outside.

#![allow(clippy::unwrap_used, reason = "tests")]

mod choice;
mod fallback;
mod names;
mod properties;
mod world;
