//! What travels before the bytes: one question, one answer; and the frames of an rpc-server.

pub(crate) mod rpc;
mod service;
pub(crate) mod wire;

pub use service::{InvalidServiceName, SERVICE_NAME_BYTES_MAX, ServiceName};
