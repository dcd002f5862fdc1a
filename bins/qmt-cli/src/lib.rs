//! qmt-cli
