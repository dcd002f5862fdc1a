//! The real binary, against nodes in this process, against a control API that plays a part, and without any.

mod audit;
mod chat;
mod doctor;
mod host;
mod mesh;
mod models;
mod sessions;
mod stub;
mod support;
mod usage;
