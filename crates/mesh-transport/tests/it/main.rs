//! mesh-transport over memory and over iroh.
#![allow(clippy::unwrap_used, missing_docs)]

mod contract;
mod links;
mod sites;
