//! What the control API shows, from the node's state at this moment.

use std::collections::BTreeMap;
use std::time::Instant;

use mesh_control::{
    AnswerCounts, LinkCounts, MemoryView, ModelState, ModelView, NodeState, NodeView, PathKind as PathView,
    ProviderKind, ProviderView, ScopeStatus, Status, TunnelCounts,
};
use mesh_gossip::{Member, State};
use mesh_identity::{NodeAddr, NodeId, Role};
use mesh_inference::backend::{BackendKind, BackendState};
use mesh_transport::{LinkFacts, PathKind};

use super::offers::{NODE_KEY, NodeFacts, OfferFacts, OfferState};
use super::scopes::Scope;
use super::serving::record::{ServingFacts, decode};
use super::{Node, audit, copied, facts, renew, ways};

impl Node {
    /// The node at this moment.
    pub(crate) async fn status(&self) -> Status {
        let links = self.transport().links();
        let count = |kind: PathKind| {
            u32::try_from(links.iter().filter(|link| link.path.kind == kind).count()).unwrap_or(u32::MAX)
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node_id: self.id().to_string(),
            node_name: self.name().to_string(),
            pid: std::process::id(),
            uptime_secs: self.started().elapsed().as_secs(),
            gateway_url: self.gateway_url(),
            console_url: self.console().map(|(url, _)| url),
            scopes: self.scopes().list().iter().map(|scope| self.scope_status(scope)).collect(),
            links: LinkCounts {
                direct: count(PathKind::Direct) + count(PathKind::Memory),
                relayed: count(PathKind::Relayed),
            },
            tunnels: self.tunnel_counts(),
            answers: self.answer_counts(),
            models: self.local_models(),
            addresses: self.addresses(),
            warnings: self.warnings(),
            health: self.health(),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let copied = self.inner.copied_keys.sentences(Instant::now()).into_iter();
        let copied = copied.map(|sentence| format!("{sentence}: {}", copied::MEND));
        let trail = self.trail_fault().map(|fault| format!("{fault}: {}", audit::MEND));
        let ended = self.ended_memberships().into_iter();
        let ended = ended.map(|sentence| format!("{sentence}: {}", renew::END_MEND));
        self.config().warnings.iter().cloned().chain(copied).chain(ended).chain(trail).collect()
    }

    fn scope_status(&self, scope: &Scope) -> ScopeStatus {
        let gossip = self.gossip(&scope.id());
        let alive = gossip.as_ref().map_or(0, |gossip| gossip.members().alive().count());
        let traffic = gossip.map(|gossip| gossip.metrics()).unwrap_or_default();
        ScopeStatus {
            id: scope.id().to_string(),
            name: scope.name.clone(),
            role: role(scope.grant.role),
            founder: scope.is_founder(),
            trust: scope.uninvited.as_ref().map(|uninvited| uninvited.rule().to_owned()),
            members_alive: u32::try_from(alive + 1).unwrap_or(u32::MAX),
            grant_expires_at: Some(scope.grant.expires_at.0),
            gossip_bytes_sent: traffic.bytes_sent,
            gossip_bytes_received: traffic.bytes_received,
        }
    }

    fn tunnel_counts(&self) -> TunnelCounts {
        let (carried, rpc) = (self.inner.tunnels.stats(), self.inner.tunnels.rpc_stats());
        TunnelCounts {
            sent_bytes: carried.to_peers_bytes,
            received_bytes: carried.from_peers_bytes,
            weights_sent_bytes: rpc.weights_sent_bytes,
            weights_by_reference_bytes: rpc.weights_by_reference_bytes,
        }
    }

    fn answer_counts(&self) -> AnswerCounts {
        let stats = self.inner.gateway.stats();
        AnswerCounts {
            continued: stats.continued_total,
            lost: stats.lost_total,
            resumable: stats.resumable_total,
            resumed: stats.resumed_total,
            replicated_events: stats.replicated_total,
            replication_micros: stats.replication_micros_total,
            copies_lost: stats.replicas_lost_total,
            copies_replaced: stats.replicas_replaced_total,
            kept: stats.kept_answers,
        }
    }

    /// The nodes whose memory a claim names, by their names.
    fn workers(&self, serving: &[ServingFacts], model: &str) -> Vec<String> {
        let claim = serving.iter().find(|facts| facts.model == model).and_then(|facts| facts.claim.as_ref());
        let workers = claim.map(|claim| claim.workers.as_slice()).unwrap_or_default();
        let scope = self.placing_scope().map(|scope| scope.id());
        let name = |worker: &NodeId| match scope {
            _ if *worker == self.id() => self.name().to_string(),
            Some(scope) => self.member_name(&scope, worker),
            None => worker.short().to_string(),
        };
        workers.iter().map(name).collect()
    }

    pub(crate) fn local_models(&self) -> Vec<String> {
        let mut models: Vec<String> = self
            .backends()
            .list()
            .iter()
            .filter(|backend| backend.is_ready())
            .map(|backend| backend.model.clone())
            .collect();
        models.sort();
        models.dedup();
        models
    }

    fn addresses(&self) -> Vec<String> {
        let mut all: Vec<String> =
            self.scopes().list().iter().flat_map(|scope| addresses(&self.own_addr(&scope.id()))).collect();
        all.sort();
        all.dedup();
        all
    }

    /// All nodes this one knows, itself first in each scope; those that only the agent channel's registry knows come last.
    pub(crate) fn nodes(&self) -> Vec<NodeView> {
        let links = self.transport().links();
        let mut views = Vec::new();
        for scope in self.scopes().list() {
            views.push(self.own_view(&scope));
            let Some(gossip) = self.gossip(&scope.id()) else { continue };
            let members = gossip.members();
            let mut others: Vec<NodeView> = members
                .iter()
                .map(|member| {
                    let link =
                        links.iter().find(|link| link.peer.scope == scope.id() && link.peer.id == member.id);
                    self.member_view(&scope, member, link)
                })
                .collect();
            others.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
            views.extend(others);
        }
        let registered = self.registry_nodes(&views);
        views.extend(registered);
        views
    }

    fn own_view(&self, scope: &Scope) -> NodeView {
        let facts = self.own_facts();
        NodeView {
            id: self.id().to_string(),
            name: scope.grant.name.to_string(),
            scope: scope.id().to_string(),
            scope_name: scope.name.clone(),
            role: role(scope.grant.role),
            state: NodeState::Me,
            addresses: addresses(&self.own_addr(&scope.id())),
            models: self.local_models(),
            since: self.started_at(),
            ..described(&facts)
        }
    }

    fn member_view(&self, scope: &Scope, member: &Member, link: Option<&LinkFacts>) -> NodeView {
        let facts = node_facts(member);
        NodeView {
            id: member.id.to_string(),
            name: member.name.to_string(),
            scope: scope.id().to_string(),
            scope_name: scope.name.clone(),
            role: role(role_here(scope, member)),
            state: match member.state {
                State::Alive => NodeState::Alive,
                State::Suspect => NodeState::Suspect,
                State::Down => NodeState::Down,
            },
            path: link.map_or(PathView::None, |link| path_view(link.path.kind)),
            transport: link.map(|link| ways::transport(link.path.transport).to_owned()),
            unreached: match link {
                Some(_) => None,
                None => self.transport().unreached(&scope.id(), &member.id).map(|error| super::chain(&error)),
            },
            rtt_ms: link.and_then(|link| link.path.rtt).map(|rtt| rtt.as_secs_f64() * 1e3),
            addresses: addresses(&member.addr),
            models: facts::offers_of(member)
                .into_iter()
                .filter(|offer| offer.state == OfferState::Ready)
                .map(|o| o.model)
                .collect(),
            since: self.member_since(&scope.id(), &member.id),
            ..described(&facts)
        }
    }

    /// The models that this node can reach, by name.
    pub(crate) fn models(&self) -> Vec<ModelView> {
        let mut models: BTreeMap<String, ModelView> = BTreeMap::new();
        for backend in self.backends().list() {
            let state = backend.state.borrow().clone();
            let size = self.inner.serving.size(&backend.model);
            let model = models.entry(backend.model.clone()).or_default();
            model.size_bytes = size.map(|size| size.file_bytes);
            model.context_tokens = size.map(|size| size.context_tokens);
            model.providers.push(ProviderView {
                node: self.id().to_string(),
                node_name: self.name().to_string(),
                local: true,
                state: backend_state(&state),
                kind: match backend.kind {
                    BackendKind::Local => ProviderKind::Local,
                    _ => ProviderKind::Provider,
                },
                detail: state.to_string(),
                workers: if backend.kind == BackendKind::Local {
                    self.workers(&self.inner.serving.told(), &backend.model)
                } else {
                    Vec::new()
                },
            });
        }
        for (_, member, offer) in self.visible_offers() {
            let model = models.entry(offer.model.clone()).or_default();
            model.size_bytes = model.size_bytes.or(offer.size_bytes);
            model.context_tokens = model.context_tokens.or(offer.context_tokens);
            let workers = self.workers(&decode(&member), &offer.model);
            model.providers.push(ProviderView { workers, ..remote_provider(&member, offer) });
        }
        let named = |(name, model): (String, ModelView)| {
            let state = model.providers.iter().map(|provider| provider.state).min();
            ModelView { name, state: state.unwrap_or(ModelState::Cold), ..model }
        };
        models.into_iter().map(named).collect()
    }

    /// One model as it is now.
    pub(crate) fn model(&self, name: &str) -> Option<ModelView> {
        self.models().into_iter().find(|model| model.name == name)
    }
}

fn remote_provider(member: &Member, offer: OfferFacts) -> ProviderView {
    ProviderView {
        node: member.id.to_string(),
        node_name: member.name.to_string(),
        local: false,
        state: match offer.state {
            OfferState::Ready => ModelState::Ready,
            OfferState::Loading => ModelState::Loading,
            OfferState::Failed => ModelState::Failed,
            OfferState::Stopped => ModelState::Stopped,
            OfferState::Unknown => ModelState::Unknown,
        },
        kind: if offer.provider { ProviderKind::Provider } else { ProviderKind::Local },
        detail: offer.detail,
        workers: Vec::new(),
    }
}

fn described(facts: &NodeFacts) -> NodeView {
    NodeView {
        capabilities: facts.labels.clone(),
        memory: facts.memory.map(|memory| MemoryView {
            total_bytes: memory.total,
            free_bytes: memory.free,
            cap_bytes: memory.cap,
        }),
        version: Some(facts.version.clone()).filter(|version| !version.is_empty()),
        ..NodeView::default()
    }
}

pub(crate) fn node_facts(member: &Member) -> NodeFacts {
    member.value(NODE_KEY).and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default()
}

pub(crate) fn backend_state(state: &BackendState) -> ModelState {
    match state {
        BackendState::Ready => ModelState::Ready,
        BackendState::Loading(_) => ModelState::Loading,
        BackendState::Failed { .. } => ModelState::Failed,
        BackendState::Stopped => ModelState::Stopped,
        _ => ModelState::Unknown,
    }
}

/// What a member is: in the scope of uninvited peers it is for this node to say.
pub(crate) fn role_here(scope: &Scope, member: &Member) -> Role {
    let uninvited = scope.uninvited.as_ref();
    uninvited.map_or(member.role, |uninvited| uninvited.role_of(&member.id).unwrap_or(Role::Client))
}

pub(crate) fn role(role: Role) -> mesh_control::Role {
    match role {
        Role::Member => mesh_control::Role::Member,
        Role::Client => mesh_control::Role::Client,
    }
}

pub(crate) fn path_view(kind: PathKind) -> PathView {
    match kind {
        PathKind::Direct => PathView::Direct,
        PathKind::Relayed => PathView::Relayed,
        PathKind::Memory => PathView::Memory,
    }
}

/// Addresses as people read them.
pub(crate) fn addresses(addr: &NodeAddr) -> Vec<String> {
    let sockets = addr.direct.iter().chain(&addr.lan).map(ToString::to_string);
    sockets.chain(addr.relay.iter().cloned()).collect()
}
