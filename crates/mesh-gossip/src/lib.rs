//! Membership of a scope: who is here, with what.
//!
//! Members tell each other their signed records over links that mesh-transport has authenticated: pushed on change,
//! compared by hash on a timer. Each node watches its links, suspects who is silent and declares who stays so for down.
//! It does not route, does not admit anybody, and stores nothing.
//!
//! [`Gossip`] is the handle; [`proto::Membership`] is the protocol without any I/O.
#![cfg_attr(docsrs, feature(doc_cfg))]

mod config;
mod driver;
mod error;
mod event;
mod exchange;
mod gossip;
pub mod limits;
mod member;
mod metrics;
pub mod proto;
mod sender;
mod trust;

pub use config::Config;
pub use error::{PeerFault, SetError, StartError};
pub use event::{DownWhy, Event, UpWhy};
pub use exchange::{Exchange, GOSSIP};
pub use gossip::{Credentials, EventStream, Gossip};
pub use member::{Audience, Incarnation, Member, Members, State, Value};
pub use metrics::MetricsSnapshot;
