//! Which peer, in what order, and why: decisions about where a request of a mesh node goes.
//!
//! It opens no socket, reads no clock, spawns nothing and draws no random numbers: facts, the time and a draw come in,
//! a [`Route`] comes out. It does not dial, retry or send; that is for whoever asks. The main type is [`Router`].
//!
//! ```
//! use std::time::Instant;
//! use mesh_identity::{NodeKey, NodeName, Role, ScopeId};
//! use mesh_routing::{Config, Offer, PeerFacts, Query, Router, Table, Target};
//!
//! let (scope, peer) = (ScopeId::lan(None), NodeKey::generate().node_id());
//! let now = Instant::now();
//! let router = Router::new(Config::default(), now);
//! router.update(|table: &mut Table| {
//!     table.set_scope(scope, Role::Member);
//!     let mut facts = PeerFacts::new(NodeName::new("workstation")?);
//!     facts.offers.push(Offer::ready("qwen3-8b"));
//!     table.set_peer(scope, peer, facts);
//!     Ok::<(), mesh_identity::InvalidNodeName>(())
//! })?;
//!
//! let route = router.route(&Query::new("qwen3-8b", vec![scope]), 7, now)?;
//! assert_eq!(route.target, Target::Peer { scope, node: peer });
//! assert_eq!(route.why.to_string(), "only node that can serve it");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A request counts while its [`InFlight`] guard from [`Router::begin`] lives, and tells of its target with
//! [`InFlight::observe`]. The rules are in `docs/protocols/routing.md`.

mod config;
mod decision;
mod facts;
mod fallback;
mod gauge;
mod path;
mod policy;
mod router;
mod snapshot;
mod table;

pub use config::Config;
pub use decision::{
    Caller, DecidedBy, Excluded, NoRoute, PassedOver, Provider, Query, Reason, Route, Target,
};
pub use facts::{
    InvalidLoad, Labels, LinkFacts, Liveness, Load, LocalFacts, Network, OFFERS_MAX, Offer, OfferState,
    PeerFacts, Share,
};
pub use fallback::{Attempt, Exhausted, FallbackChain};
pub use gauge::{Health, Outcome};
pub use path::{Before, PathMemory, PathRank, PeerRoute, order_routes};
pub use policy::{Names, ProviderTarget, ResolveError, RoutingPolicy};
pub use router::{InFlight, Router};
pub use snapshot::{Model, Snapshot};
pub use table::Table;
