//! The registry as others of this process read it.

use mesh_identity::NodeName;
use serde_json::Value;

use super::contents::Contents;
use super::local::{Life, Local};
use super::node::{Entry, Status};

/// One moment of a registry. Its nodes are in the order of their ids, this one first.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    nodes: Vec<NodeView>,
}

/// One node in a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeView {
    /// What it says of itself.
    pub entry: Entry,
    /// How it does, as far as it can be told from here.
    pub life: Life,
    /// Whether it is this node.
    pub is_me: bool,
}

impl View {
    pub(super) fn of(local: &Local) -> Self {
        let node =
            |(entry, life, is_me): (&Entry, Life, bool)| NodeView { entry: entry.clone(), life, is_me };
        Self { nodes: local.nodes().map(node).collect() }
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeView> {
        self.nodes.iter()
    }

    /// The node with an id.
    pub fn get(&self, id: &str) -> Option<&NodeView> {
        self.nodes.iter().find(|node| node.entry.id() == id)
    }

    /// The node with a name in its certificate: of several entries the one that does best, which is the later one of a node
    /// that was set up anew.
    pub fn named(&self, name: &NodeName) -> Option<&NodeView> {
        let rank = |node: &&NodeView| match node.life {
            Life::Online => 0,
            Life::Stale => 1,
            Life::Offline => 2,
        };
        self.nodes.iter().filter(|node| node.entry.name() == name).min_by_key(rank)
    }

    /// Nodes that are online and have an agent.
    pub fn with_agent<'a>(&'a self, agent: &'a str) -> impl Iterator<Item = &'a NodeView> {
        self.nodes
            .iter()
            .filter(move |node| node.life == Life::Online && node.entry.agents().contains(&agent))
    }

    /// The registry in the file's form, as other nodes are told of it. The status of a node that is silent here is `stale`, a
    /// word that is never in the file: it is what this node sees, and not what that one says.
    pub fn value(&self, now_ms: u64) -> Value {
        let contents: Contents = self.nodes.iter().map(|node| node.entry.clone()).collect();
        let mut value = contents.value(now_ms);
        for node in self.nodes.iter().filter(|node| node.life == Life::Stale) {
            value["nodes"][node.entry.id()]["status"] = Status::STALE.into();
        }
        value
    }
}
