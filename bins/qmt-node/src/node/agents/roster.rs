//! Agents of peers: what this node tells of its own, and what it is told.

use mesh_gossip::State;
use mesh_identity::{NodeId, Role, ScopeId};
use mesh_sessions::agent::OpenTo;
use mesh_sessions::ids::AgentId;
use mesh_sessions::remote::RemoteHost;
use serde::{Deserialize, Serialize};

use super::super::offers::{LOAD_KEY, LoadClass};
use super::super::{Node, views};

/// The keys of the agents in a record: those that members may use, and those that everybody may.
pub(crate) const MEMBERS_KEY: &str = "agents/member";
pub(crate) const CLIENTS_KEY: &str = "agents/client";

/// The bound of a value in gossip.
const VALUE_BYTES_MAX: usize = 4 * 1024;
/// The longest description that is told, bytes: whoever wants more asks the agent's node.
const DESCRIPTION_BYTES_MAX: usize = 200;
/// Agents that are believed of one node.
const AGENTS_MAX: usize = 64;

/// An agent as its node tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct AgentTold {
    id: AgentId,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<String>,
}

/// An agent of a peer.
#[derive(Debug, Clone)]
pub(crate) struct PeerAgent {
    pub(crate) scope: ScopeId,
    pub(crate) node: NodeId,
    pub(crate) node_name: String,
    pub(crate) id: AgentId,
    pub(crate) description: String,
    pub(crate) model: Option<String>,
    pub(crate) labels: Vec<String>,
    pub(crate) is_busy: bool,
}

impl Node {
    /// Our agents for our record, by who may begin sessions with them.
    pub(crate) fn told_agents(&self) -> [(&'static str, Role, Vec<u8>); 2] {
        let sessions = self.running_sessions();
        let agents = sessions.map(|sessions| sessions.agents(&self.owner())).unwrap_or_default();
        let of = |open_to: OpenTo| {
            let told = agents.iter().filter(|agent| agent.open_to == open_to).map(|agent| AgentTold {
                id: agent.id.clone(),
                description: cut(&agent.description, DESCRIPTION_BYTES_MAX).to_owned(),
                model: Some(agent.model.clone()),
            });
            encode(told.collect())
        };
        [(MEMBERS_KEY, Role::Member, of(OpenTo::Members)), (CLIENTS_KEY, Role::Client, of(OpenTo::Clients))]
    }

    /// Agents of peers that are there, the best choice first: idle, and linked directly.
    pub(crate) fn peer_agents(&self) -> Vec<PeerAgent> {
        let links = self.transport().links();
        let mut ranked: Vec<(bool, bool, PeerAgent)> = Vec::new();
        for scope in self.scopes().list() {
            let Some(gossip) = self.gossip(&scope.id()) else { continue };
            for member in gossip.members().iter().filter(|member| member.state != State::Down) {
                let value = |key: &str| member.value(key).map(|bytes| bytes.as_ref());
                let load = value(LOAD_KEY).map_or(LoadClass::Unknown, LoadClass::read);
                let is_busy = matches!(load, LoadClass::Busy | LoadClass::Full);
                let is_far =
                    !links.iter().any(|link| link.peer.scope == scope.id() && link.peer.id == member.id);
                let keys: &[&str] = if scope.grant.role == Role::Member {
                    &[MEMBERS_KEY, CLIENTS_KEY]
                } else {
                    &[CLIENTS_KEY]
                };
                let labels = views::node_facts(member).labels;
                for told in keys.iter().filter_map(|key| value(key)).flat_map(decode) {
                    let known = |(.., agent): &(bool, bool, PeerAgent)| {
                        agent.node == member.id && agent.id == told.id
                    };
                    if ranked.iter().any(known) {
                        continue;
                    }
                    ranked.push((
                        is_busy,
                        is_far,
                        PeerAgent {
                            scope: scope.id(),
                            node: member.id,
                            node_name: self.routed_name(&scope.id(), member).to_string(),
                            id: told.id,
                            description: told.description,
                            model: told.model,
                            labels: labels.clone(),
                            is_busy,
                        },
                    ));
                }
            }
        }
        ranked.sort_by_key(|(is_busy, is_far, _)| (*is_busy, *is_far));
        ranked.into_iter().map(|(.., agent)| agent).collect()
    }

    /// The peers that host agents for this node.
    pub(super) fn peers_with_sessions(&self) -> Vec<RemoteHost> {
        let mut hosts: Vec<RemoteHost> = Vec::new();
        for agent in self.peer_agents() {
            if !hosts.iter().any(|host| host.node() == agent.node) {
                hosts.push(self.remote_host(agent.scope, agent.node));
            }
        }
        hosts
    }
}

/// The value for the record, empty when there is nothing to tell; what finds no room is not told.
fn encode(mut told: Vec<AgentTold>) -> Vec<u8> {
    told.truncate(AGENTS_MAX);
    loop {
        if told.is_empty() {
            return Vec::new();
        }
        let bytes = serde_json::to_vec(&told).unwrap_or_default();
        if bytes.len() <= VALUE_BYTES_MAX {
            return bytes;
        }
        told.pop();
    }
}

fn decode(bytes: &[u8]) -> Vec<AgentTold> {
    let mut told: Vec<AgentTold> = serde_json::from_slice(bytes).unwrap_or_default();
    told.truncate(AGENTS_MAX);
    for agent in &mut told {
        agent.description = cut(&agent.description, DESCRIPTION_BYTES_MAX).to_owned();
    }
    told
}

fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_not_told_and_lies_are_bounded() {
        let agent = |number: usize| AgentTold {
            id: format!("agent-{number}").parse().unwrap(),
            description: "x".repeat(DESCRIPTION_BYTES_MAX),
            model: Some("m".to_owned()),
        };
        let bytes = encode((0..100).map(agent).collect());
        assert!(bytes.len() <= VALUE_BYTES_MAX);
        let told = decode(&bytes);
        assert!(!told.is_empty() && told.iter().enumerate().all(|(number, told)| *told == agent(number)));
        assert_eq!(encode(Vec::new()), Vec::<u8>::new());
        let long = serde_json::json!([{"id": "a", "description": "y".repeat(3000), "colour": 1}]);
        assert_eq!(decode(long.to_string().as_bytes())[0].description.len(), DESCRIPTION_BYTES_MAX);
        assert_eq!(decode(b"{"), []);
    }
}
