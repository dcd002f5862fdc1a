//! Whose model an agent uses, and by which names peers are called.

use std::collections::{BTreeMap, BTreeSet};

use mesh_identity::{NodeId, ScopeId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Provider;

/// Where an agent's model is to be found.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderTarget {
    /// This node only: nothing leaves it.
    Local,
    /// The peer of this name or id.
    Peer(String),
    /// This node first, then any peer.
    #[default]
    Any,
}

/// The rule for one agent, with its peer's name resolved in the snapshot at hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutingPolicy {
    /// The agent.
    pub agent_id: String,
    /// What was asked for.
    pub provider_target: ProviderTarget,
    /// The peer that the name stands for now; `None` when it names nobody, or more than one.
    pub resolved_provider_node_id: Option<NodeId>,
}

impl RoutingPolicy {
    /// The provider for a [`Query`](crate::Query); `None` when the peer's name is not resolved.
    pub fn provider(&self) -> Option<Provider> {
        match self.provider_target {
            ProviderTarget::Local => Some(Provider::Local),
            ProviderTarget::Any => Some(Provider::Any),
            ProviderTarget::Peer(_) => self.resolved_provider_node_id.map(Provider::Node),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Policies(BTreeMap<String, RoutingPolicy>);

impl Policies {
    pub(crate) fn new(rules: &BTreeMap<String, ProviderTarget>, names: &Names) -> Self {
        let resolve = |(agent_id, target): (&String, &ProviderTarget)| {
            let resolved_provider_node_id = match target {
                ProviderTarget::Peer(name) => names.resolve_anywhere(name).ok(),
                ProviderTarget::Local | ProviderTarget::Any => None,
            };
            let policy = RoutingPolicy {
                agent_id: agent_id.clone(),
                provider_target: target.clone(),
                resolved_provider_node_id,
            };
            (agent_id.clone(), policy)
        };
        Self(rules.iter().map(resolve).collect())
    }

    pub(crate) fn of(&self, agent_id: &str) -> RoutingPolicy {
        self.0.get(agent_id).cloned().unwrap_or_else(|| RoutingPolicy {
            agent_id: agent_id.to_owned(),
            provider_target: ProviderTarget::Any,
            resolved_provider_node_id: None,
        })
    }
}

/// The text names no one peer. Nothing changed; resolve again when the mesh has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// No configured key and no grant in the request's scopes carries the name.
    #[error("no peer is called {name} (known: {})", known.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names that would have been understood, sorted.
        known: Vec<String>,
    },
    /// Grants of several nodes carry the name.
    #[error("{} peers are called {name}: use a node id", nodes.len())]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// The nodes.
        nodes: Vec<NodeId>,
    },
}

/// The names of peers: from the configuration by key, and from the grants that peers showed. What a peer calls itself
/// is never looked at.
#[derive(Debug, Clone, Default)]
pub struct Names {
    configured: BTreeMap<String, NodeId>,
    granted: BTreeMap<String, BTreeMap<ScopeId, BTreeSet<NodeId>>>,
}

impl Names {
    /// Names by key, and names by grant in a scope.
    pub fn new(
        configured: BTreeMap<String, NodeId>,
        granted: impl IntoIterator<Item = (ScopeId, String, NodeId)>,
    ) -> Self {
        let mut names = Self { configured, granted: BTreeMap::new() };
        for (scope, name, node) in granted {
            names.granted.entry(name).or_default().entry(scope).or_default().insert(node);
        }
        names
    }

    /// The peer that the text stands for: a node id stands for itself; a configured name wins over a granted one; a
    /// granted name counts in the request's scopes only, in the preferred one first.
    ///
    /// # Errors
    /// When it stands for nobody or for several.
    pub fn resolve(
        &self,
        name: &str,
        scopes: &[ScopeId],
        preferred: Option<&ScopeId>,
    ) -> Result<NodeId, ResolveError> {
        if let Some(node) = self.by_key(name) {
            return Ok(node);
        }
        let in_scopes = self.granted.get(name);
        if let Some(scope) = preferred.filter(|scope| scopes.contains(scope))
            && let Some(nodes) = in_scopes.and_then(|by_scope| by_scope.get(scope))
        {
            return one_of(name, nodes.iter().copied().collect());
        }
        let asked = in_scopes.into_iter().flatten().filter(|(scope, _)| scopes.contains(scope));
        let nodes: BTreeSet<_> = asked.flat_map(|(_, nodes)| nodes).copied().collect();
        if nodes.is_empty() {
            return Err(ResolveError::Unknown {
                name: name.to_owned(),
                known: self.known(|scope| scopes.contains(scope)),
            });
        }
        one_of(name, nodes)
    }

    /// As [`Names::resolve`] over all scopes that this node is in.
    fn resolve_anywhere(&self, name: &str) -> Result<NodeId, ResolveError> {
        if let Some(node) = self.by_key(name) {
            return Ok(node);
        }
        let nodes: BTreeSet<_> =
            self.granted.get(name).into_iter().flatten().flat_map(|(_, nodes)| nodes).copied().collect();
        if nodes.is_empty() {
            return Err(ResolveError::Unknown { name: name.to_owned(), known: self.known(|_| true) });
        }
        one_of(name, nodes)
    }

    fn by_key(&self, name: &str) -> Option<NodeId> {
        name.parse().ok().or_else(|| self.configured.get(name).copied())
    }

    fn known(&self, asked: impl Fn(&ScopeId) -> bool) -> Vec<String> {
        let granted =
            self.granted.iter().filter(|(_, by_scope)| by_scope.keys().any(&asked)).map(|(name, _)| name);
        let all: BTreeSet<_> = self.configured.keys().chain(granted).cloned().collect();
        all.into_iter().collect()
    }
}

fn one_of(name: &str, nodes: BTreeSet<NodeId>) -> Result<NodeId, ResolveError> {
    let mut all = nodes.iter();
    match (all.next(), all.next()) {
        (Some(node), None) => Ok(*node),
        _ => Err(ResolveError::Ambiguous { name: name.to_owned(), nodes: nodes.into_iter().collect() }),
    }
}
