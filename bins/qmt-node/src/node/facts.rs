//! Facts on their way: our backends into our record, other members' records and our links into routing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::select_all;
use mesh_control::{ApiError, ErrorCode, EventKind, ModelView, RouteTarget, RouteView};
use mesh_gossip::{Audience, Gossip, Member, State};
use mesh_identity::{NodeId, NodeName, Role, ScopeId};
use mesh_inference::backend::{Backend, BackendKind, BackendState};
use mesh_inference::memory::Memory;
use mesh_routing::{
    Labels, LinkFacts, Liveness, LocalFacts, Network, NoRoute, Offer, OfferState as RoutedState, PeerFacts,
    Query, Share, Target,
};
use mesh_transport::{LinkFacts as TransportLink, PathKind, TransportKind};

use super::machine::{MACHINE_KEY, encode_disk};
use super::offers::{
    LOAD_KEY, LoadClass, MemoryFacts, NODE_KEY, NodeFacts, OfferFacts, OfferState, decode_offers,
    encode_offers,
};
use super::scopes::Scope;
use super::{Node, serving, views};

/// Facts are looked at this often even when nothing told of a change: round trips and free memory drift.
///
/// An hour in this crate's own tests, where whatever shows at all was told of.
pub(super) const LOOK: Duration = Duration::from_secs(if cfg!(test) { 3_600 } else { 2 });
/// Free memory is shown to the owner in steps of this many bytes.
const MEMORY_STEP: u64 = 256 * 1024 * 1024;
/// Others are told of it in this many parts of the whole, and no more often than this, so that the record of a node at work is
/// quiet: each change goes to every member.
const TOLD_PARTS: u64 = 16;
const TOLD_EVERY: Duration = Duration::from_secs(30);
/// Longest reason told to others, bytes.
const DETAIL_MAX: usize = 200;

/// What others were told last of what drifts by itself.
#[derive(Debug, Default)]
struct Told {
    memory: ToldMemory,
    load: ToldLoad,
}

/// The load that others were told of last.
#[derive(Debug, Default)]
struct ToldLoad(Option<(Instant, LoadClass)>);

impl ToldLoad {
    /// What others are told now: what they were told before, until that is a while ago.
    fn told(&mut self, load: LoadClass, now: Instant) -> LoadClass {
        match self.0 {
            Some((at, told)) if load == told || now.saturating_duration_since(at) < TOLD_EVERY => told,
            _ => self.0.insert((now, load)).1,
        }
    }
}

/// The free memory that others were told of last.
#[derive(Debug, Default)]
struct ToldMemory(Option<(Instant, u64)>);

impl ToldMemory {
    /// What others are told now: what they were told before, unless that is off by a part and a while ago.
    fn told(&mut self, memory: &MemoryFacts, now: Instant) -> u64 {
        let part = (memory.total / TOLD_PARTS).max(1);
        if let Some((at, told)) = self.0
            && (told.abs_diff(memory.free) < part || now.saturating_duration_since(at) < TOLD_EVERY)
        {
            return told;
        }
        let told = memory.free / part * part;
        self.0 = Some((now, told));
        told
    }
}

impl Node {
    /// Keeps routing up to date for as long as the node runs. It waits for nothing but the word that something changed, so
    /// that a doubt about a member reaches the next request.
    pub(crate) async fn keep_routes(self) {
        let mut told: Vec<ModelView> = Vec::new();
        loop {
            self.feed_router();
            self.tell_models(&mut told);
            tokio::select! {
                () = self.inner.routes_changed.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
                () = self.stopping().cancelled_owned() => return,
            }
        }
    }

    /// Keeps our record up to date for as long as the node runs.
    pub(crate) async fn keep_record(self) {
        let mut told = Told::default();
        loop {
            self.publish(&mut told).await;
            tokio::select! {
                () = self.inner.changed.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
                () = self.stopping().cancelled_owned() => return,
            }
        }
    }

    /// Wakes [`Node::keep_routes`] and [`Node::keep_record`] whenever a backend comes, goes or changes its state.
    pub(crate) async fn watch_backends(self) {
        let mut table = self.backends().watch();
        loop {
            table.mark_unchanged();
            let mut states: Vec<_> =
                self.backends().list().iter().map(|backend| backend.state.clone()).collect();
            for state in &mut states {
                state.mark_unchanged();
            }
            // Read after marking: what changed in between is seen here, what changes later wakes the select.
            self.refresh();
            let waits = states.iter_mut().map(|state| {
                Box::pin(async move {
                    if state.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                })
            });
            let any_state = async {
                if waits.len() == 0 { std::future::pending().await } else { select_all(waits).await.0 }
            };
            tokio::select! {
                changed = table.changed() => if changed.is_err() { return },
                () = any_state => {}
                () = self.stopping().cancelled_owned() => return,
            }
        }
    }

    /// Wakes [`Node::keep_record`] whenever memory is promised or given back: until others hear of it, nothing is built on it.
    pub(crate) async fn watch_memory(self) {
        let mut ledger = self.inner.lending.ledger().watch();
        loop {
            tokio::select! {
                changed = ledger.changed() => if changed.is_err() { return },
                () = self.stopping().cancelled_owned() => return,
            }
            self.refresh();
        }
    }

    fn feed_router(&self) {
        let links = self.transport().links();
        let scopes = self.scopes().list();
        let members: Vec<(ScopeId, Vec<Arc<Member>>)> = scopes
            .iter()
            .filter_map(|scope| {
                Some((scope.id(), self.gossip(&scope.id())?.members().iter().cloned().collect()))
            })
            .collect();
        let local = LocalFacts { offers: self.local_offers(), labels: self.labels() };
        let known: BTreeSet<ScopeId> = scopes.iter().map(Scope::id).collect();
        let gone: Vec<ScopeId> = {
            let mut fed = self.inner.fed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let gone = fed.difference(&known).copied().collect();
            *fed = known;
            gone
        };
        self.router().update(|table| {
            for scope in &gone {
                table.remove_scope(scope);
            }
            table.set_local(local);
            for scope in &scopes {
                table.set_scope(scope.id(), scope.grant.role);
            }
            for (scope, members) in &members {
                let is_gone = |node: &NodeId| !members.iter().any(|member| member.id == *node);
                for node in table.peers(scope).filter(is_gone).collect::<Vec<_>>() {
                    table.remove_peer(scope, &node);
                }
                for member in members {
                    let link =
                        links.iter().find(|link| link.peer.scope == *scope && link.peer.id == member.id);
                    let mut facts = peer_facts(member, link);
                    facts.name = self.routed_name(scope, member);
                    table.set_peer(*scope, member.id, facts);
                }
            }
        });
    }

    /// The name by which requests find a member: its grant's, and in the scope of uninvited peers, where everybody writes its
    /// own grant, the configuration's or the id.
    pub(crate) fn routed_name(&self, scope: &ScopeId, member: &Member) -> NodeName {
        match self.scopes().get(scope).and_then(|scope| scope.uninvited) {
            Some(uninvited) => {
                let id = member.id.to_string();
                NodeName::from_lossy(uninvited.name_of(&member.id).unwrap_or(&id))
            }
            None => member.name.clone(),
        }
    }

    fn local_offers(&self) -> Vec<Offer> {
        let offer = |backend: Arc<Backend>| {
            let state = backend.state.borrow().clone();
            Some(Offer {
                state: routed_state(&state)?,
                share: backend.share,
                slots: backend.slots.and_then(|slots| u32::try_from(slots).ok()),
                ..Offer::ready(backend.model.clone())
            })
        };
        self.backends().list().into_iter().filter_map(offer).collect()
    }

    fn labels(&self) -> Labels {
        self.config().mesh.labels.iter().cloned().collect()
    }

    /// Puts our offers and facts into our record in every scope; gossip sends only what changed.
    async fn publish(&self, told: &mut Told) {
        let backends = self.backends().list();
        let mut facts = self.own_facts();
        if let Some(memory) = &mut facts.memory {
            memory.free = told.memory.told(memory, Instant::now());
        }
        let load = told.load.told(LoadClass::of(self.inner.gateway.load()), Instant::now());
        let load = serde_json::to_vec(&load).unwrap_or_default();
        let machine = self.machine_facts(facts.memory.as_ref());
        let before = self.inner.told_machine.swap(Some(Arc::new(machine.clone())));
        if before.is_none_or(|before| *before != machine) {
            self.inner.serving.look();
        }
        let machine = serde_json::to_vec(&machine).unwrap_or_default();
        let serving = serving::record::encode(&self.inner.serving.told());
        let disk = encode_disk(&self.usable_on_disk());
        let facts = serde_json::to_vec(&facts).unwrap_or_default();
        for scope in self.scopes().list() {
            let Some(gossip) = self.gossip(&scope.id()) else { continue };
            if self.config().client {
                continue;
            }
            put(&gossip, NODE_KEY, Audience::Members, facts.clone()).await;
            put(&gossip, MACHINE_KEY, Audience::Members, machine.clone()).await;
            for (key, value) in disk.iter().chain(&serving) {
                put(&gossip, key, Audience::Members, value.clone()).await;
            }
            for (key, role, value) in self.told_agents() {
                let audience = if role == Role::Member { Audience::Members } else { Audience::Everyone };
                put(&gossip, key, audience, value).await;
            }
            put(&gossip, LOAD_KEY, Audience::Everyone, load.clone()).await;
            for (role, share, audience) in [
                (Role::Member, Share::Members, Audience::Members),
                (Role::Client, Share::Clients, Audience::Everyone),
            ] {
                let offers: Vec<OfferFacts> = backends
                    .iter()
                    .filter(|backend| backend.share == share)
                    .map(|backend| self.offer_facts(backend))
                    .collect();
                for (key, value) in encode_offers(role, &offers) {
                    put(&gossip, &key, audience, value).await;
                }
            }
        }
    }

    fn offer_facts(&self, backend: &Backend) -> OfferFacts {
        let state = backend.state.borrow().clone();
        let (told, detail) = match &state {
            BackendState::Ready => (OfferState::Ready, String::new()),
            BackendState::Loading(_) => (OfferState::Loading, String::new()),
            BackendState::Failed { reason } => (OfferState::Failed, shortened(reason)),
            _ => (OfferState::Stopped, String::new()),
        };
        let size = self.inner.serving.size(&backend.model).filter(|_| backend.kind == BackendKind::Local);
        OfferFacts {
            model: backend.model.clone(),
            state: told,
            provider: backend.kind != BackendKind::Local,
            slots: backend.slots,
            size_bytes: size.map(|size| size.file_bytes),
            context_tokens: size.map(|size| size.context_tokens),
            detail,
        }
    }

    pub(crate) fn own_facts(&self) -> NodeFacts {
        let memory = Memory::read(self.config().inference.max_vram_bytes);
        NodeFacts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            labels: self.config().mesh.labels.clone(),
            memory: memory.map(|memory| MemoryFacts {
                total: memory.total,
                free: memory.free / MEMORY_STEP * MEMORY_STEP,
                cap: self.config().inference.max_vram_bytes,
            }),
        }
    }

    /// What other members offer to a node of our role, down ones left out.
    pub(crate) fn visible_offers(&self) -> Vec<(ScopeId, Arc<Member>, OfferFacts)> {
        let mut offers = Vec::new();
        for scope in self.scopes().list() {
            let Some(gossip) = self.gossip(&scope.id()) else { continue };
            for member in gossip.members().iter().filter(|member| member.state != State::Down) {
                let visible = offers_of_as(member, scope.grant.role);
                offers.extend(visible.into_iter().map(|offer| (scope.id(), member.clone(), offer)));
            }
        }
        offers
    }

    fn tell_models(&self, told: &mut Vec<ModelView>) {
        let now = self.models();
        for model in &now {
            if !told.contains(model) {
                self.tell(EventKind::Model { model: Box::new(model.clone()) });
            }
        }
        for gone in told.iter().filter(|before| !now.iter().any(|model| model.name == before.name)) {
            self.tell(EventKind::ModelGone { name: gone.name.clone() });
        }
        *told = now;
    }

    /// Where requests for one model, or for every model, would go now, and why.
    pub(crate) fn routes(&self, model: Option<&str>) -> Result<Vec<RouteView>, ApiError> {
        let scopes: Vec<ScopeId> = self.scopes().list().iter().map(Scope::id).collect();
        let now = std::time::Instant::now();
        let models = match model {
            Some(model) => vec![model.to_owned()],
            None => self
                .router()
                .models(&Query::new("", scopes.clone()), now)
                .into_iter()
                .map(|model| model.model)
                .collect(),
        };
        let mut views = Vec::new();
        for name in models {
            match self.router().route(&Query::new(&name, scopes.clone()), rand::random(), now) {
                Ok(route) => {
                    let why = route.why.to_string();
                    views.push(self.route_view(&name, &route.target, 0, &why));
                    for (rank, fallback) in (1..).zip(&route.fallbacks) {
                        views.push(self.route_view(&name, fallback, rank, "fallback"));
                    }
                }
                Err(error) if model.is_some() => return Err(no_route(&error)),
                Err(_) => {}
            }
        }
        Ok(views)
    }

    fn route_view(&self, model: &str, target: &Target, rank: u32, why: &str) -> RouteView {
        let mut view = RouteView {
            model: model.to_owned(),
            rank,
            state: mesh_control::ModelState::Ready,
            why: why.to_owned(),
            ..RouteView::default()
        };
        match target {
            Target::Local => view.target = RouteTarget::Local,
            Target::Peer { scope, node } => {
                view.target = RouteTarget::Peer {
                    scope: scope.to_string(),
                    node: node.to_string(),
                    name: self.member_name(scope, node),
                };
                if let Some(link) = self.transport().linked(scope, node) {
                    view.path = views::path_view(link.path().kind);
                    view.rtt_ms = link.path().rtt.map(|rtt| rtt.as_secs_f64() * 1e3);
                }
            }
        }
        view
    }
}

fn no_route(error: &NoRoute) -> ApiError {
    match error {
        NoRoute::UnknownModel { .. } | NoRoute::Unlabelled { .. } => {
            ApiError::new(ErrorCode::UnknownModel, error.to_string())
                .with_mend("`qmt-cli models` lists what there is")
        }
        _ => ApiError::new(ErrorCode::Unavailable, error.to_string()),
    }
}

pub(super) async fn put(gossip: &Gossip, key: &str, audience: Audience, value: Vec<u8>) {
    let done =
        if value.is_empty() { gossip.remove(key).await } else { gossip.publish(key, value, audience).await };
    if let Err(error) = done {
        tracing::debug!(key, %error, "a value of our record was not set");
    }
}

fn shortened(text: &str) -> String {
    let end = text
        .char_indices()
        .map(|(at, letter)| at + letter.len_utf8())
        .take_while(|end| *end <= DETAIL_MAX)
        .last();
    text[..end.unwrap_or(0)].to_owned()
}

/// Every offer in a member's record that we were shown.
pub(crate) fn offers_of(member: &Member) -> Vec<OfferFacts> {
    offers_of_as(member, Role::Member)
}

fn offers_of_as(member: &Member, role: Role) -> Vec<OfferFacts> {
    let value = |key: &str| member.value(key).map(|bytes| bytes.as_ref());
    let mut offers = decode_offers(Role::Client, value);
    if role == Role::Member {
        offers.extend(decode_offers(Role::Member, value));
    }
    offers
}

fn peer_facts(member: &Member, link: Option<&TransportLink>) -> PeerFacts {
    let value = |key: &str| member.value(key).map(|bytes| bytes.as_ref());
    let mut facts = PeerFacts::new(member.name.clone());
    facts.liveness = match member.state {
        State::Alive => Liveness::Alive,
        State::Suspect => Liveness::Suspect,
        State::Down => Liveness::Down,
    };
    facts.labels = views::node_facts(member).labels.into_iter().collect();
    facts.under_way = value(LOAD_KEY).map_or(0, |load| LoadClass::read(load).under_way());
    for (role, share) in [(Role::Member, Share::Members), (Role::Client, Share::Clients)] {
        for offer in decode_offers(role, value) {
            let state = match offer.state {
                OfferState::Ready => RoutedState::Ready,
                OfferState::Loading => RoutedState::Loading { eta: None },
                _ => continue,
            };
            let slots = offer.slots.and_then(|slots| u32::try_from(slots).ok());
            facts.offers.push(Offer { state, share, slots, ..Offer::ready(offer.model) });
        }
    }
    facts.link = link.map(|link| LinkFacts {
        relayed: link.path.kind == PathKind::Relayed,
        network: match link.path.transport {
            TransportKind::Memory => Network::Memory,
            TransportKind::Lan => Network::Lan,
            TransportKind::Internet => Network::Internet,
        },
        rtt: link.path.rtt,
        loss: link.loss,
    });
    facts
}

fn routed_state(state: &BackendState) -> Option<RoutedState> {
    match state {
        BackendState::Ready => Some(RoutedState::Ready),
        BackendState::Loading(_) => Some(RoutedState::Loading { eta: None }),
        BackendState::Failed { .. } => Some(RoutedState::Cold),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_told_every_half_minute() {
        let (mut told, start) = (ToldLoad::default(), Instant::now());
        let mut tell = |load, secs| told.told(load, start + Duration::from_secs(secs));
        assert_eq!(tell(LoadClass::Idle, 0), LoadClass::Idle);
        assert_eq!(tell(LoadClass::Full, 29), LoadClass::Idle, "too soon");
        assert_eq!(tell(LoadClass::Full, 30), LoadClass::Full);
        assert_eq!(tell(LoadClass::Idle, 59), LoadClass::Full, "too soon again");
        assert_eq!(tell(LoadClass::Full, 100), LoadClass::Full);
        assert_eq!(tell(LoadClass::Idle, 101), LoadClass::Idle);
    }

    #[test]
    fn free_memory_is_told_coarsely_and_rarely() {
        let start = Instant::now();
        let mut told = ToldMemory::default();
        let mut tell = |free, secs| {
            let memory = MemoryFacts { total: 1600, free, cap: None };
            told.told(&memory, start + Duration::from_secs(secs))
        };
        assert_eq!(tell(850, 0), 800);
        assert_eq!(tell(300, 10), 800, "too soon");
        assert_eq!(tell(750, 40), 800, "within a part of it");
        assert_eq!(tell(300, 41), 300);
        assert_eq!(tell(1500, 70), 300, "too soon again");
        assert_eq!(tell(1500, 72), 1500);
    }
}
