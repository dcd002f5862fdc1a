//! The mesh for programs that embed a node and use agents of others.

use std::sync::{Arc, Weak};

use mesh_gossip::State;
use mesh_identity::{NodeId, ScopeId};
use mesh_sessions::remote::{NodeInfo, Nodes, RemoteAgents};
use mesh_transport::PathKind;

use super::super::offers::{OfferFacts, OfferState};
use super::super::{Inner, Node, facts, views};

struct MeshNodes(Weak<Inner>);

impl Node {
    /// The agents of other nodes: sessions are begun with them, attached to, forked and resumed by the names of nodes. It does
    /// not keep the node running.
    pub fn remote_agents(&self) -> RemoteAgents {
        let nodes = Arc::new(MeshNodes(Arc::downgrade(&self.inner)));
        RemoteAgents::new(self.transport().clone(), nodes, self.remote_config())
    }

    /// Members that are there, those first that host agents for this node, idle and linked ones before others.
    fn node_infos(&self) -> Vec<NodeInfo> {
        let agents = self.peer_agents();
        let links = self.transport().links();
        let mut infos: Vec<NodeInfo> = Vec::new();
        for scope in self.scopes().list() {
            let Some(gossip) = self.gossip(&scope.id()) else { continue };
            for member in gossip.members().iter().filter(|member| member.state != State::Down) {
                if let Some(known) = infos.iter_mut().find(|info| info.peer_id == member.id) {
                    known.scopes.push(scope.id());
                    continue;
                }
                let link =
                    links.iter().find(|link| link.peer.scope == scope.id() && link.peer.id == member.id);
                let mut offers = facts::offers_of(member);
                offers.retain(|offer| offer.state == OfferState::Ready);
                let told = views::node_facts(member);
                infos.push(NodeInfo {
                    peer_id: member.id,
                    name: scope.uninvited.is_none().then(|| member.name.to_string()),
                    scopes: vec![scope.id()],
                    providers: providers(&offers),
                    models: offers.into_iter().map(|offer| offer.model).collect(),
                    agents: Vec::new(),
                    capabilities: told.labels,
                    version: told.version,
                    rtt: link.and_then(|link| link.path.rtt),
                    path: link.map(|link| match link.path.kind {
                        PathKind::Relayed => "relayed".to_owned(),
                        _ => "direct".to_owned(),
                    }),
                });
            }
        }
        let place = |info: &NodeInfo| agents.iter().position(|agent| agent.node == info.peer_id);
        infos.sort_by_key(|info| place(info).unwrap_or(usize::MAX));
        for info in &mut infos {
            let own = agents.iter().filter(|agent| agent.node == info.peer_id);
            info.agents = own.map(|agent| agent.id.to_string()).collect();
        }
        infos
    }
}

/// By what a node has its models. The names of providers are their owners' affair and not told.
fn providers(offers: &[OfferFacts]) -> Vec<String> {
    let has = |provider: bool| offers.iter().any(|offer| offer.provider == provider);
    let words = [(false, "llama.cpp"), (true, "api")];
    words.into_iter().filter(|(provider, _)| has(*provider)).map(|(_, word)| word.to_owned()).collect()
}

impl MeshNodes {
    fn node(&self) -> Option<Node> {
        self.0.upgrade().map(|inner| Node { inner, _last_handle: None })
    }
}

impl Nodes for MeshNodes {
    fn nodes(&self) -> Vec<NodeInfo> {
        self.node().map(|node| node.node_infos()).unwrap_or_default()
    }

    fn find(&self, name: &str) -> Option<(ScopeId, NodeId)> {
        let node = self.node()?;
        node.resolve_node(name, None).ok().filter(|(_, found)| *found != node.id())
    }
}
