//! The registry as the channel asks it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use mesh_identity::NodeName;
use mesh_identity::ca::Leaf;
use mesh_sessions::channel::{Directory, JoinError, Place};
use serde_json::{Value, json};

use super::super::{Inner, Node};
use super::lock;
use crate::config::AgentChannel;

/// Nodes that may join a registry in memory.
const NODES_MAX: usize = 1000;

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
        match self.now() {
            Some(directory) => directory.join(by, node),
            None => std::future::ready(Err(JoinError::Unavailable("the node is shutting down".to_owned())))
                .boxed(),
        }
    }

    fn place_of(&self, name: &NodeName) -> Option<Place> {
        self.now()?.place_of(name)
    }
}

/// A registry that is kept in memory: this node, the peers of the configuration, and who has joined since the start.
pub(super) struct Known {
    me: Value,
    nodes: Mutex<BTreeMap<String, Value>>,
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
        Self { me, nodes: Mutex::new(peers.collect()) }
    }
}

impl Directory for Known {
    fn view(&self) -> Value {
        let mut nodes: serde_json::Map<String, Value> = lock(&self.nodes).clone().into_iter().collect();
        nodes.insert(self.me["id"].as_str().unwrap_or_default().to_owned(), self.me.clone());
        json!({"version": 1, "nodes": nodes})
    }

    fn knows(&self, name: &NodeName) -> bool {
        self.me["name"] == name.as_str() || lock(&self.nodes).contains_key(name.as_str())
    }

    fn join(&self, by: &Leaf, node: Value) -> BoxFuture<'static, Result<Value, JoinError>> {
        let name = by.name.to_string();
        let is_own_id = node.get("id").is_none_or(|id| id == &Value::String(name.clone()));
        let joined = if !is_own_id {
            Err(JoinError::NotYours("the id of the node that joins is not its name".to_owned()))
        } else {
            let mut nodes = lock(&self.nodes);
            if nodes.len() >= NODES_MAX && !nodes.contains_key(&name) {
                Err(JoinError::Unavailable(format!("the registry has {NODES_MAX} nodes")))
            } else {
                nodes.insert(name, node);
                Ok(())
            }
        };
        std::future::ready(joined.map(|()| self.view())).boxed()
    }

    fn place_of(&self, name: &NodeName) -> Option<Place> {
        let nodes = lock(&self.nodes);
        let node = nodes.get(name.as_str())?;
        let port = u16::try_from(node["port"].as_u64()?).ok()?;
        Some(Place { host: node["host"].as_str()?.to_owned(), port })
    }
}
