//! Bytes between a local socket and a service at a peer of the mesh.
//!
//! A node offers services on its loopback interface by name; a member of the same scope gets a local port for each of
//! them, and every connection to that port becomes a stream. It does not discover services, does not decide who is a
//! member, and does not look into the bytes. The main type is [`Tunnels`].
//!
//! ```no_run
//! # async fn example(near: mesh_tunnel::Tunnels, far: mesh_tunnel::Tunnels, scope: mesh_identity::ScopeId,
//! #     peer: mesh_identity::NodeId) -> Result<(), Box<dyn std::error::Error>> {
//! use mesh_tunnel::{Remote, ServiceName};
//!
//! let _offered = far.offer(ServiceName::new("echo")?, "127.0.0.1:7".parse()?)?;
//! let listener = near.listen(Remote { scope, peer, service: ServiceName::new("echo")? })?;
//! let socket = tokio::net::TcpStream::connect(listener.addr()).await?;
//! # Ok(()) }
//! ```
//!
//! The protocol is in `docs/protocols/tunnel.md`.

mod carry;
mod config;
mod error;
mod exit;
mod listener;
mod metrics;
mod proto;
mod tunnels;

pub use config::Config;
pub use error::{ListenError, OfferError, OpenError};
pub use exit::Offered;
pub use listener::{LocalListener, Remote};
pub use metrics::Stats;
pub use proto::wire::RefusalCode;
pub use proto::{InvalidServiceName, SERVICE_NAME_BYTES_MAX, ServiceName};
pub use tunnels::{PROTOCOL, Tunnels};
