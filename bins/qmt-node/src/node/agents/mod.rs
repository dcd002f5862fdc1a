//! The agents of this node at work: sessions over the node's store, models and tools.

mod asked;
mod boards;
mod build;
mod confine;
pub(crate) mod delegate;
pub(crate) mod followed;
pub(crate) mod held;
pub(super) mod metrics;
mod model;
mod moving;
mod nodes;
pub(crate) mod roster;
mod routes;

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_control::{ApiError, ErrorCode};
use mesh_inference::chat::Chat;
use mesh_sessions::event::Party;
use mesh_sessions::host::{Config as HostConfig, Sessions};
use mesh_sessions::store::{Config as StoreConfig, OpenError, Store};
use mesh_sessions::tools::Guard;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Node;
use crate::config::{AgentEntry, Config};
use build::{Built, Parts, SERVERS_AGAIN};
use delegate::Mesh;
use held::Known;
use model::Models;

/// Requests that come while the sessions are starting wait so long.
const START: Duration = Duration::from_secs(20);

/// The sessions of this node.
pub(crate) struct Agents {
    store: Store,
    state: watch::Sender<State>,
    /// The sessions are to rest.
    closing: CancellationToken,
    /// They do, and their store is closed.
    closed: CancellationToken,
    known: Known,
}

#[derive(Clone)]
enum State {
    Starting,
    Running(Sessions),
    Over,
}

impl Agents {
    /// Opens the store; nothing runs yet.
    pub(super) async fn open(path: &Path) -> Result<Self, OpenError> {
        let store = Store::open(path, StoreConfig::default()).await?;
        if let Some(repair) = store.repair() {
            tracing::error!(?repair, "the store of the sessions was broken and is repaired");
        }
        Ok(Self {
            store,
            state: watch::Sender::new(State::Starting),
            closing: CancellationToken::new(),
            closed: CancellationToken::new(),
            known: Known::default(),
        })
    }

    /// Where they are kept.
    pub(super) fn store(&self) -> Store {
        self.store.clone()
    }

    /// Has every session rest in order. Idempotent.
    pub(super) async fn shutdown(&self) {
        self.closing.cancel();
        self.closed.cancelled().await;
    }
}

impl Node {
    /// The node's own user, to its sessions.
    pub(crate) fn owner(&self) -> Party {
        Party::local(self.id())
    }

    /// The sessions of this node, once they are at work.
    pub(crate) async fn sessions(&self) -> Result<Sessions, ApiError> {
        let mut state = self.inner.agents.state.subscribe();
        let started = state.wait_for(|state| !matches!(state, State::Starting));
        let unavailable = |why: &str| ApiError::new(ErrorCode::Unavailable, why.to_owned());
        match tokio::time::timeout(START, started).await {
            Ok(Ok(state)) => match &*state {
                State::Running(sessions) => Ok(sessions.clone()),
                _ => Err(unavailable("the sessions of this node have ended: it is shutting down")),
            },
            _ => Err(unavailable("the sessions of this node are still starting")),
        }
    }

    /// The sessions of this node, if they are at work already.
    pub(crate) fn running_sessions(&self) -> Option<Sessions> {
        match &*self.inner.agents.state.borrow() {
            State::Running(sessions) => Some(sessions.clone()),
            _ => None,
        }
    }

    /// Lets the sessions work for as long as the node runs, and closes their store.
    pub(super) async fn host_sessions(self) {
        let agents = &self.inner.agents;
        let (closing, stopping) = (agents.closing.clone(), self.stopping());
        let built = self.built_agents().await;
        tokio::select! {
            () = self.keep_sessions(&built) => {}
            () = closing.cancelled() => {}
            () = stopping.cancelled() => {}
        }
        let last = agents.state.send_replace(State::Over);
        // Without the courtesy of a shutdown they end at once, as in a crash.
        if let (State::Running(sessions), false) = (last, stopping.is_cancelled()) {
            sessions.shutdown().await;
        }
        if let Some(built) = built {
            built.close().await;
        }
        agents.store.close().await;
        agents.closed.cancel();
    }

    async fn keep_sessions(&self, built: &Option<Built>) {
        let Some(built) = built else { return std::future::pending().await };
        let (agents, is_whole) = built.with_servers().await;
        let client = Models::new(
            self.id(),
            Chat::new(&self.inner.gateway),
            self.router().clone(),
            self.scopes().clone(),
            self.config().mesh.stream_grace,
            self.config().mesh.auto_fallback,
        );
        let (store, client) = (self.inner.agents.store.clone(), Arc::new(client));
        let started = Sessions::start(self.id(), store, client, agents, HostConfig::default()).await;
        let sessions = match started {
            Ok(sessions) => sessions,
            Err(error) => {
                tracing::error!(error = %super::chain(&error), "the sessions of this node do not start");
                return std::future::pending().await;
            }
        };
        mesh_sessions::remote::serve(self.transport(), &sessions, self.remote_config());
        let delivering = mesh_sessions::remote::deliver(&sessions, self.remote_agents(), self.key().clone());
        self.inner.agents.state.send_replace(State::Running(sessions));
        self.refresh();
        tokio::join!(delivering, self.complete(built, is_whole));
        std::future::pending().await
    }

    /// Gives the agents the tools of servers that did not start at once.
    async fn complete(&self, built: &Built, mut is_whole: bool) {
        while !is_whole {
            tokio::time::sleep(SERVERS_AGAIN).await;
            let (agents, whole) = built.with_servers().await;
            is_whole = whole;
            if let Some(sessions) = self.running_sessions() {
                sessions.set_agents(agents);
            }
        }
    }

    async fn built_agents(&self) -> Option<Built> {
        let program = match std::env::current_exe() {
            Ok(program) => program,
            Err(error) => {
                tracing::error!(%error, "this program cannot start itself as a guard: there are no agents");
                return None;
            }
        };
        let guard = Guard { program, arguments: vec![OsString::from("__tool")] };
        let mesh = Mesh::new(Arc::downgrade(&self.inner));
        let config = self.config().clone();
        let built = tokio::task::spawn_blocking(move || Built::new(&Parts { config: &config, mesh, guard }));
        built.await.inspect_err(|error| tracing::error!(%error, "the agents could not be built")).ok()
    }
}

/// The agents of a configuration, delegates included.
pub(super) fn all_entries(config: &Config) -> impl Iterator<Item = &AgentEntry> {
    config.agents.iter().chain(&config.delegates)
}
