//! Whose models the agents of this node ask, as configured and as changed at runtime.

use std::collections::BTreeMap;

use mesh_control::{AgentRouteView, ApiError, ErrorCode, SetAgentRoute};
use mesh_routing::ProviderTarget;

use super::super::{Node, chain};
use super::all_entries;
use crate::config::AgentEntry;
use crate::store::StoreError;

/// Where routes that were set are kept: targets by agents, JSON.
const ROUTES_KEY: &str = "agent_routes";

impl Node {
    /// The routes of the configuration, and over them those that were set.
    pub(crate) async fn set_routing_policies(&self) -> Result<(), StoreError> {
        let set = self.set_routes().await?;
        self.router().update(|table| {
            for entry in all_entries(self.config()) {
                let target = set.get(entry.id.as_str()).cloned().or_else(|| self.configured(entry));
                table.set_policy(entry.id.as_str(), target);
            }
        });
        Ok(())
    }

    pub(crate) async fn agent_routes(&self) -> Result<Vec<AgentRouteView>, ApiError> {
        let set = self.set_routes().await.map_err(|error| failed(&error))?;
        Ok(all_entries(self.config()).map(|entry| self.agent_route(entry, &set)).collect())
    }

    pub(crate) async fn set_agent_route(&self, route: SetAgentRoute) -> Result<AgentRouteView, ApiError> {
        let found = all_entries(self.config()).find(|entry| entry.id.as_str() == route.agent);
        let entry = found.ok_or_else(|| {
            ApiError::new(ErrorCode::UnknownAgent, format!("there is no agent {} here", route.agent))
                .with_mend("`qmt-cli agents` lists those that there are")
        })?;
        let target = match route.to.as_deref() {
            None => None,
            Some("any") => Some(ProviderTarget::Any),
            Some("local") => Some(ProviderTarget::Local),
            Some(node) => match self.resolve_node(node, None)?.1 {
                me if me == self.id() => Some(ProviderTarget::Local),
                // A name stays one: it may pass to another node.
                id if node.len() < id.to_string().len() && id.to_string().starts_with(node) => {
                    Some(ProviderTarget::Peer(id.to_string()))
                }
                _ => Some(ProviderTarget::Peer(node.to_owned())),
            },
        };
        let mut set = self.set_routes().await.map_err(|error| failed(&error))?;
        match target {
            Some(target) => drop(set.insert(route.agent, target)),
            None => drop(set.remove(&route.agent)),
        }
        let text = serde_json::to_string(&set).unwrap_or_default();
        self.store().set_kv(ROUTES_KEY, Some(&text)).await.map_err(|error| failed(&error))?;
        self.set_routing_policies().await.map_err(|error| failed(&error))?;
        Ok(self.agent_route(entry, &set))
    }

    fn agent_route(&self, entry: &AgentEntry, set: &BTreeMap<String, ProviderTarget>) -> AgentRouteView {
        let policy = self.router().snapshot().policy(entry.id.as_str());
        let (to, node) = match &policy.provider_target {
            ProviderTarget::Any => ("any".to_owned(), None),
            ProviderTarget::Local => ("local".to_owned(), Some(self.id())),
            ProviderTarget::Peer(name) => (name.clone(), policy.resolved_provider_node_id),
        };
        AgentRouteView {
            agent: entry.id.to_string(),
            model: entry.model.clone(),
            to,
            node: node.map(|node| node.to_string()),
            set: set.contains_key(entry.id.as_str()),
        }
    }

    /// A name of `[[mesh.peers]]` with an id stands for that, every other for whoever's grant carries it.
    fn configured(&self, entry: &AgentEntry) -> Option<ProviderTarget> {
        let name = entry.peer.as_ref()?;
        let named = self.config().mesh.peers.iter().find(|peer| peer.name.as_ref() == Some(name));
        let id = named.and_then(|peer| peer.id).map(|id| id.to_string());
        Some(ProviderTarget::Peer(id.unwrap_or_else(|| name.clone())))
    }

    async fn set_routes(&self) -> Result<BTreeMap<String, ProviderTarget>, StoreError> {
        let text = self.store().kv(ROUTES_KEY).await?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }
}

fn failed(error: &StoreError) -> ApiError {
    ApiError::new(ErrorCode::Storage, format!("the routes could not be kept: {}", chain(error)))
}
