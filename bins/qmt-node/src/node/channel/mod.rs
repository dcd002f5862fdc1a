//! The agent channel of this node: its server, its client, and what they know of the node.

pub(super) mod ca;
mod candidates;
mod desk;
mod directory;
mod enrol;
mod files;
pub(super) mod metrics;
mod registry;
mod start;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use mesh_gossip::registry::Registry;
use mesh_identity::{NodeId, NodeName};
use mesh_sessions::channel::{Client, Directory, Server, Tls};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Node;

pub use files::FilesError;
pub use start::ChannelError;

/// The channel's part of a node, whether it is configured or not.
pub(crate) struct Channel {
    /// None until there is a certificate.
    running: watch::Sender<Option<Running>>,
    /// The registry; until it is there what the configuration says.
    directory: ArcSwapOption<Box<dyn Directory>>,
    /// The registry that is kept in `mesh.json`; none until there is a certificate.
    registry: ArcSwapOption<Registry>,
    /// What nodes of the registry are called by here.
    nodes: Mutex<HashMap<NodeId, NodeName>>,
    /// Nodes that did not answer, and when.
    failed: Mutex<HashMap<NodeName, Instant>>,
}

/// A channel with a certificate. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) tls: Tls,
    pub(crate) server: Server,
    pub(crate) client: Client,
}

impl Default for Channel {
    fn default() -> Self {
        Self {
            running: watch::Sender::new(None),
            directory: ArcSwapOption::empty(),
            registry: ArcSwapOption::empty(),
            nodes: Mutex::default(),
            failed: Mutex::default(),
        }
    }
}

impl Channel {
    /// The directory, once it is the registry.
    fn read_directory(&self) -> Option<Arc<Box<dyn Directory>>> {
        // The directory is stored first.
        self.registry.load().as_ref().and_then(|_| self.directory.load_full())
    }

    /// Takes no more requests, and lets those under way end. Idempotent.
    pub(super) async fn shutdown(&self) {
        let running = self.running.borrow().clone();
        if let Some(running) = running {
            running.server.shutdown().await;
        }
    }
}

impl Node {
    /// The agent channel, once it has a certificate.
    pub(crate) fn channel(&self) -> Option<Running> {
        self.channel_running().borrow().clone()
    }

    /// Tells when the channel gets its certificate.
    pub(crate) fn channel_running(&self) -> watch::Receiver<Option<Running>> {
        self.inner.channel.running.subscribe()
    }

    /// What the channel knows of other nodes.
    pub(crate) fn channel_directory(&self) -> Option<Arc<Box<dyn Directory>>> {
        self.inner.channel.directory.load_full()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
