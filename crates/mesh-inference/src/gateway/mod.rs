//! The OpenAI-compatible HTTP front of a node.
//!
//! A request names a model in its body. The gateway reads that name, asks routing where the model is served, sends the
//! body on byte for byte, to one of this node's [`Backends`] or to the gateway of another node, and passes the answer
//! back piece by piece as it comes. Until the first byte it may change its mind and ask the next provider; after it, an
//! answer of plain text goes on elsewhere, and any other ends in one declared error. When the caller leaves, the backend's
//! connection is closed at once.
//!
//! It does not run models, does not choose among nodes itself ([`PeerRoutes`] does) and holds no whole answer.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod anthropic;
mod attempt;
mod body;
mod config;
mod door;
mod endpoint;
mod error;
mod gauge;
mod headers;
mod inside;
mod listener;
mod meter;
mod model_field;
mod models;
mod origin;
mod own;
mod peers;
mod pool;
mod provider;
mod relay;
mod replica;
mod reply;
mod routes;
mod serve;
mod settle;
mod socket;
mod stats;
mod sticky;
mod survive;
mod ticket;
mod trace;
mod wire;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_routing::Load;
use mesh_transport::{Handler, Protocol, Transport};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{DEFAULT_PORT, GatewayConfig, Listen, Replicas, StartError};
#[cfg(any(test, feature = "testing"))]
pub use error::refusals;
pub use provider::{Provider, ProviderConfig, ProviderError, ProviderModel};
pub use routes::{ModelFacts, NoPeers, NoTarget, PeerRoutes, RouterRoutes};
pub use stats::GatewayStats;

pub(crate) use headers::{MESH_ERROR, is_event_stream};
pub(crate) use own::{OwnCall, OwnDoor};
pub(crate) use survive::{Held, TooLong, data_of, events};
pub(crate) use wire::Wire;

use crate::backend::Backends;
use peers::PeerHandler;
use pool::Pool;
use replica::ReplicaHandler;
use serve::Core;

/// A running gateway. Clones share it; when the last one is dropped it stops without waiting for answers under way.
#[derive(Clone)]
pub struct Gateway {
    running: Arc<Running>,
}

struct Running {
    core: Arc<Core>,
    addr: SocketAddr,
    stop: CancellationToken,
    peers: TaskTracker,
    listener: Mutex<Option<JoinHandle<()>>>,
}

impl Gateway {
    /// The protocol under which [`Gateway::peer_handler`] is to be served.
    pub const PROTOCOL: Protocol = attempt::PROTOCOL;

    /// Listens and answers until [`Gateway::shutdown`].
    ///
    /// `transport` reaches other nodes; without it only `backends` serve. Other nodes reach this one once
    /// [`Gateway::peer_handler`] is registered. Cancel safe: dropped early, nothing runs.
    pub async fn start(
        config: GatewayConfig,
        backends: Backends,
        routes: Arc<dyn PeerRoutes>,
        transport: Option<Transport>,
    ) -> Result<Self, StartError> {
        let asked = config.listen.addr();
        if !asked.ip().is_loopback() && config.api_key.is_none() {
            return Err(StartError::NeedsKey(asked));
        }
        let pool = Pool::new(config.connect_timeout).map_err(StartError::Tls)?;
        let listener = listener::bind(config.listen).await?;
        let addr = listener.local_addr().map_err(|source| StartError::Bind { addr: asked, source })?;
        let core = Arc::new(Core::new(config, addr, backends, routes, transport, pool));
        let stop = CancellationToken::new();
        let task = tokio::spawn(listener::run(listener, core.clone(), stop.clone()));
        let listener = Mutex::new(Some(task));
        Ok(Self { running: Arc::new(Running { core, addr, stop, peers: TaskTracker::new(), listener }) })
    }

    /// Where it listens: for a default port that was taken, the one it moved to.
    pub fn local_addr(&self) -> SocketAddr {
        self.running.addr
    }

    /// Answers other nodes' requests, with this node's backends only.
    pub fn peer_handler(&self) -> Arc<dyn Handler> {
        let running = &self.running;
        Arc::new(PeerHandler {
            core: running.core.clone(),
            stop: running.stop.clone(),
            open: running.peers.clone(),
        })
    }

    /// The protocol under which [`Gateway::replica_handler`] is to be served.
    pub const REPLICA_PROTOCOL: Protocol = replica::PROTOCOL;

    /// Keeps copies of other members' answers, if [`Replicas::accept`] says so.
    pub fn replica_handler(&self) -> Arc<dyn Handler> {
        let running = &self.running;
        Arc::new(ReplicaHandler {
            core: running.core.clone(),
            stop: running.stop.clone(),
            open: running.peers.clone(),
        })
    }

    /// The requests under way at all of this node's backends in this moment.
    pub fn load(&self) -> Load {
        let core = &self.running.core;
        core.load_of(&core.backends.list())
    }

    /// A moment's counts.
    pub fn stats(&self) -> GatewayStats {
        let core = &self.running.core;
        core.stats.read(core.replicas.size())
    }

    /// Stops accepting, lets answers under way go on for [`GatewayConfig::drain`], then cuts them. Idempotent.
    ///
    /// Cancel safe: a later call waits on.
    pub async fn shutdown(&self) {
        let running = &self.running;
        running.stop.cancel();
        let task = running.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            let mut back = PutBack { task: Some(task), running };
            if let Some(task) = &mut back.task {
                let _ = task.await;
            }
            back.task = None;
        }
        running.peers.close();
        running.peers.wait().await;
    }
}

/// Returns the listener's task to its place when a shutdown is given up half way.
struct PutBack<'a> {
    task: Option<JoinHandle<()>>,
    running: &'a Running,
}

impl Drop for PutBack<'_> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            *self.running.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(task) = self.listener.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("addr", &self.running.addr).finish_non_exhaustive()
    }
}
