//! One request: who asks, what for, where it goes, and what comes back.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response};
use hyper::body::Incoming;
use mesh_identity::{NodeId, Role};
use mesh_routing::{Load, Target};
use mesh_transport::{Peer, Transport};
use tracing::{Instrument, Span};

use super::attempt::{Forward, Maker, Miss, Taken};
use super::body::BodyMemory;
use super::config::GatewayConfig;
use super::endpoint::{Ask, Endpoint, ask};
use super::error::ApiError;
use super::gauge::Gauge;
use super::headers::{MESH_CONTINUES, MESH_LOAD, REQUEST_ID, request_id};
use super::model_field::model_of;
use super::origin::{OwnNames, shows_key};
use super::own::OwnCall;
use super::pool::Pool;
use super::replica::Store;
use super::reply::Reply;
use super::routes::{ModelFacts, NoTarget, PeerRoutes};
use super::stats::Stats;
use super::sticky::{self, Sticky};
use super::survive::Asked;
use super::trace::TraceContext;
use crate::backend::{Backend, BackendState, Backends, Share};

/// Bodies above this are parsed on a blocking thread: about a millisecond of work.
const PARSE_HERE_MAX: usize = 512 * 1024;
/// Targets tried for one request. More would keep the caller waiting for what will not come.
const ATTEMPTS_MAX: usize = 4;
/// Hosts that one request may be lost with before the first byte of its answer: it may be what ends them.
const LOSSES_MAX: u32 = 3;
/// When to ask again, where nobody says it better.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Who asks.
pub(crate) enum Caller {
    /// A program on this machine, or one that shows the API key.
    Local,
    /// An agent of this node.
    Own(Arc<OwnCall>),
    /// Another node, proved by its link.
    Peer(Peer),
}

impl Caller {
    /// The one node that may answer, if the caller wants one.
    fn only(&self) -> Option<NodeId> {
        match self {
            Self::Own(call) => call.only,
            Self::Local | Self::Peer(_) => None,
        }
    }

    /// The other node that sent it.
    fn peer(&self) -> Option<&Peer> {
        match self {
            Self::Peer(peer) => Some(peer),
            Self::Local | Self::Own(_) => None,
        }
    }

    /// The other node on whose behalf it asks.
    fn on_behalf_of(&self) -> Option<NodeId> {
        match self {
            Self::Local => None,
            Self::Own(call) => call.on_behalf_of,
            Self::Peer(peer) => Some(peer.id),
        }
    }
}

/// All that answering needs.
pub(crate) struct Core {
    pub(crate) config: GatewayConfig,
    pub(crate) backends: Backends,
    pub(crate) routes: Arc<dyn PeerRoutes>,
    pub(crate) transport: Option<Transport>,
    pub(crate) pool: Pool,
    pub(crate) at_backends: Gauge<u64>,
    pub(crate) from_peers: Gauge<NodeId>,
    pub(crate) stats: Stats,
    own: OwnNames,
    pub(crate) bodies: BodyMemory,
    draws: AtomicU64,
    pub(crate) hasher: RandomState,
    /// Answers that can be resumed.
    pub(crate) replicas: Store,
    sticky: Sticky,
}

impl Core {
    pub(crate) fn new(
        config: GatewayConfig,
        bound: SocketAddr,
        backends: Backends,
        routes: Arc<dyn PeerRoutes>,
        transport: Option<Transport>,
        pool: Pool,
    ) -> Self {
        let own = OwnNames::new(bound, &config.allowed_hosts);
        let bodies = BodyMemory::new(config.body_memory_max);
        let hasher = RandomState::new();
        let replicas = Store::new(config.replicas.bytes_max, config.replicas.ttl);
        Self {
            config,
            backends,
            routes,
            transport,
            pool,
            at_backends: Gauge::default(),
            from_peers: Gauge::default(),
            stats: Stats::default(),
            own,
            bodies,
            draws: AtomicU64::new(hasher.hash_one("draws")),
            hasher,
            replicas,
            sticky: Sticky::default(),
        }
    }

    /// Answers one request. Dropping the future cancels it all the way up.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        caller: &Caller,
        mut request: Request<Incoming>,
    ) -> Response<Reply> {
        Stats::add(&self.stats.requests);
        let id = request_id(request.headers(), self.draw());
        let (own, parent) = TraceContext::begin(request.headers_mut(), || self.random());
        let span = own.request(parent, &id, caller.peer().map(|peer| peer.id.short()));
        let answered = async {
            match self.dispatch(caller, request, &id).await {
                Ok(response) => {
                    tracing::debug!(status = response.status().as_u16(), "answered");
                    response
                }
                Err(error) => {
                    Stats::add(&self.stats.refused);
                    tracing::debug!(code = error.code, "refused");
                    error.into_response()
                }
            }
        };
        let mut response = answered.instrument(span.clone()).await;
        span.record("status", response.status().as_u16());
        response.headers_mut().insert(REQUEST_ID, id);
        response.map(|reply| reply.within(span))
    }

    async fn dispatch(
        self: &Arc<Self>,
        caller: &Caller,
        request: Request<Incoming>,
        id: &HeaderValue,
    ) -> Result<Response<Reply>, ApiError> {
        if matches!(caller, Caller::Local) {
            self.own.check(request.uri().authority(), request.headers())?;
        }
        let ask = ask(request.method(), request.uri().path())?;
        if matches!(caller, Caller::Local)
            && ask != Ask::Health
            && let Some(key) = &self.config.api_key
            && !shows_key(request.headers(), key.expose().as_bytes())
        {
            return Err(ApiError::bad_key());
        }
        match ask {
            Ask::Health => Ok(json(&serde_json::json!({ "status": "ok" }))),
            Ask::Models => Ok(json(&super::models::list(&self.known(caller)))),
            Ask::Model(model) => {
                let known = self.known(caller);
                let found = known.iter().find(|known| known.model == model);
                let found = found.ok_or_else(|| ApiError::unknown_model(&model, &names(&known)))?;
                Ok(json(&super::models::one(found)))
            }
            Ask::Complete(endpoint) => self.complete(caller, endpoint, request, id).await,
            Ask::Resume(text) if matches!(caller, Caller::Local) => {
                self.resume(&text, request.headers(), id).await
            }
            Ask::Resume(_) => Err(ApiError::unknown_response()),
        }
    }

    async fn complete(
        self: &Arc<Self>,
        caller: &Caller,
        endpoint: Endpoint,
        request: Request<Incoming>,
        id: &HeaderValue,
    ) -> Result<Response<Reply>, ApiError> {
        let (head, body) = request.into_parts();
        let config = &self.config;
        let body = self.bodies.take(&head.headers, body, config.body_bytes_max, config.body_timeout).await?;
        let model = parse_model(body.bytes.clone()).await?;
        Span::current().record("model", &*model);
        let mut local = self.local(caller, &model);
        if matches!(caller, Caller::Peer(_)) && head.headers.contains_key(MESH_CONTINUES) {
            local.retain(|backend| backend.continues());
        }
        let mut targets = self.targets(caller, &model, &local)?;
        // Where there is no choice nothing needs to be remembered.
        let chosen = targets.len() > 1 || local.len() > 1;
        let conversation =
            chosen.then(|| sticky::conversation(&self.hasher, endpoint, &model, &body.bytes)).flatten();
        let last = conversation.and_then(|conversation| self.sticky.last(conversation));
        sticky::prefer(&mut targets, last);
        let bytes = body.bytes.clone();
        let forward = Forward {
            endpoint,
            headers: &head.headers,
            id,
            body: bytes,
            model,
            continuing: false,
            last,
            on_behalf_of: caller.on_behalf_of(),
        };
        let mut tried = self.try_all(&forward, &targets, &local).await;
        if !matches!(caller, Caller::Peer(_)) {
            tried = self.again(&forward, caller, tried).await;
        }
        if let (Some(conversation), Ok(taken)) = (conversation, &tried) {
            self.sticky.note(conversation, taken.maker);
        }
        let own = match caller {
            Caller::Local => None,
            Caller::Own(call) => Some(call),
            Caller::Peer(_) => return Ok(self.to_peer(tried, &local)),
        };
        let model = forward.model;
        let taken = tried?;
        if let Some(call) = own {
            call.note_maker(taken.maker);
        }
        if !(taken.continues && taken.is_event_stream() && endpoint.is_text()) {
            return Ok(taken.into_response());
        }
        let Taken { head: answer, relay, maker, .. } = taken;
        let own = own.cloned();
        let asked =
            Asked { endpoint, headers: head.headers, id: id.clone(), body, model, maker: Some(maker), own };
        Ok(self.survivor(answer, asked, relay).await)
    }

    /// Asks again for what its host was lost with before the first byte of an answer: others, or the same one once it is back.
    async fn again(
        &self,
        forward: &Forward<'_>,
        caller: &Caller,
        mut tried: Result<Taken, ApiError>,
    ) -> Result<Taken, ApiError> {
        let (mut losses, mut rounds) = (0, 0);
        let deadline = Instant::now() + self.config.continue_timeout;
        while let Err(error) = tried {
            // Once it is lost there is something to wait for, whatever is in the way meanwhile.
            losses += u32::from(error.is_host_lost());
            let is_over = losses == 0 || losses >= LOSSES_MAX || Instant::now() >= deadline;
            if is_over || self.is_dropped(&forward.model) {
                return Err(error.for_caller());
            }
            // At once where others are left.
            if rounds > 0 {
                self.until_something_changes(&forward.model).await;
            }
            rounds += 1;
            let local = self.local(caller, &forward.model);
            tried = match self.targets(caller, &forward.model, &local) {
                Ok(targets) => self.try_all(forward, &targets, &local).await,
                Err(error) => Err(error),
            };
        }
        tried
    }

    /// A peer's gateway hears how much there is to do, refused or not, with its own request counted in.
    fn to_peer(&self, tried: Result<Taken, ApiError>, local: &[Arc<Backend>]) -> Response<Reply> {
        let mut response = match tried {
            Ok(taken) => {
                let Taken { head, relay, continues, .. } = taken;
                let mut response = Response::from_parts(head, Reply::relay(relay.for_gateway()));
                if continues {
                    response.headers_mut().insert(MESH_CONTINUES, HeaderValue::from_static("1"));
                }
                response
            }
            Err(error) => {
                Stats::add(&self.stats.refused);
                error.into_response()
            }
        };
        if let Ok(load) = HeaderValue::from_str(&self.load_of(local).to_string()) {
            response.headers_mut().insert(MESH_LOAD, load);
        }
        response
    }

    /// The requests under way at these backends, together.
    pub(crate) fn load_of(&self, backends: &[Arc<Backend>]) -> Load {
        let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let requests =
            backends.iter().map(|backend| self.at_backends.count(&self.backend_key(backend))).sum();
        let slots: Option<usize> = backends.iter().map(|backend| backend.slots).sum();
        Load::of(small(requests), slots.filter(|_| !backends.is_empty()).map(small))
    }

    pub(crate) async fn try_all(
        &self,
        forward: &Forward<'_>,
        targets: &[Target],
        local: &[Arc<Backend>],
    ) -> Result<Taken, ApiError> {
        let mut misses = Misses::default();
        for target in targets.iter().take(ATTEMPTS_MAX) {
            let tried = match target {
                Target::Local => self.try_local(forward, local, &mut misses).await,
                Target::Peer { scope, node } => Box::pin(self.ask_peer(forward, scope, node))
                    .await
                    .map_err(|miss| misses.add(target, miss)),
            };
            if let Ok(taken) = tried {
                return Ok(taken);
            }
            Stats::add(&self.stats.fallbacks);
        }
        Err(misses.into_error(&forward.model))
    }

    async fn try_local(
        &self,
        forward: &Forward<'_>,
        local: &[Arc<Backend>],
        misses: &mut Misses,
    ) -> Result<Taken, ()> {
        let mut ready: Vec<_> = Vec::with_capacity(local.len());
        for backend in local {
            match waiting_for(backend) {
                None => ready.push(backend),
                Some(reason) => misses.add(&Target::Local, Miss::NotReady { reason, retry_after: None }),
            }
        }
        ready.sort_by_key(|backend| {
            let key = self.backend_key(backend);
            let stays = forward.last == Some(Maker::Backend(key)) && self.has_room(backend);
            (!stays, self.at_backends.count(&key))
        });
        for backend in ready {
            match self.ask_backend(forward, backend).await {
                Ok(taken) => return Ok(taken),
                Err(miss) => misses.add(&Target::Local, miss),
            }
        }
        Err(())
    }

    /// Where a request may go, best first.
    pub(crate) fn targets(
        &self,
        caller: &Caller,
        model: &str,
        local: &[Arc<Backend>],
    ) -> Result<Vec<Target>, ApiError> {
        let unknown = || ApiError::unknown_model(model, &names(&self.known(caller)));
        if let Caller::Peer(_) = caller {
            // A peer has done its own routing: a second hop could go in circles.
            return if local.is_empty() { Err(unknown()) } else { Ok(vec![Target::Local]) };
        }
        if let Some(node) = caller.only() {
            return self.targets_at(node, model, self.draw(), local);
        }
        match self.routes.route(model, self.draw()) {
            Ok(mut targets) => {
                targets.retain(|target| *target != Target::Local || !local.is_empty());
                if !local.is_empty() && !targets.contains(&Target::Local) {
                    // Routing may not have heard yet of a backend that is here, or of its load.
                    let at =
                        if local.iter().any(|backend| self.has_room(backend)) { 0 } else { targets.len() };
                    targets.insert(at, Target::Local);
                }
                if targets.is_empty() { Err(unknown()) } else { Ok(targets) }
            }
            Err(_) if !local.is_empty() => Ok(vec![Target::Local]),
            Err(none) => Err(none.into_error(model, unknown)),
        }
    }

    /// A number that no other call gets, spread over the whole range.
    fn draw(&self) -> u64 {
        self.draws.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed)
    }

    /// A number that nobody can foresee.
    pub(crate) fn random(&self) -> u64 {
        self.hasher.hash_one(("random", self.draw()))
    }

    /// Whether a backend can begin another request at once.
    fn has_room(&self, backend: &Backend) -> bool {
        let free =
            backend.slots.is_none_or(|slots| self.at_backends.count(&self.backend_key(backend)) < slots);
        free && waiting_for(backend).is_none()
    }

    /// This node's backends of a model, as far as the caller may use them.
    pub(crate) fn local(&self, caller: &Caller, model: &str) -> Vec<Arc<Backend>> {
        self.backends.get(model).into_iter().filter(|backend| may_use(caller, backend.share)).collect()
    }

    /// Models that the caller may ask for.
    fn known(&self, caller: &Caller) -> Vec<ModelFacts> {
        let local = self.backends.list().into_iter().filter(|backend| may_use(caller, backend.share)).map(
            |backend| ModelFacts { model: backend.model.clone(), ready: waiting_for(&backend).is_none() },
        );
        let elsewhere = match caller {
            Caller::Local | Caller::Own(_) => self.routes.models(),
            Caller::Peer(_) => Vec::new(),
        };
        super::models::merge(local.chain(elsewhere))
    }
}

impl NoTarget {
    /// As an answer; `unknown` is the one for a model that nobody offers.
    pub(crate) fn into_error(self, model: &str, unknown: impl FnOnce() -> ApiError) -> ApiError {
        match self {
            Self::Unknown => unknown(),
            Self::NotReady { reason, retry_after } => ApiError::not_ready(model, &reason, retry_after),
            Self::Full { retry_after } => {
                ApiError::full(&format!("Every provider of `{model}`"), retry_after)
            }
        }
    }
}

/// What one request has met on its way.
#[derive(Default)]
struct Misses {
    tried: Vec<String>,
    full: bool,
    failed: bool,
    lost: bool,
    over_quota: Option<String>,
    not_ready: Option<String>,
    retry_after: Option<Duration>,
}

impl Misses {
    fn add(&mut self, target: &Target, miss: Miss) {
        tracing::debug!(%target, %miss, "went on to the next provider");
        self.tried.push(format!("{target}: {miss}"));
        match miss {
            Miss::Full { retry_after } => {
                self.full = true;
                self.retry_after = self.retry_after.max(retry_after);
            }
            Miss::OverQuota { why, retry_after } => {
                self.over_quota.get_or_insert(why);
                self.retry_after = self.retry_after.max(Some(retry_after));
            }
            Miss::NotReady { reason, retry_after } => {
                self.not_ready.get_or_insert(reason);
                self.retry_after = self.retry_after.max(retry_after);
            }
            Miss::Lost(_) => self.lost = true,
            Miss::Failed(_) => self.failed = true,
        }
    }

    /// A lost host counts first, since the request may go again at once. Full counts next, since it passes soonest; then a quota, which passes surely; then what is still coming up; then failure.
    fn into_error(self, model: &str) -> ApiError {
        let retry_after = self.retry_after.unwrap_or(RETRY_AFTER);
        match self.not_ready {
            _ if self.lost => ApiError::host_lost(model, &self.tried),
            _ if self.over_quota.is_some() && !self.full => {
                ApiError::over_quota(model, self.over_quota.as_deref().unwrap_or_default(), retry_after)
            }
            _ if self.full => ApiError::full(&format!("Every provider of `{model}`"), retry_after),
            Some(reason) if !self.failed => ApiError::not_ready(model, &reason, retry_after),
            _ => ApiError::all_failed(model, &self.tried),
        }
    }
}

/// What a backend still waits for; None when it is ready.
fn waiting_for(backend: &Backend) -> Option<String> {
    match &*backend.state.borrow() {
        BackendState::Ready => None,
        other => Some(other.to_string()),
    }
}

fn may_use(caller: &Caller, share: Share) -> bool {
    match (caller, share) {
        (Caller::Local | Caller::Own(_), _) | (Caller::Peer(_), Share::Clients) => true,
        (Caller::Peer(peer), Share::Members) => peer.role == Role::Member,
        (Caller::Peer(_), Share::None) => false,
    }
}

async fn parse_model(body: Bytes) -> Result<Arc<str>, ApiError> {
    if body.len() <= PARSE_HERE_MAX {
        return Ok(Arc::from(&*model_of(&body)?));
    }
    let parsed = tokio::task::spawn_blocking(move || model_of(&body).map(|model| Arc::from(&*model))).await;
    Ok(parsed.map_err(|_| ApiError::stopping())??)
}

fn names(known: &[ModelFacts]) -> Vec<String> {
    known.iter().map(|known| known.model.clone()).collect()
}

fn json(value: &serde_json::Value) -> Response<Reply> {
    let mut response = Response::new(Reply::whole(value.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
