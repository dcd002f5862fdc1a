//! The real binary, against nodes in this process, against a control API that plays a part, and without any.

mod audit;
mod chat;
mod doctor;
mod mesh;
mod models;
mod stub;
mod support;
mod usage;
