//! qmt-node
