//! Starting a node: every part in the order in which the next one needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use mesh_gossip::{Config as GossipConfig, Credentials, Exchange, Gossip};
use mesh_identity::{Authority, NodeKey, Permissions, ScopeId, ScopeRoot, SignedGrant, UnixTime, key_file};
use mesh_inference::backend::Backends;
use mesh_inference::gateway::{
    Gateway, GatewayConfig, Listen, Provider, ProviderConfig, ProviderModel, RouterRoutes,
    StartError as GatewayError,
};
use mesh_inference::instance::sweep;
use mesh_inference::terms::Api;
use mesh_routing::Router;
use mesh_transport::internet::{Bind, Config as InternetConfig, Endpoints, EndpointsError, RelayTrust};
use mesh_transport::{Config as TransportConfig, Driver, Transport};
use mesh_tunnel::Tunnels;
use multiaddr::{Multiaddr, Protocol};
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::agents::Agents;
use super::disk::Disk;
use super::home::{Home, HomeError};
use super::lending::Lending;
use super::models;
use super::plans;
use super::pulls::{self, Coming};
use super::relay::{self, RelayStartError};
use super::relays::RelayFacts;
use super::scopes::{Scope, Scopes};
use super::serving::{CountedRoutes, Serving};
use super::speed::Measured;
use super::{Inner, Node, appoint, chain, doctor, lan, ping, renew};
use crate::config::{self, Config, Identity};
use crate::console::{self, Console, Door};
use crate::control::{ControlSocket, router};
use crate::store::audit::Kind;
use crate::store::{ScopeRow, Store, StoreError};
use crate::traces::Collector;

/// Events kept for a reader that falls behind.
const EVENTS_MAX: usize = 256;
/// Where the UDP port of the last run is remembered, so that peers find this node after a restart.
pub(super) const PORT_KEY: &str = "udp_port";

/// How often a provider is asked for its models, and whether it still answers.
const PROVIDER_REFRESH: Duration = Duration::from_secs(10);
/// How long a provider may take to say so.
const PROVIDER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a node does not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The home folder.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The key file.
    #[error(transparent)]
    Key(#[from] key_file::KeyFileError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database of the sessions.
    #[error("the sessions cannot be opened")]
    Sessions(#[from] mesh_sessions::store::OpenError),
    /// Downloads.
    #[error("{0}")]
    Fetch(String),
    /// The gateway.
    #[error("the gateway cannot start")]
    Gateway(#[from] GatewayError),
    /// The control socket.
    #[error("the control socket cannot be opened")]
    Control(#[source] std::io::Error),
    /// The console.
    #[error("the console cannot listen at {addr}")]
    Console {
        /// The address that was asked for.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The relay.
    #[error("the relay of [relay] cannot start")]
    Relay(#[from] RelayStartError),
    /// The agent channel.
    #[error("the agent channel cannot start")]
    Channel(#[from] super::channel::ChannelError),
    /// The LAN transport.
    #[error("the LAN transport cannot start")]
    Lan(#[from] mesh_transport::lan::BindError),
    /// The UDP port that was asked for.
    #[error("the internet transport cannot start")]
    Internet(#[from] EndpointsError),
}

impl Node {
    /// Starts a node. Returns when it answers on its control socket and its gateway; scopes, models and invites of the
    /// configuration are entered in the background. Not cancel safe: a dropped future may leave parts running until the
    /// runtime ends.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Self, StartError> {
        // Boxed: starting is long, and whoever embeds a node should not carry it in a future of their own.
        let node = Box::pin(Self::start_parts(config)).await?;
        let last_handle = Arc::new(node.inner.stop.clone().drop_guard());
        Ok(Self { inner: node.inner, _last_handle: Some(last_handle) })
    }

    /// The node as its own tasks hold it.
    async fn start_parts(config: Config) -> Result<Self, StartError> {
        let home = Home::open(&config.home)?;
        let swept = home.path().to_owned();
        let _ = tokio::task::spawn_blocking(move || sweep(&swept)).await;
        let (key, lasting) = identity(&config)?;
        let store = Arc::new(Store::open(&config.node_db()).await?);
        let agents = match Agents::open(&config.sessions_db).await {
            Ok(agents) => agents,
            Err(error) => {
                store.close().await;
                return Err(error.into());
            }
        };
        // Whoever hears that it did not start may start it again at once: its files are free by then.
        let (also_store, also_sessions) = (store.clone(), agents.store());
        let started = Box::pin(Self::start_beside(config, home, (key, lasting), store, agents)).await;
        if started.is_err() {
            also_sessions.close().await;
            also_store.close().await;
        }
        started
    }

    async fn start_beside(
        config: Config,
        home: Home,
        (key, lasting): (NodeKey, Option<NodeKey>),
        store: Arc<Store>,
        agents: Agents,
    ) -> Result<Self, StartError> {
        let (scopes, admitted) = Scopes::new(key.clone(), store.clone());
        let remembered = store.kv(PORT_KEY).await?.and_then(|port| port.parse().ok());
        let bind = match config.mesh.internet.bind_port {
            Some(port) => Bind::Any { port },
            None => Bind::Prefer { port: remembered.unwrap_or(0) },
        };
        let announced: Vec<SocketAddr> = config.mesh.external_addrs.iter().filter_map(socket_addr).collect();
        let external = announced_for(&config.mesh, Carried::Internet);
        let relay = match &config.relay {
            Some(wanted) => Some(relay::start(&key, wanted, &announced).await?),
            None => None,
        };
        let relays = relay::defaults(&config.mesh.internet.relays, relay.as_ref());
        let relay_trust = RelayTrust::new();
        let internet = InternetConfig {
            bind,
            external_addrs: external.clone(),
            portmapper: config.mesh.internet.port_mapping,
            relay_trust: relay_trust.clone(),
            ..InternetConfig::default()
        };
        let on_lan = announced_for(&config.mesh, Carried::Lan);
        let on_lan = lan::start(&key, &config.mesh, &on_lan, config.relay.is_some()).await?;
        let drivers = on_lan.into_iter().map(|lan| lan as Arc<dyn Driver>).collect();
        let transport = Transport::start(key.clone(), drivers, scopes.clone(), TransportConfig::default());
        let endpoints = Endpoints::new(key.clone(), internet);
        let backends = Backends::new();
        let routing = Router::new(mesh_routing::Config::default(), Instant::now());
        let of_scopes = scopes.clone();
        let routes = RouterRoutes::new(routing.clone(), move || {
            of_scopes.list().iter().map(Scope::id).collect::<Vec<ScopeId>>()
        });
        let serving = Arc::new(Serving::new());
        let routes = CountedRoutes { routes, serving: serving.clone() };
        let gateway = Gateway::start(
            gateway_config(&config.gateway, config.mesh.request_timeout),
            backends.clone(),
            Arc::new(routes),
            Some(transport.clone()),
        )
        .await?;
        let tunnels = Tunnels::start(transport.clone(), mesh_tunnel::Config::default());
        let lending = Lending::new(config.inference.max_vram_bytes);
        transport.serve(Gateway::PROTOCOL, gateway.peer_handler());
        transport.serve(Gateway::REPLICA_PROTOCOL, gateway.replica_handler());
        ping::serve(&transport);
        doctor::skew::serve(&transport);
        mesh_sessions::remote::announce(&transport);
        renew::serve(&transport, scopes.clone());
        let appointments = appoint::serve(&transport);
        let pulls = pulls::Pulls::start(&config, &transport)?;
        let socket = ControlSocket::bind(&config.control_socket()).map_err(StartError::Control)?;
        let console = match &config.console {
            Some(wanted) => {
                let addr = wanted.addr;
                let console = Console::bind(wanted).await;
                Some(console.map_err(|source| StartError::Console { addr, source })?)
            }
            None => None,
        };
        let door = Arc::new(Door::new(&console::secret(&store).await?));
        let exchange = Exchange::new(transport.clone());
        let node = Self {
            inner: Arc::new(Inner {
                name: config.node_name.clone(),
                config,
                home,
                key,
                lasting,
                external,
                store,
                agents,
                channel: super::channel::Channel::default(),
                scopes,
                transport,
                gossips: RwLock::default(),
                router: routing,
                backends,
                pulls,
                coming: Coming::default(),
                serving,
                told_machine: ArcSwapOption::empty(),
                tunnels,
                lending,
                disk: Disk::default(),
                measured: Measured::default(),
                providers: tokio::sync::Mutex::default(),
                gateway,
                console: console.as_ref().map(|console| (console.addr(), door)),
                relay_access: relay.as_ref().map(|relay| relay.access().clone()),
                relay_trust,
                own_relay: relay.as_ref().map(|relay| RelayFacts::of(relay.relay())),
                relays_changed: Notify::new(),
                relay: Mutex::new(relay),
                endpoints,
                relays,
                exchange,
                events: broadcast::Sender::new(EVENTS_MAX),
                event_number: AtomicU64::new(0),
                since: Mutex::default(),
                fed: Mutex::new(BTreeSet::new()),
                copied_keys: super::copied::CopiedKeys::default(),
                ended: Mutex::default(),
                renewal: Notify::new(),
                trail_fault: Mutex::default(),
                changed: Notify::new(),
                routes_changed: Notify::new(),
                stop: CancellationToken::new(),
                tasks: TaskTracker::new(),
                started: Instant::now(),
                started_at: UnixTime::now(),
            }),
            _last_handle: None,
        };
        models::serve(&node);
        plans::serve(&node);
        super::channel::ca::serve(&node);
        node.start_serving();
        let tasks = &node.inner.tasks;
        tasks.spawn(node.clone().keep_routes());
        tasks.spawn(node.clone().keep_record());
        tasks.spawn(node.clone().keep_relays());
        tasks.spawn(node.clone().keep_disk());
        tasks.spawn(node.clone().watch_backends());
        tasks.spawn(node.clone().watch_memory());
        tasks.spawn(node.clone().follow_links());
        tasks.spawn(node.clone().follow_admissions(admitted));
        tasks.spawn(node.clone().follow_appointments(appointments));
        tasks.spawn(node.clone().check_trail());
        if let Some(endpoint) = node.config().otlp_endpoint.clone() {
            let collector = Collector { endpoint, node: node.id().short() };
            tasks.spawn(node.config().traces.clone().send_all(collector, node.stopping()));
        }
        if let Err(error) = Box::pin(node.enter_all()).await {
            // What has begun ends.
            node.inner.stop.cancel();
            return Err(error);
        }
        tasks.spawn(node.clone().keep_certificate());
        tasks.spawn(node.clone().keep_grants());
        // Not before its meshes are there: an invite that is asked for too early would found another one.
        tasks.spawn(socket.serve(router(node.clone()), node.stopping()));
        if let (Some(console), Some((_, door))) = (console, node.console()) {
            tasks.spawn(console.serve(node.clone(), door.clone(), node.stopping()));
        }
        tasks.spawn(node.clone().take_up_configuration());
        tasks.spawn(node.clone().host_sessions());
        Ok(node)
    }

    /// Takes its place where it was and where its configuration wants it.
    async fn enter_all(&self) -> Result<(), StartError> {
        self.set_routing_policies().await?;
        self.fill_relay().await?;
        Box::pin(self.reenter()).await?;
        self.enter_lan();
        Box::pin(self.start_channel()).await?;
        Ok(())
    }

    /// Enters the scopes of the last run again.
    async fn reenter(&self) -> Result<(), StartError> {
        if self.config().mesh.enabled == Some(false) {
            return Ok(());
        }
        for row in self.store().scopes().await? {
            Box::pin(self.reenter_one(row)).await?; // a large future
        }
        Ok(())
    }

    async fn reenter_one(&self, row: ScopeRow) -> Result<(), StartError> {
        let id = row.id();
        let Some(grant) = row.grant else { return Ok(()) };
        if grant.subject() != self.id() && self.lasting_key().is_some() {
            // The grant was for the throw-away key of the last run: this run's asks for its own.
            match row.invite {
                Some(invite) => {
                    self.inner.tasks.spawn(self.clone().join_when_reached(invite, row.name));
                }
                None => tracing::warn!(
                    scope = row.name,
                    "the membership ended with its throw-away key; join again"
                ),
            }
            return Ok(());
        }
        let revoked = self.stored_revocations(&id).await?;
        let (grant, is_new) = self.founders_own(row.root, grant);
        let issuer = grant.chain().issuer();
        match Scope::new(self.key(), row.name.clone(), grant, revoked, row.invite.clone()) {
            Ok(scope) => {
                let scope = scope.with_later_authority(self.key(), row.delegation.as_deref());
                for peer in self.store().peers(&id).await? {
                    self.transport().book().insert(id, peer.node, peer.addr);
                }
                if is_new {
                    self.store_scope(&scope, &self.grant_entry(Kind::Renewed, &scope)).await?;
                }
                self.carry_again(&scope).await?;
                self.enter(scope);
            }
            Err(error) => self.take_end(id, row.name, issuer, &error, row.invite).await,
        }
        Ok(())
    }

    /// The founder needs nobody to renew its grant, however long it was off. Says whether the grant is a new one.
    fn founders_own(&self, root: ScopeRoot, grant: SignedGrant) -> (SignedGrant, bool) {
        let now = UnixTime::now();
        if root.founder != self.id() || grant.expires_at() > now {
            return (grant, false);
        }
        let signed = Authority::founder(self.key().clone(), root).and_then(|founder| {
            founder.sign_grant(self.id(), self.name().clone(), Permissions::ADMIN, None, now)
        });
        match signed {
            Ok(new) => (new, true),
            Err(_) => (grant, false),
        }
    }

    async fn take_up_configuration(self) {
        self.start_providers().await;
        if let Err(error) = self.llama().await {
            tracing::debug!(error = %error.message, "no model can be run here, and no memory lent");
        }
        for model in &self.config().inference.models {
            self.serve_configured(model).await;
        }
        for entry in &self.config().mesh.scopes {
            match (&entry.invite, &entry.name) {
                (Some(invite), _) => {
                    let join = self.clone().join_when_reached(invite.clone(), entry.origin.clone());
                    self.inner.tasks.spawn(join);
                }
                (None, Some(name)) if !self.scopes().list().iter().any(|scope| scope.name == *name) => {
                    if let Err(error) = self.found(name).await {
                        tracing::error!(origin = entry.origin, error = %error.message, "a mesh was not founded");
                    }
                }
                (None, _) => {}
            }
        }
    }

    async fn start_providers(&self) {
        let mut running = self.inner.providers.lock().await;
        for provider in &self.config().providers {
            let models = provider.models.iter().map(|model| ProviderModel::from(model.as_str())).collect();
            let config = ProviderConfig {
                name: provider.name.clone(),
                base_url: provider.base_url.clone(),
                api_key: provider.api_key.clone(),
                models,
                share: provider.share,
                refresh: PROVIDER_REFRESH,
                timeout: PROVIDER_TIMEOUT,
                api: match provider.kind {
                    config::ProviderKind::OpenAi => Api::OpenAi,
                    config::ProviderKind::Anthropic => Api::Anthropic,
                },
                quota: provider.quota,
                price: provider.price,
            };
            match Provider::start(config, self.backends().clone()) {
                Ok(provider) => running.push(provider),
                Err(error) => {
                    tracing::error!(provider = provider.name, error = %chain(&error), "a provider is not shared")
                }
            }
        }
    }

    /// Starts gossip in a scope, unless it runs.
    pub(crate) fn start_gossip(&self, scope: &Scope) {
        let id = scope.id();
        let credentials = Credentials {
            key: self.key().clone(),
            grant: (*scope.signed).clone(),
            revocations: scope.revoked.clone(),
        };
        let config = if self.config().client { GossipConfig::passive() } else { GossipConfig::default() };
        let config = if scope.uninvited.is_some() { config.among_uninvited() } else { config };
        let gossip = match Gossip::start(&self.inner.exchange, credentials, config) {
            Ok(gossip) => gossip,
            Err(error) => {
                tracing::error!(scope = scope.name, error = %chain(&error), "gossip does not start");
                return;
            }
        };
        let mut gossips: std::sync::RwLockWriteGuard<'_, BTreeMap<ScopeId, Gossip>> =
            self.inner.gossips.write().unwrap_or_else(PoisonError::into_inner);
        gossips.insert(id, gossip.clone());
        drop(gossips);
        self.inner.tasks.spawn(self.clone().watch_members(gossip.clone()));
        self.inner.tasks.spawn(self.clone().follow_members(scope.clone(), gossip));
    }
}

/// The node's key, and the lasting key behind it when it is a throw-away one.
fn identity(config: &Config) -> Result<(NodeKey, Option<NodeKey>), StartError> {
    match &config.identity {
        Identity::File(path) => Ok((key_file::load_or_create(path)?, None)),
        Identity::Ephemeral => {
            let lasting = key_file::load_or_create(&config.home.join("mesh_identity.key"))?;
            Ok((NodeKey::generate(), Some(lasting)))
        }
    }
}

fn gateway_config(wanted: &config::Gateway, request_timeout: Duration) -> GatewayConfig {
    let mut config = GatewayConfig::default();
    config.listen = if wanted.listener.asked {
        Listen::Exactly(wanted.listener.addr)
    } else {
        Listen::FirstFreeFrom(wanted.listener.addr)
    };
    config.api_key = wanted.api_key.clone();
    config.head_timeout = request_timeout;
    config.continue_timeout = wanted.continue_timeout;
    config.replicas.make = wanted.make_replicas;
    config.replicas.accept = wanted.keep_replicas;
    config
}

/// Which transport an announced address leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carried {
    Lan,
    Internet,
}

/// The announced addresses of one transport: TCP is the LAN transport's, and so is UDP at the port where it listens; every
/// other UDP port is the internet transport's.
fn announced_for(mesh: &config::Mesh, carried: Carried) -> Vec<SocketAddr> {
    let lan_port = mesh
        .lan
        .as_ref()
        .and_then(|lan| socket_addr(&lan.listen))
        .map(|addr| addr.port())
        .filter(|port| *port != 0);
    let of = |addr: &&Multiaddr| {
        let is_tcp = addr.iter().any(|part| matches!(part, Protocol::Tcp(_)));
        let is_lan = is_tcp || (lan_port.is_some() && socket_addr(addr).map(|addr| addr.port()) == lan_port);
        if is_lan { Carried::Lan == carried } else { Carried::Internet == carried }
    };
    mesh.external_addrs.iter().filter(of).filter_map(socket_addr).collect()
}

/// The socket address of a multiaddr such as `/ip4/192.0.2.1/udp/9000/quic-v1`.
pub(super) fn socket_addr(addr: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = addr.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Udp(port) | Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}
