//! Membership of a scope: who is here, with what.
//!
//! Members tell each other their signed records over links that mesh-transport has authenticated: pushed on change,
//! compared by hash on a timer. Each node watches its links, suspects who is silent and declares who stays so for down.
//! It does not route, does not admit anybody, and stores nothing but the [`registry`] of the agent channel.
//!
//! [`Gossip`] is the handle; [`proto::Membership`] is the protocol without any I/O.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! use mesh_gossip::{Config, Credentials, Exchange, Gossip};
//! use mesh_identity::{Permissions, RevocationSet};
//! use mesh_transport::testing::Mesh;
//!
//! let mesh = Mesh::memory(2).await; // two members of one scope, who know each other's addresses
//! let start = |number: usize| {
//!     let node = &mesh[number];
//!     let credentials = Credentials {
//!         key: node.key.clone(),
//!         grant: mesh.grant(node.id(), &format!("node-{number}"), Permissions::MEMBER),
//!         revocations: RevocationSet::new(mesh.scope()),
//!     };
//!     Gossip::start(&Exchange::new(node.transport.clone()), credentials, Config::default())
//! };
//! let (here, there) = (start(0)?, start(1)?);
//! there.set("models", b"llama-3-8b".to_vec()).await?;
//!
//! let mut members = here.watch();
//! let there_id = mesh[1].id();
//! members.wait_for(|all| all.get(&there_id).is_some_and(|member| member.value("models").is_some())).await?;
//! there.shutdown().await;
//! here.shutdown().await;
//! mesh.shutdown().await;
//! # Ok::<(), Box<dyn std::error::Error>>(()) })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The protocol is in `docs/protocols/gossip.md`.
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
pub mod registry;
mod sender;
mod trust;

pub use config::Config;
pub use error::{PeerFault, SetError, StartError};
pub use event::{DownWhy, Event, UpWhy};
pub use exchange::{Exchange, GOSSIP};
pub use gossip::{Credentials, EventStream, Gossip};
pub use member::{Audience, Incarnation, Member, Members, State, Value};
pub use metrics::MetricsSnapshot;
