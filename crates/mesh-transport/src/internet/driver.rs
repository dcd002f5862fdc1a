//! One iroh endpoint as a driver.

use std::{
    collections::HashMap,
    io, iter,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use iroh::{
    Endpoint, EndpointAddr, RelayMap, RelayMode, RelayUrl, Watcher,
    endpoint::{
        BindOpts, ConnectError, ConnectingError, ConnectionError, Incoming, IncomingAddr, PortmapperConfig,
        presets,
    },
};
use iroh_relay::{RelayConfig, RelayQuicConfig};
use mesh_identity::{NodeAddr, NodeId, NodeKey, ScopeId};
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    ALPN, Bind, BindError, Config, HomeRelay, Relay, Relays, addr, connection::IrohConnection,
    home::RelaySet, quic, trust,
};
use crate::{
    connection::{Carried, Connection, DialVia, Driver, Origin, TransportKind},
    convert,
    error::{self, DialError},
};

/// Connections that passed the handshake and wait for the transport; more are refused.
const BACKLOG: usize = 64;
/// How long `bind` waits for the first own address, where sockets listen on all interfaces.
const FIRST_ADDR: Duration = Duration::from_secs(2);

/// One iroh endpoint: links over the internet for scopes that share a set of relays.
pub struct Internet {
    endpoint: Endpoint,
    relays: Arc<RelaySet>,
    streams_max: u32,
    scopes: Arc<Carried>,
    incoming: Mutex<mpsc::Receiver<Arc<dyn Connection>>>,
    _accepting: AbortOnDropHandle<()>,
    _home: AbortOnDropHandle<()>,
}

impl Internet {
    /// Opens the sockets. Carries every scope until [`Internet::carry`] names some.
    /// Not cancel safe: a dropped future may leave sockets open for a moment.
    pub async fn bind(key: &NodeKey, config: Config) -> Result<Arc<Self>, BindError> {
        let scopes = Arc::new(Carried::default());
        let endpoint = match (bind_endpoint(key, &config, &scopes).await, config.bind) {
            (Err(BindError::PortTaken { .. }), Bind::Prefer { .. }) => {
                let config = Config { bind: Bind::Any { port: 0 }, ..config.clone() };
                bind_endpoint(key, &config, &scopes).await?
            }
            (bound, _) => bound?,
        };
        if matches!(config.bind, Bind::Any { .. } | Bind::Prefer { .. }) {
            let mut addrs = endpoint.watch_addr();
            let first =
                async { while addrs.get().ip_addrs().next().is_none() && addrs.updated().await.is_ok() {} };
            drop(tokio::time::timeout(FIRST_ADDR, first).await);
        }
        let (sender, incoming) = mpsc::channel(BACKLOG);
        let relays = RelaySet::new(endpoint.clone(), config.relays.clone());
        let accepting = tokio::spawn(accept(endpoint.clone(), relays.clone(), config.clone(), sender));
        let home = tokio::spawn(relays.clone().watch_home());
        Ok(Arc::new(Self {
            endpoint,
            relays,
            streams_max: config.streams_max,
            scopes,
            incoming: Mutex::new(incoming),
            _accepting: AbortOnDropHandle::new(accepting),
            _home: AbortOnDropHandle::new(home),
        }))
    }

    /// Carries this scope; after the first call only scopes that were named.
    pub fn carry(&self, scope: ScopeId) {
        self.scopes.carry(scope);
    }

    /// The relays it was bound with.
    pub fn relays(&self) -> &Relays {
        self.relays.bound()
    }

    pub(super) fn relay_set(&self) -> &RelaySet {
        &self.relays
    }

    /// Resolves when a relay has taken this endpoint in: needed before others can reach it through that relay.
    /// Never resolves with relays disabled; use a deadline. Cancel safe.
    pub async fn online(&self) {
        self.endpoint.online().await;
    }

    /// Why the home relay refuses this node, if it does.
    pub fn relay_denial(&self) -> Option<String> {
        let status = self.endpoint.home_relay_status().get();
        status.iter().find_map(|relay| relay.auth_denied_reason().map(str::to_owned))
    }

    /// The relay that others reach this endpoint through; `None` while it has none.
    pub fn home_relay(&self) -> Option<HomeRelay> {
        let status = self.endpoint.home_relay_status().get();
        let home = status.first()?;
        Some(HomeRelay {
            url: home.url().to_string().trim_end_matches('/').to_owned(),
            connected: home.is_connected(),
            refused: home.auth_denied_reason().map(str::to_owned),
            error: home.last_error().map(|error| format!("{error:#}")),
        })
    }

    /// The sockets that are open.
    pub fn bound_addrs(&self) -> Vec<SocketAddr> {
        self.endpoint.bound_sockets()
    }
}

async fn bind_endpoint(key: &NodeKey, config: &Config, scopes: &Arc<Carried>) -> Result<Endpoint, BindError> {
    let portmapper = if config.portmapper { PortmapperConfig::default() } else { PortmapperConfig::Disabled };
    if config.portmapper && !cfg!(feature = "portmapper") {
        tracing::warn!(
            "no port is asked of the router: this build is without the feature `portmapper` (build qmt-node with \
             `--features portmapper`); or forward a UDP port by hand and name it in external_addrs"
        );
    }
    let mut builder = Endpoint::builder(presets::Minimal)
        .secret_key(convert::iroh_key(key))
        .alpns(vec![ALPN.to_vec()])
        .relay_mode(relay_mode(&config.relays)?)
        .portmapper_config(portmapper)
        .transport_config(quic::transport_config(config))
        .clear_ip_transports();
    let failed = |error: &dyn std::fmt::Display| BindError::Endpoint(error.to_string());
    builder = match config.bind {
        Bind::Any { port } | Bind::Prefer { port } => {
            let v6 = BindOpts::default().set_is_required(false);
            let builder = builder.bind_addr((Ipv4Addr::UNSPECIFIED, port)).map_err(|error| failed(&error))?;
            builder.bind_addr_with_opts((Ipv6Addr::UNSPECIFIED, port), v6).map_err(|error| failed(&error))?
        }
        Bind::Addr(addr) => builder.bind_addr(addr).map_err(|error| failed(&error))?,
        Bind::RelayOnly => builder,
    };
    for addr in &config.external_addrs {
        builder = builder.external_addr(*addr);
    }
    builder = builder.ca_tls_config(trust::tls_config(
        key.node_id(),
        config.relay_roots.clone(),
        config.relay_trust.clone(),
        scopes.clone(),
    ));
    builder.bind().await.map_err(|error| bind_error(&error, config))
}

fn bind_error(error: &(dyn std::error::Error + 'static), config: &Config) -> BindError {
    let port = match config.bind {
        Bind::Any { port } | Bind::Prefer { port } => port,
        Bind::Addr(addr) => addr.port(),
        Bind::RelayOnly => 0,
    };
    let is_taken = |error: &(dyn std::error::Error + 'static)| {
        error.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::AddrInUse)
    };
    if port != 0 && iter::successors(Some(error), |error| error.source()).any(is_taken) {
        return BindError::PortTaken { port };
    }
    BindError::Endpoint(error::chain(error))
}

fn relay_mode(relays: &Relays) -> Result<RelayMode, BindError> {
    Ok(match relays {
        Relays::Disabled => RelayMode::Disabled,
        Relays::Public => RelayMode::Default,
        Relays::Custom(relays) => {
            let map = RelayMap::empty();
            for relay in relays {
                let config = relay_config(relay)?;
                map.insert(config.url.clone(), Arc::new(config));
            }
            RelayMode::Custom(map)
        }
    })
}

pub(super) fn relay_config(relay: &Relay) -> Result<RelayConfig, BindError> {
    let invalid = || BindError::RelayUrl { url: relay.url.clone() };
    if !relay.url.starts_with("https://") && !relay.url.starts_with("http://") {
        return Err(invalid());
    }
    let url: RelayUrl = relay.url.parse().map_err(|_| invalid())?;
    let config = RelayConfig::new(url, relay.quic_port.map(RelayQuicConfig::new));
    Ok(match &relay.token {
        Some(token) => config.with_auth_token(token.clone()),
        None => config,
    })
}

/// Takes handshakes, a bounded number at once, and hands over those that succeed.
async fn accept(
    endpoint: Endpoint,
    relays: Arc<RelaySet>,
    config: Config,
    accepted: mpsc::Sender<Arc<dyn Connection>>,
) {
    let mut handshakes = JoinSet::new();
    let mut origins = HashMap::<Origin, usize>::new();
    loop {
        tokio::select! {
            Some(done) = handshakes.join_next() => {
                let Ok((origin, conn)): Result<(Origin, Option<Arc<IrohConnection>>), _> = done else { continue };
                if let Some(count) = origins.get_mut(&origin) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        origins.remove(&origin);
                    }
                }
                let Some(conn) = conn else { continue };
                relays.watch(&conn);
                if let Err(full) = accepted.try_send(conn) {
                    full.into_inner().close(crate::error::CloseCode::Busy, "at the limit, try later");
                }
            }
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { break };
                let origin = origin_of(&incoming);
                let from_there = origins.get(&origin).copied().unwrap_or_default();
                if handshakes.len() >= config.handshakes_max || from_there >= config.handshakes_per_address_max {
                    tracing::debug!(?origin, "handshake refused at a limit");
                    incoming.refuse();
                } else if handshakes.len() * 2 >= config.handshakes_max && !incoming.remote_addr_validated() {
                    // A forged address never answers the retry.
                    drop(incoming.retry());
                } else {
                    *origins.entry(origin).or_default() += 1;
                    let (timeout, streams_max) = (config.handshake_timeout, config.streams_max);
                    handshakes.spawn(async move {
                        let conn = tokio::time::timeout(timeout, handshake(incoming, origin, streams_max)).await;
                        (origin, conn.ok().flatten())
                    });
                }
            }
        }
    }
    handshakes.shutdown().await;
}

fn origin_of(incoming: &Incoming) -> Origin {
    match incoming.remote_addr() {
        IncomingAddr::Ip(addr) => Origin::Ip(addr.ip().to_canonical()),
        IncomingAddr::Relay { endpoint_id, .. } => match convert::node_id(&endpoint_id) {
            Ok(node) => Origin::Node(node),
            Err(_) => Origin::Ip(Ipv4Addr::UNSPECIFIED.into()),
        },
        _ => Origin::Ip(Ipv4Addr::UNSPECIFIED.into()),
    }
}

async fn handshake(incoming: Incoming, origin: Origin, streams_max: u32) -> Option<Arc<IrohConnection>> {
    let conn = incoming.accept().ok()?.await.ok()?;
    let peer = convert::node_id(&conn.remote_id()).ok()?;
    Some(Arc::new(IrohConnection::new(conn, peer, origin, streams_max)))
}

impl Driver for Internet {
    fn transport(&self) -> TransportKind {
        TransportKind::Internet
    }

    fn name(&self) -> &'static str {
        "internet"
    }

    fn carries(&self, scope: &ScopeId) -> bool {
        self.scopes.carries(scope)
    }

    fn dial(
        &self,
        _scope: &ScopeId,
        to: NodeId,
        addr: &NodeAddr,
        via: DialVia,
    ) -> BoxFuture<'static, Result<Arc<dyn Connection>, DialError>> {
        let (endpoint, streams_max) = (self.endpoint.clone(), self.streams_max);
        let mut target = EndpointAddr::new(convert::endpoint_id(&to));
        for direct in &addr.direct {
            target = target.with_ip_addr(*direct);
        }
        let relays = self.relays.clone();
        let may_relay = *relays.bound() != Relays::Disabled && !via.direct_only && !addr.is_empty();
        let relay = addr.relay.clone().filter(|_| may_relay);
        let relay_url: Option<RelayUrl> = relay.as_ref().and_then(|url| url.parse().ok());
        if may_relay {
            target = relays.of_peer(relay_url.clone()).into_iter().fold(target, EndpointAddr::with_relay_url);
        }
        Box::pin(async move {
            if target.addrs.is_empty() {
                return Err(DialError::NoAddress(to));
            }
            if let (Some(token), Some(_), Some(url)) = (via.relay_token, relay_url, relay) {
                relays.show_token(url, token).await;
            }
            let conn = endpoint.connect(target, ALPN).await.map_err(|error| dial_error(to, &error))?;
            let conn = Arc::new(IrohConnection::new(conn, to, Origin::Node(to), streams_max));
            relays.watch(&conn);
            Ok(conn as Arc<dyn Connection>)
        })
    }

    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn Connection>>> {
        Box::pin(async { self.incoming.lock().await.recv().await })
    }

    fn network_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.endpoint.network_change())
    }

    fn local_addr(&self, _scope: &ScopeId) -> NodeAddr {
        let addr = self.endpoint.addr();
        let direct = addr.ip_addrs().copied().chain(self.endpoint.bound_sockets());
        let relay = addr.relay_urls().next().map(|url| url.to_string().trim_end_matches('/').to_owned());
        NodeAddr { direct: addr::best_first(direct), relay, ..NodeAddr::default() }
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.endpoint.close().await;
            let mut incoming = self.incoming.lock().await;
            incoming.close();
            while incoming.try_recv().is_ok() {}
        })
    }
}

fn dial_error(node: NodeId, error: &ConnectError) -> DialError {
    let connection_error = match error {
        ConnectError::Connection { source, .. } => Some(source),
        ConnectError::Connecting { source: ConnectingError::ConnectionError { source, .. }, .. } => {
            Some(source)
        }
        _ => None,
    };
    match connection_error {
        Some(ConnectionError::TransportError(transport))
            if transport.to_string().contains("UnknownIssuer") =>
        {
            DialError::WrongIdentity(node)
        }
        Some(error) => DialError::Unreachable { node, detail: error.to_string() },
        None => DialError::Unreachable { node, detail: error.to_string() },
    }
}
