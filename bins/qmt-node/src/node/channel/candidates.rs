//! Agents of nodes that the registry knows and the mesh does not reach.

use std::time::Duration;

use mesh_identity::{NodeId, NodeName, ScopeId};
use mesh_sessions::chain::AgentAt;
use mesh_sessions::channel::{AskError, Heard, MessageRequest, Outgoing, Target};
use mesh_sessions::ids::AgentId;
use mesh_sessions::tools::{Candidate, Order};
use serde_json::Value;
use tokio::time::Instant;

use super::super::Node;
use super::super::agents::delegate::NotDone;
use super::lock;

/// So long a node that did not answer comes after the others.
const AVOIDED: Duration = Duration::from_secs(30);
/// Agents of one node that are believed.
const AGENTS_MAX: usize = 64;

/// A node of the registry, as its entry says.
struct Registered {
    name: NodeName,
    /// Its id in the mesh, when it has one.
    node: Option<NodeId>,
    agents: Vec<AgentId>,
    labels: Vec<String>,
}

impl Node {
    /// Agents of nodes of the registry that are not among `known`; those of nodes that did not answer lately last.
    pub(crate) fn channel_candidates(&self, known: &[Candidate]) -> Vec<Candidate> {
        let is_known = |at: &AgentAt, name: &NodeName| {
            known.iter().any(|candidate| {
                candidate.at.agent == at.agent
                    && (candidate.at.node == at.node
                        || candidate
                            .node_name
                            .as_deref()
                            .is_some_and(|known| name.as_str().eq_ignore_ascii_case(known)))
            })
        };
        let mut candidates = Vec::new();
        for node in self.registered() {
            let id = self.placeholder_of(node.name.as_str());
            let is_avoided = self.is_avoided(&node.name);
            lock(&self.inner.channel.nodes).insert(id, node.name.clone());
            for agent in node.agents {
                let real = AgentAt { node: node.node.unwrap_or(id), agent: agent.clone() };
                if is_known(&real, &node.name) {
                    continue;
                }
                candidates.push(Candidate {
                    at: AgentAt { node: id, agent },
                    node_name: Some(node.name.to_string()),
                    description: "reached by the agent channel".to_owned(),
                    model: None,
                    labels: node.labels.clone(),
                    is_busy: is_avoided,
                });
            }
        }
        candidates.sort_by_key(|candidate| candidate.is_busy);
        candidates
    }

    /// The node of the registry that is called by this id here.
    pub(crate) fn channel_node(&self, id: &NodeId) -> Option<NodeName> {
        lock(&self.inner.channel.nodes).get(id).cloned()
    }

    /// Has an agent of a registry's node do the task. Dropped, it is cancelled there.
    pub(crate) async fn delegate_by_channel(
        &self,
        name: &NodeName,
        agent: &AgentId,
        order: &Order,
    ) -> Result<String, NotDone> {
        let not_begun = |why: String| NotDone { why, has_begun: false };
        let running = self.channel().ok_or_else(|| not_begun("this node has no certificate".to_owned()))?;
        let outgoing = self.outgoing(&running.tls.leaf().name, name, agent, order).map_err(not_begun)?;
        let failed = |error: AskError| {
            let is_unwell = match &error {
                AskError::Unreachable { .. } | AskError::Handshake { .. } | AskError::TimedOut(_) => true,
                AskError::Refused { status, .. } => matches!(*status, 429 | 503),
                _ => false,
            };
            if is_unwell {
                self.avoid(name);
            }
            NotDone { why: error.to_string(), has_begun: !error.has_not_begun() }
        };
        let target = Target::Node(name.clone());
        let asked = running.client.delegate(&target, &outgoing);
        let mut answering = tokio::select! {
            () = order.cancel.cancelled() => return Err(not_begun("cancelled".to_owned())),
            answering = asked => answering.map_err(&failed)?,
        };
        lock(&self.inner.channel.failed).remove(name);
        loop {
            let heard = tokio::select! {
                () = order.cancel.cancelled() => return Err(NotDone { why: "cancelled".to_owned(), has_begun: true }),
                heard = answering.next() => heard.map_err(&failed)?,
            };
            match heard {
                Heard::Begun { .. } => {}
                Heard::Text(text) => (order.printed)(&text),
                Heard::Done(done) => return Ok(done.response),
            }
        }
    }

    fn outgoing(
        &self,
        me: &NodeName,
        to: &NodeName,
        agent: &AgentId,
        order: &Order,
    ) -> Result<Outgoing, String> {
        let depth = order.chain.as_ref().map_or(0, |chain| chain.depth());
        // Signed hops are for those whose certificate says which node they are: without it nobody believes them.
        let is_node = self.channel().is_some_and(|running| running.tls.leaf().node.is_some());
        let registered = || self.registered().into_iter().find(|node| node.name == *to);
        let real = if is_node { registered().and_then(|node| node.node) } else { None };
        let chain = match real {
            None => None,
            Some(node) => {
                let scope = self.scope_of(&node).unwrap_or(ScopeId::lan(None));
                let at = AgentAt { node, agent: order.to.at.agent.clone() };
                Some(self.next_hop_to(&scope, agent.clone(), order, at).map_err(|error| error.to_string())?)
            }
        };
        let deadline = order.budget.until.time().map(|until| {
            until.0.saturating_sub(mesh_identity::UnixTime::now().0).max(1).saturating_mul(1000)
        });
        let request = MessageRequest {
            from_agent: format!("{agent}@{me}"),
            to_agent: Some(order.to.at.agent.to_string()),
            message: order.task.clone(),
            context: order.context.clone().map(Value::String),
            wait_for_response: Some(true),
            timeout_ms: deadline,
            chain_depth: Some(u32::try_from(depth).unwrap_or(u32::MAX)),
            model: None,
        };
        Ok(Outgoing { request, chain, key: uuid::Uuid::now_v7().to_string() })
    }

    /// The other nodes of the registry that are not known to be gone.
    fn registered(&self) -> Vec<Registered> {
        let (Some(running), Some(directory)) = (self.channel(), self.channel_directory()) else {
            return Vec::new();
        };
        let me = running.tls.leaf();
        let view = directory.view();
        let nodes = view["nodes"].as_object().into_iter().flat_map(|nodes| nodes.values());
        let is_there = |node: &&Value| !matches!(node["status"].as_str(), Some("offline" | "stale"));
        nodes.filter(is_there).filter_map(registered).filter(|node| !me.is_of(node.name.as_str())).collect()
    }

    fn avoid(&self, name: &NodeName) {
        let mut failed = lock(&self.inner.channel.failed);
        failed.retain(|_, since| since.elapsed() < AVOIDED);
        failed.insert(name.clone(), Instant::now());
    }

    fn is_avoided(&self, name: &NodeName) -> bool {
        lock(&self.inner.channel.failed).get(name).is_some_and(|since| since.elapsed() < AVOIDED)
    }
}

fn registered(node: &Value) -> Option<Registered> {
    let texts =
        |key: &str| node[key].as_array().into_iter().flatten().filter_map(Value::as_str).take(AGENTS_MAX);
    Some(Registered {
        name: NodeName::new(node["name"].as_str()?).ok()?,
        node: node["qmt"]["node"].as_str().and_then(|id| id.parse().ok()),
        agents: texts("agents").filter_map(|agent| agent.parse().ok()).collect(),
        labels: texts("capabilities").map(str::to_owned).collect(),
    })
}
