//! The control API: the router that the Unix socket serves now and the console will mount later.

mod events;
mod logs;
mod router;
mod sessions;
mod socket;

pub(crate) use router::metrics;
pub use router::router;
pub(crate) use socket::ControlSocket;
