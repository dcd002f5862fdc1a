//! The facts as they come in, and the immutable snapshot that decisions read.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_identity::{NodeId, Role, ScopeId};

use crate::gauge::Gauge;
use crate::policy::Policies;
use crate::snapshot::{Candidate, Snapshot};
use crate::{Config, Labels, LocalFacts, OFFERS_MAX, PathMemory, PeerFacts, ProviderTarget, Target};

/// Everything the router knows. Written by whoever wires the node; [`Router::update`](crate::Router::update) makes a
/// [`Snapshot`] of it.
#[derive(Debug, Default)]
pub struct Table {
    local: LocalFacts,
    scopes: BTreeMap<ScopeId, Scope>,
    configured_names: BTreeMap<String, NodeId>,
    policies: BTreeMap<String, ProviderTarget>,
    paths: BTreeMap<NodeId, PathMemory>,
    gauges: BTreeMap<(Option<NodeId>, String), Arc<Gauge>>,
}

#[derive(Debug)]
struct Scope {
    role: Role,
    peers: BTreeMap<NodeId, PeerFacts>,
}

impl Table {
    /// Replaces what this node itself offers.
    pub fn set_local(&mut self, local: LocalFacts) {
        self.local = local;
    }

    /// This node is in the scope in this role; what peers share with the role is usable.
    pub fn set_scope(&mut self, scope: ScopeId, role: Role) {
        self.scopes.entry(scope).or_insert_with(|| Scope { role, peers: BTreeMap::new() }).role = role;
    }

    /// This node has left the scope: it and its peers are forgotten.
    pub fn remove_scope(&mut self, scope: &ScopeId) {
        self.scopes.remove(scope);
        for memory in self.paths.values_mut() {
            memory.settle(*scope, None);
        }
    }

    /// Replaces what is known of a peer in a scope. Nothing happens when this node is not in the scope
    /// ([`Table::set_scope`] comes first).
    ///
    /// The link's round trip is smoothed by [`PathMemory`], so the caller hands in what it measured last.
    pub fn set_peer(&mut self, scope: ScopeId, node: NodeId, mut facts: PeerFacts) {
        let Some(entry) = self.scopes.get_mut(&scope) else { return };
        facts.offers.truncate(OFFERS_MAX);
        facts.link = self.paths.entry(node).or_default().settle(scope, facts.link);
        entry.peers.insert(node, facts);
    }

    /// Changes what is known of a peer, if it is known: for a link that came, went or changed its path.
    pub fn change_peer(&mut self, scope: &ScopeId, node: &NodeId, change: impl FnOnce(&mut PeerFacts)) {
        let known = self.scopes.get(scope).and_then(|entry| entry.peers.get(node));
        if let Some(mut facts) = known.cloned() {
            change(&mut facts);
            self.set_peer(*scope, *node, facts);
        }
    }

    /// Forgets a peer in a scope.
    pub fn remove_peer(&mut self, scope: &ScopeId, node: &NodeId) {
        if let Some(entry) = self.scopes.get_mut(scope) {
            entry.peers.remove(node);
        }
        if let Some(memory) = self.paths.get_mut(node) {
            memory.settle(*scope, None);
        }
    }

    /// The peers that are known in a scope.
    pub fn peers(&self, scope: &ScopeId) -> impl Iterator<Item = NodeId> {
        self.scopes.get(scope).into_iter().flat_map(|entry| entry.peers.keys().copied())
    }

    /// Replaces the names of peers that the configuration gives by key; they win over names in grants.
    pub fn set_configured_names(&mut self, names: impl IntoIterator<Item = (String, NodeId)>) {
        self.configured_names = names.into_iter().collect();
    }

    /// Says where an agent's model is to be found; `None` removes the rule, and any node will do.
    pub fn set_policy(&mut self, agent_id: impl Into<String>, target: Option<ProviderTarget>) {
        let agent_id = agent_id.into();
        match target {
            Some(target) => self.policies.insert(agent_id, target),
            None => self.policies.remove(&agent_id),
        };
    }

    /// The snapshot of what is known. Gauges of targets that are gone are dropped, and with them what was measured.
    pub(crate) fn snapshot(&mut self, config: &Arc<Config>) -> Snapshot {
        let mut gauges = BTreeMap::new();
        let mut models: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
        let mut add =
            |target: Target, role, peer: Option<&PeerFacts>, labels: &Labels, offer: &crate::Offer| {
                let key = (target.node(), offer.model.clone());
                let gauge = gauges
                    .entry(key)
                    .or_insert_with_key(|key| self.gauges.get(key).cloned().unwrap_or_default());
                models.entry(offer.model.clone()).or_default().push(Candidate {
                    target,
                    state: offer.state,
                    share: offer.share,
                    labels: labels.union(&offer.labels).cloned().collect(),
                    slots: offer.slots,
                    told_in_flight: offer.in_flight,
                    told_under_way: peer.map_or(0, |peer| peer.under_way),
                    role,
                    liveness: peer.map(|peer| peer.liveness),
                    link: peer.and_then(|peer| peer.link),
                    gauge: Arc::clone(gauge),
                });
            };
        for offer in &self.local.offers {
            add(Target::Local, Role::Member, None, &self.local.labels, offer);
        }
        for (scope, entry) in &self.scopes {
            for (node, peer) in &entry.peers {
                for offer in &peer.offers {
                    let target = Target::Peer { scope: *scope, node: *node };
                    add(target, entry.role, Some(peer), &peer.labels, offer);
                }
            }
        }
        self.gauges = gauges;
        self.paths.retain(|node, _| self.scopes.values().any(|entry| entry.peers.contains_key(node)));
        let names = self.names();
        let policies = Policies::new(&self.policies, &names);
        let links = self.links();
        Snapshot { config: Arc::clone(config), models, names, policies, links }
    }

    fn names(&self) -> crate::Names {
        let granted = self.scopes.iter().flat_map(|(scope, entry)| {
            entry.peers.iter().map(move |(node, peer)| (*scope, peer.name.as_str().to_owned(), *node))
        });
        crate::Names::new(self.configured_names.clone(), granted)
    }

    fn links(&self) -> BTreeMap<NodeId, Vec<crate::PeerRoute>> {
        let mut links: BTreeMap<NodeId, Vec<crate::PeerRoute>> = BTreeMap::new();
        for (scope, entry) in &self.scopes {
            for (node, peer) in &entry.peers {
                if peer.liveness != crate::Liveness::Down {
                    links.entry(*node).or_default().push(crate::PeerRoute { scope: *scope, link: peer.link });
                }
            }
        }
        links
    }
}
