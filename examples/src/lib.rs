//! qmt-examples
