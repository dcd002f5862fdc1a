//! Tests of mesh-inference from outside, in one binary.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod gguf;
