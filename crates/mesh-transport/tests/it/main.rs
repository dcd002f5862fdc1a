//! mesh-transport over memory and over iroh.
#![allow(clippy::unwrap_used, missing_docs)]

mod contract;
mod hostile;
mod internet;
mod links;
mod sites;
