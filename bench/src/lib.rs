//! qmt-bench
