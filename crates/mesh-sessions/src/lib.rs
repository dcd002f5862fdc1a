//! Agents and their conversations.
//!
//! This crate is where sessions live: an append-only log of numbered events for each conversation, the state machines of
//! a session and of a turn, streams that resume from any number, and the agent channel. It is empty so far: it stores
//! nothing, runs no agent and serves no protocol.
//!
//! It does not own providers, keys or quotas: models are reached through a trait that `qmt-node` backs with
//! `mesh-inference`. It does not decide which node serves (that is `mesh-routing`) and does not link nodes (that is
//! `mesh-transport`).
