//! qmt-node

pub mod cli;
pub mod config;
