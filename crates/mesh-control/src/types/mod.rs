//! The bodies of the control API, one module for each subject.

pub(crate) mod agent;
pub(crate) mod audit;
pub(crate) mod board;
pub(crate) mod console;
pub(crate) mod doctor;
pub(crate) mod invite;
pub(crate) mod log;
pub(crate) mod model;
pub(crate) mod node;
pub(crate) mod route;
pub(crate) mod session;
pub(crate) mod status;
