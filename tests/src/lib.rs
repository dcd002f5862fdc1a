//! qmt-tests
