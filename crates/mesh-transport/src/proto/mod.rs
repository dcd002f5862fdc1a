//! The pure part: no socket, clock, task or randomness.

pub(crate) mod hello;
pub(crate) mod wire;
