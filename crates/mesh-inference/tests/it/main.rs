//! Tests of mesh-inference from outside, in one binary.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod gateway_http;
mod gateway_mesh;
mod gateway_provider;
mod gateway_stream;
mod gateway_support;
mod gguf;
mod weights;
