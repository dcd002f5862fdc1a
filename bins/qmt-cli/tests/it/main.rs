//! The real binary, against nodes in this process, against a control API that plays a part, and without any.

mod acp;
mod audit;
mod boards;
mod ca;
mod chat;
mod doctor;
mod host;
mod mcp;
mod mesh;
mod models;
mod piped;
mod sessions;
mod stub;
mod support;
mod usage;
