//! Agents and their conversations.
//!
//! This crate is where sessions live: an append-only log of numbered events for each conversation ([`event`]), the state
//! machines of a session and of a turn, streams that resume from any number, tools ([`tool`]), and the agent channel.
//!
//! It does not own providers, keys or quotas: models are reached through a trait ([`model`]) that `qmt-node` backs with
//! `mesh-inference`. It does not decide which node serves (that is `mesh-routing`) and does not link nodes (that is
//! `mesh-transport`).

pub mod agent;
pub mod chain;
pub mod channel;
pub mod content;
pub mod event;
pub mod host;
pub mod ids;
pub mod log;
pub mod metrics;
pub mod model;
pub mod policy;
pub mod proto;
pub mod remote;
pub mod store;
pub mod tool;
pub mod tools;
