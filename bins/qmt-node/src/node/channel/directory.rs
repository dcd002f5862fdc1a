//! The registry as the channel asks it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use mesh_identity::NodeName;
use mesh_identity::ca::Leaf;
use mesh_sessions::channel::{Directory, JoinError, Place};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::{Inner, Node};
use crate::config::AgentChannel;

/// A node that joins while this one is starting waits so long for the registry to be read, and is refused then, as long as
/// it cannot be.
const REGISTRY_WAIT: Duration = Duration::from_secs(5);
const REGISTRY_LOOK: Duration = Duration::from_millis(50);

/// Whichever directory the node has at the moment. It does not keep the node alive.
pub(super) struct Nodes(Weak<Inner>);

impl Nodes {
    pub(super) fn new(node: &Node) -> Self {
        Self(Arc::downgrade(&node.inner))
    }

    fn now(&self) -> Option<Arc<Box<dyn Directory>>> {
        self.0.upgrade()?.channel.directory.load_full()
    }
}

impl Directory for Nodes {
    fn view(&self) -> Value {
        self.now().map_or(Value::Null, |directory| directory.view())
    }

    fn knows(&self, name: &NodeName) -> bool {
        self.now().is_some_and(|directory| directory.knows(name))
    }

    fn join(&self, by: &Leaf, node: Value) -> BoxFuture<'static, Result<Value, JoinError>> {
        let (inner, by) = (self.0.clone(), by.clone());
        async move {
            // Nobody is written down by a node that has not read yet who is there.
            let until = Instant::now() + REGISTRY_WAIT;
            loop {
                let unavailable = |why: &str| Err(JoinError::Unavailable(why.to_owned()));
                let Some(channel) = inner.upgrade().map(|inner| inner.channel.read_directory()) else {
                    return unavailable("the node is shutting down");
                };
                match channel {
                    Some(directory) => return directory.join(&by, node).await,
                    None if Instant::now() >= until => {
                        return unavailable("the registry of this node cannot be read, its log says why");
                    }
                    None => tokio::time::sleep(REGISTRY_LOOK).await,
                }
            }
        }
        .boxed()
    }

    fn place_of(&self, name: &NodeName) -> Option<Place> {
        self.now()?.place_of(name)
    }
}

/// What is known while the registry is not read, or cannot be: this node, and the peers of the configuration.
pub(super) struct Known {
    me: Value,
    nodes: BTreeMap<String, Value>,
}

impl Known {
    pub(super) fn new(node: &Node, config: &AgentChannel) -> Self {
        let peers = config.peers.iter().map(|peer| {
            let name = peer.name.to_string();
            (name.clone(), json!({"id": name, "name": name, "host": peer.host, "port": peer.port}))
        });
        let name = config.node_name.as_str();
        let me =
            json!({"id": name, "name": name, "status": "online", "qmt": {"node": node.id().to_string()}});
        Self { me, nodes: peers.collect() }
    }
}

impl Directory for Known {
    fn view(&self) -> Value {
        let mut nodes: serde_json::Map<String, Value> = self.nodes.clone().into_iter().collect();
        nodes.insert(self.me["id"].as_str().unwrap_or_default().to_owned(), self.me.clone());
        json!({"version": 1, "nodes": nodes})
    }

    fn knows(&self, name: &NodeName) -> bool {
        self.me["name"] == name.as_str() || self.nodes.contains_key(name.as_str())
    }

    fn join(&self, _: &Leaf, _: Value) -> BoxFuture<'static, Result<Value, JoinError>> {
        let unavailable = JoinError::Unavailable("the registry of this node is not read yet".to_owned());
        std::future::ready(Err(unavailable)).boxed()
    }

    fn place_of(&self, name: &NodeName) -> Option<Place> {
        let node = self.nodes.get(name.as_str())?;
        let port = u16::try_from(node["port"].as_u64()?).ok()?;
        Some(Place { host: node["host"].as_str()?.to_owned(), port })
    }
}
