//! Authenticated links between the nodes of a scope, and typed streams on them.
//!
//! It does not decide who is a member (that is [`Admission`], asked at every hello), does not discover peers and does
//! not interpret what travels on streams. The main type is [`Transport`]; [`memory::Network`] and
//! [`internet::Internet`] are its drivers.
//!
//! No rustls process-wide provider is installed or relied upon: iroh and the relay get theirs by value.

mod admission;
mod book;
mod call;
mod config;
mod connection;
mod convert;
mod error;
mod frame;
mod handler;
pub mod internet;
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
pub use connection::{Connection, Driver, Origin, PathFacts, PathKind, TransportKind};
pub use error::{
    CallError, CloseCode, ClosedWhy, ConnectionLost, DialError, OpenError, RedeemError, Refusal, ResetCode,
    StreamFault,
};
pub use frame::{FrameError, FrameReader, write_frame, write_message};
pub use handler::{Handler, handler_fn};
pub use metrics::MetricsSnapshot;
pub use peer::{PROTOCOL_NAME_MAX, Peer, Protocol};
pub use stream::{RecvHalf, RecvStream, SendHalf, SendStream, Stream};
pub use transport::{Admitted, Link, LinkEvent, LinkFacts, Transport};
