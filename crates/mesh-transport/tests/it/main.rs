//! mesh-transport over memory, over iroh and over libp2p.
#![allow(clippy::unwrap_used, missing_docs)]

mod classes;
mod contract;
mod hostile;
mod internet;
mod lan;
mod lan_circuits;
mod lan_hostile;
mod lan_peers;
mod links;
mod network;
mod pulse;
mod sites;
