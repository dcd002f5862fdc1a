//! What travels before the bytes: one question, one answer.

mod service;
pub(crate) mod wire;

pub use service::{InvalidServiceName, SERVICE_NAME_BYTES_MAX, ServiceName};
