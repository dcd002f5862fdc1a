//! Tests of mesh-inference from outside, in one binary.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod chat;
mod fake_llama;
mod gateway_anthropic;
mod gateway_http;
mod gateway_mesh;
mod gateway_provider;
mod gateway_replica;
mod gateway_stream;
mod gateway_support;
mod gateway_survive;
mod gguf;
mod weights;
