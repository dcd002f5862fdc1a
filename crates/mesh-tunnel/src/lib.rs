//! Bytes between a local socket and a service at a peer of the mesh.
//!
//! A node offers services on its loopback interface by name; a member of the same scope gets a local port for each of
//! them, and every connection to that port becomes a stream. It does not discover services and does not decide who is a
//! member. It looks into no bytes but those of a llama-server on their way to an rpc-server, where weights that the worker has
//! on disk go by reference. The main type is [`Tunnels`].
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use mesh_transport::testing::Mesh;
//! use mesh_tunnel::{Config, Remote, ServiceName, Tunnels};
//! use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
//!
//! let mesh = Mesh::memory(2).await; // two members of one scope, linked in memory
//! let near = Tunnels::start(mesh[0].transport.clone(), Config::default());
//! let far = Tunnels::start(mesh[1].transport.clone(), Config::default());
//! let service = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let _offered = far.offer(ServiceName::new("greeter")?, service.local_addr()?)?;
//! let served = tokio::spawn(async move { service.accept().await?.0.write_all(b"hello").await });
//!
//! let remote = Remote { scope: mesh.scope(), peer: mesh[1].id(), service: ServiceName::new("greeter")? };
//! let listener = near.listen(remote)?;
//! let mut said = String::new();
//! tokio::net::TcpStream::connect(listener.addr()).await?.read_to_string(&mut said).await?;
//! assert_eq!(said, "hello");
//! # served.await??;
//! near.shutdown().await;
//! far.shutdown().await;
//! mesh.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The protocols are in `docs/protocols/tunnel.md` and `docs/protocols/rpc.md`.

mod carry;
mod config;
mod error;
mod exit;
mod listener;
mod metrics;
mod proto;
mod rpc;
mod tunnels;
mod weights;

pub use config::Config;
pub use error::{ListenError, OfferError, OpenError};
pub use exit::Offered;
pub use listener::{LocalListener, Remote};
pub use metrics::{RpcStats, Stats};
#[cfg(any(test, feature = "testing"))]
pub use proto::rpc::codec;
pub use proto::rpc::{Policy, RpcFault};
pub use proto::wire::RefusalCode;
pub use proto::{InvalidServiceName, SERVICE_NAME_BYTES_MAX, ServiceName};
pub use rpc::{RPC_PROTOCOL, RpcOffer, RpcUse};
pub use tunnels::{PROTOCOL, Tunnels};
pub use weights::{Fnv, Weight, WeightId, Weights};
