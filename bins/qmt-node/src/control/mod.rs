//! The control API: the router that the Unix socket serves now and the console will mount later.

mod events;
mod logs;
mod router;
mod sessions;
mod socket;

pub use router::router;
pub(crate) use router::{failure, metrics};
pub(crate) use socket::ControlSocket;
