//! Authenticated links between the nodes of a scope, and typed streams on them.
//!
//! It does not decide who is a member (that is [`Admission`], asked at every hello), does not discover peers and does
//! not interpret what travels on streams. The main type is [`Transport`]; [`memory::Network`],
//! [`internet::Internet`] and [`lan::Lan`] are its drivers.
//!
//! No rustls process-wide provider is installed or relied upon: iroh and the relay get theirs by value.
//!
//! ```
//! # #[cfg(feature = "testing")]
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use std::time::Duration;
//! use mesh_transport::{Call, Peer, Protocol, serve_call, testing::Mesh};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Greet {
//!     greeting: String,
//! }
//!
//! impl Call for Greet {
//!     const PROTOCOL: Protocol = Protocol::new("greet/1");
//!     type Reply = String;
//! }
//!
//! let mesh = Mesh::memory(2).await; // two members of one scope, linked in memory
//! serve_call::<Greet, _, _>(&mesh[1].transport, |peer: Peer, call| async move {
//!     Ok(format!("{}, {}", call.greeting, peer.name)) // proved by the link, not claimed by the caller
//! });
//! let call = Greet { greeting: "good morning".into() };
//! let answer = mesh[0].transport.call(&mesh.scope(), &mesh[1].id(), &call, Duration::from_secs(5)).await?;
//! assert_eq!(answer, "good morning, node-0");
//! mesh.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `docs/protocols/hello.md` says how a connection becomes a link.

mod admission;
mod backoff;
mod book;
mod call;
mod config;
mod connection;
mod convert;
mod error;
mod frame;
mod handler;
pub mod internet;
pub mod lan;
pub mod memory;
mod metrics;
mod peer;
mod proto;
pub mod relay;
mod stream;
#[cfg(feature = "testing")]
pub mod testing;
mod transport;

pub use admission::Admission;
pub use book::AddressBook;
pub use call::{Call, CallFault, serve_call};
pub use config::{CONNECTIONS_MAX_DEFAULT, Config};
pub use connection::{Connection, DialVia, Driver, Found, Origin, PathFacts, PathKind, TransportKind};
pub use error::{
    CallError, CloseCode, ClosedWhy, ConnectionLost, DialError, OpenError, RedeemError, Refusal, ResetCode,
    StreamFault,
};
pub use frame::{FrameError, FrameReader, write_frame, write_message};
pub use handler::{Handler, handler_fn};
pub use metrics::MetricsSnapshot;
pub use peer::{Caller, Callers, Member, PROTOCOL_NAME_MAX, Peer, Protocol};
pub use stream::{RecvHalf, RecvStream, SendHalf, SendStream, Stream};
pub use transport::{Admitted, Link, LinkEvent, LinkFacts, Transport};
