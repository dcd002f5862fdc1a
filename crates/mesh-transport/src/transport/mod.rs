//! The transport of one node: every scope, every link, one place to ask for streams.

mod accept;
mod dial;
mod find;
mod gate;
mod grant;
mod hello;
mod improve;
mod instances;
mod links;
mod network;
mod probe;
mod pulse;
mod redeem;
mod redial;
mod rule;
mod serve;
mod unreached;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use mesh_identity::{
    AdmissionRequest, DIRECT_ADDRS_MAX, Invite, NodeAddr, NodeId, NodeKey, ScopeId, SignedGrant, UnixTime,
};
use tokio::sync::{Semaphore, broadcast, watch};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use self::{
    gate::{HelloGate, WarnLimit},
    instances::Instances,
    links::{LinkConn, Links},
    redial::Redial,
};
use crate::{
    admission::Admission,
    book::AddressBook,
    call::{self, Call},
    config::Config,
    connection::{Driver, PathFacts, TransportKind},
    error::{CallError, CloseCode, ClosedWhy, DialError, OpenError, RedeemError},
    handler::Handler,
    metrics::{Metrics, MetricsSnapshot},
    peer::{Callers, Peer, Protocol},
    stream::Stream,
};

/// The transport of one node. Clones are handles to the same one; the last handle dropped closes every link without a
/// goodbye, so call [`Transport::shutdown`].
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
    _last_handle: Arc<DropGuard>,
}

/// A link that exists now: an authenticated connection to a member of a scope.
#[derive(Clone)]
pub struct Link {
    conn: Arc<LinkConn>,
    inner: Arc<Inner>,
}

/// Facts about a link, for listings and routing.
#[derive(Clone, Debug)]
pub struct LinkFacts {
    /// The verified other end.
    pub peer: Peer,
    /// How its bytes travel now.
    pub path: PathFacts,
    /// Packets lost of a thousand lately, where the transport tells.
    pub loss: Option<u16>,
    /// When it came up.
    pub since: SystemTime,
    /// Whether this node dialed it.
    pub opened_by_us: bool,
    /// Streams alive on it, both directions.
    pub streams: usize,
}

/// A change of links. Slow subscribers lag and should read [`Transport::links`] again.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LinkEvent {
    /// A peer has its first link.
    Up {
        /// The verified peer.
        peer: Peer,
        /// How its bytes travel.
        path: PathFacts,
    },
    /// A peer's last link has ended.
    Down {
        /// The peer as it was verified.
        peer: Peer,
        /// How it ended.
        why: ClosedWhy,
    },
    /// The link goes another way now.
    Path {
        /// The verified peer.
        peer: Peer,
        /// How its bytes travel now.
        path: PathFacts,
    },
    /// The machine's network has changed, or the machine was asleep: what was out of reach may be back.
    NetworkChanged,
    /// Two nodes are alive that use one key: a key file was copied. Links to both are closed as they come.
    KeyInUseTwice {
        /// The id that both have; it may be this node's own.
        node: NodeId,
        /// Where they are, in words.
        places: String,
        /// The peer that says so; its words are not checked. `None`: this node has seen it.
        told_by: Option<NodeId>,
    },
}

/// A redeemed invite.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Our grant, verified against the invite's scope. Store it, then let [`Admission::credential`] return it.
    pub grant: SignedGrant,
    /// The node that issued it.
    pub issuer: NodeId,
    /// The issuer's address, from the invite: worth putting into the address book.
    pub issuer_addr: NodeAddr,
}

pub(crate) struct Inner {
    me: NodeId,
    /// Drawn at start, told in hello.
    instance: u64,
    drivers: RwLock<Vec<Arc<dyn Driver>>>,
    admission: Arc<dyn Admission>,
    config: Config,
    handlers: RwLock<HashMap<&'static str, Arc<dyn Handler>>>,
    book: AddressBook,
    links: Links,
    unreached: unreached::Unreached,
    events: broadcast::Sender<LinkEvent>,
    /// Counts changes of the machine's network.
    network: watch::Sender<u64>,
    /// Whether somebody watches for them.
    watching: AtomicBool,
    redial: Redial,
    pulses: pulse::Pulses,
    instances: Instances,
    connections: Arc<Semaphore>,
    connections_max: usize,
    hellos: Arc<HelloGate>,
    metrics: Metrics,
    limit_warning: WarnLimit,
    /// Everything that runs for this transport.
    tasks: TaskTracker,
    /// No new work.
    closing: AtomicBool,
    stop_accepting: CancellationToken,
    cancel: CancellationToken,
}

impl Transport {
    /// Starts accepting on every driver. Must be called within a tokio runtime.
    pub fn start(
        key: NodeKey,
        drivers: Vec<Arc<dyn Driver>>,
        admission: Arc<dyn Admission>,
        config: Config,
    ) -> Self {
        let (connections_max, files) = config.connections_cap();
        tracing::info!(connections_max, file_limit = files, "transport started");
        let cancel = CancellationToken::new();
        let me = key.node_id();
        let events = broadcast::Sender::new(config.events_max.max(1));
        let inner = Arc::new(Inner {
            me,
            instance: rand::random(),
            drivers: RwLock::default(),
            admission,
            handlers: RwLock::default(),
            book: AddressBook::new(config.addresses_max),
            links: Links::new(me, events.clone()),
            unreached: unreached::Unreached::default(),
            events,
            network: watch::Sender::default(),
            watching: AtomicBool::new(false),
            redial: Redial::default(),
            pulses: pulse::Pulses::new(connections_max),
            instances: Instances::default(),
            connections: Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS))),
            connections_max,
            hellos: HelloGate::new(&config),
            metrics: Metrics::default(),
            limit_warning: WarnLimit::default(),
            tasks: TaskTracker::new(),
            closing: AtomicBool::new(false),
            stop_accepting: cancel.child_token(),
            cancel: cancel.clone(),
            config,
        });
        let transport = Self { inner, _last_handle: Arc::new(cancel.drop_guard()) };
        for driver in drivers {
            transport.add_driver(driver);
        }
        transport.inner.tasks.spawn(grant::watch(transport.inner.clone()));
        transport.inner.tasks.spawn(improve::run(transport.inner.clone()));
        transport
    }

    /// Adds a driver while running, such as an endpoint for another set of relays.
    pub fn add_driver(&self, driver: Arc<dyn Driver>) {
        // A network in memory has no part in the machine's.
        let is_real = driver.transport() != TransportKind::Memory;
        if is_real && !self.inner.watching.swap(true, Ordering::SeqCst) {
            self.inner.tasks.spawn(network::watch(self.inner.clone()));
        }
        self.inner.drivers.write().unwrap_or_else(PoisonError::into_inner).push(driver.clone());
        self.inner.tasks.spawn(accept::accept_from(self.inner.clone(), driver.clone()));
        self.inner.tasks.spawn(find::find_by(self.inner.clone(), driver));
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        self.inner.me
    }

    /// The parameters given at start.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Where others in the scope can dial us, best first: what all drivers that carry it say.
    pub fn local_addr(&self, scope: &ScopeId) -> NodeAddr {
        let drivers = self.inner.drivers_for(scope);
        merged(drivers.iter().map(|driver| driver.local_addr(scope)).collect())
    }

    /// Serves a protocol from now on, on links that exist and on later ones; replaces an earlier handler. The handler says
    /// who may call.
    pub fn serve(&self, protocol: Protocol, handler: Arc<dyn Handler>) {
        let mut handlers = self.inner.handlers.write().unwrap_or_else(PoisonError::into_inner);
        handlers.insert(protocol.as_str(), handler);
    }

    /// The protocols that are served, and to whom, in order of their names.
    pub fn served(&self) -> Vec<(Protocol, Callers)> {
        let handlers = self.inner.handlers.read().unwrap_or_else(PoisonError::into_inner);
        let mut served: Vec<_> =
            handlers.iter().map(|(name, handler)| (Protocol::new(name), handler.callers())).collect();
        served.sort();
        served
    }

    /// Addresses of peers.
    pub fn book(&self) -> &AddressBook {
        &self.inner.book
    }

    /// The link to a peer: the one that exists, or a new one dialed with the addresses of the book. Callers at the same
    /// time share one dial. Cancel safe: the dial goes on for the others.
    pub async fn link(&self, scope: &ScopeId, node: &NodeId) -> Result<Link, DialError> {
        let conn = dial::link(&self.inner, scope, node).await?;
        Ok(Link { conn, inner: self.inner.clone() })
    }

    /// The link to a peer if it exists now; never dials.
    pub fn linked(&self, scope: &ScopeId, node: &NodeId) -> Option<Link> {
        let conn = self.inner.links.linked(scope, node)?;
        Some(Link { conn, inner: self.inner.clone() })
    }

    /// Opens a stream that speaks `protocol`, dialing if need be. The header is on its way when this returns; whether
    /// the peer serves the protocol shows at the first read. Cancel safe: a dropped future leaves no stream.
    pub async fn open(
        &self,
        scope: &ScopeId,
        node: &NodeId,
        protocol: Protocol,
    ) -> Result<Stream, OpenError> {
        let first = self.link(scope, node).await?;
        match first.open(protocol).await {
            // The link may have died just before; nothing was sent yet, so once more is safe.
            Err(OpenError::Lost(_)) => self.link(scope, node).await?.open(protocol).await,
            done => done,
        }
    }

    /// Sends one request and waits for its reply, dialing if need be, all within `deadline` (which the server is told).
    /// Not repeated by itself: after [`CallError::Deadline`] or [`CallError::Lost`] the server may have acted.
    /// Cancel safe in that the server is told to stop.
    pub async fn call<C: Call>(
        &self,
        scope: &ScopeId,
        node: &NodeId,
        call: &C,
        deadline: Duration,
    ) -> Result<C::Reply, CallError> {
        let work = async {
            let stream = self.open(scope, node, C::PROTOCOL).await?;
            call::call_on(stream, call, deadline, self.inner.config.call_bytes_max).await
        };
        tokio::time::timeout(deadline, work).await.unwrap_or(Err(CallError::Deadline(deadline)))
    }

    /// Redeems an invite at its issuer: dials the hints, shows the token, verifies the grant that comes back. The
    /// connection is closed afterwards; store the grant, and the next [`Transport::link`] shows it. Idempotent: a lost
    /// reply is repaired by calling again. Cancel safe in the same sense.
    pub async fn redeem(&self, invite: &Invite, request: AdmissionRequest) -> Result<Admitted, RedeemError> {
        redeem::redeem(&self.inner, invite, request).await
    }

    /// Says that the machine's network has changed, where that is known from elsewhere: drivers look for what still works,
    /// links that do not answer are dialed anew. The transport also notices by itself.
    pub fn network_changed(&self) {
        network::react(&self.inner, "told");
    }

    /// Why the last dial of a peer failed; `None` if it has a link, or none was tried.
    pub fn unreached(&self, scope: &ScopeId, node: &NodeId) -> Option<DialError> {
        self.inner.unreached.why(scope, node)
    }

    /// The links that exist, in order of scope and peer.
    pub fn links(&self) -> Vec<LinkFacts> {
        self.inner.links.primaries().iter().map(|conn| conn.facts()).collect()
    }

    /// Changes of links from now on.
    pub fn events(&self) -> broadcast::Receiver<LinkEvent> {
        self.inner.events.subscribe()
    }

    /// Closes every connection to the peer in this scope; its streams end at once. A new link can be dialed by either
    /// side if their grants still allow it.
    pub fn disconnect(&self, scope: &ScopeId, node: &NodeId, why: CloseCode) {
        for conn in self.inner.links.matching(|c| c.peer.scope == *scope && c.peer.id == *node) {
            conn.close(why, "disconnected");
        }
    }

    /// Asks [`Admission::check`] again about every link of the scope and cuts those whose grant no longer holds: when this
    /// returns no byte of a stream on them is read or written any more. Call it when a revocation has been taken up.
    pub fn recheck(&self, scope: &ScopeId) {
        for conn in self.inner.links.matching(|c| c.peer.scope == *scope) {
            serve::judge_again(&self.inner, &conn);
        }
    }

    /// Shows the grant that [`Admission::credential`] returns now on every link of the scope: call it when it was renewed.
    /// Links on which a peer has not seen it end with the one shown before. Does not wait.
    pub fn show_credential(&self, scope: &ScopeId) {
        grant::show(&self.inner, scope);
    }

    /// Closes every connection of the scope and forgets its addresses. Stop returning a credential for it first.
    pub fn close_scope(&self, scope: &ScopeId) {
        self.inner.book.remove_scope(scope);
        self.inner.unreached.forget_scope(scope);
        for conn in self.inner.links.matching(|c| c.peer.scope == *scope) {
            conn.close(CloseCode::ScopeClosed, "left the scope");
        }
    }

    /// The counters since start.
    pub fn metrics(&self) -> MetricsSnapshot {
        self.inner.metrics.snapshot()
    }

    /// Stops accepting, lets running handlers finish for [`Config::shutdown_grace`], closes every connection with a
    /// goodbye, shuts the drivers down and waits until every task has ended. Idempotent. Cancel safe: call it again to
    /// go on.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.closing.store(true, Ordering::SeqCst);
        inner.stop_accepting.cancel();
        inner.links.fail_dials();
        let quiet = async {
            while !inner.links.matching(|c| c.streams.alive() > 0).is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        drop(tokio::time::timeout(inner.config.shutdown_grace, quiet).await);
        inner.cancel.cancel();
        for conn in inner.links.matching(|_| true) {
            conn.close(CloseCode::Shutdown, "shutting down");
        }
        let drivers = inner.drivers.read().unwrap_or_else(PoisonError::into_inner).clone();
        for driver in drivers {
            driver.shutdown().await;
        }
        inner.pulses.close();
        inner.tasks.close();
        inner.tasks.wait().await;
        inner.handlers.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Link {
    /// The verified other end.
    pub fn peer(&self) -> &Peer {
        &self.conn.peer
    }

    /// How its bytes travel now.
    pub fn path(&self) -> PathFacts {
        self.conn.path()
    }

    /// Facts for a listing.
    pub fn facts(&self) -> LinkFacts {
        self.conn.facts()
    }

    /// Opens a stream on this very link. Cancel safe: a dropped future leaves no stream.
    pub async fn open(&self, protocol: Protocol) -> Result<Stream, OpenError> {
        serve::open_stream(&self.inner, &self.conn, protocol).await
    }

    /// Whether this connection is still the one for new streams: a better one may have come. Streams on it go on.
    pub fn is_current(&self) -> bool {
        self.inner.links.is_primary(&self.conn)
    }

    /// Resolves when the link has ended. Cancel safe.
    pub async fn closed(&self) -> ClosedWhy {
        self.conn.closed().await
    }
}

impl LinkConn {
    fn facts(&self) -> LinkFacts {
        LinkFacts {
            peer: self.peer.clone(),
            path: self.path(),
            loss: self.conn.loss(),
            since: self.since,
            opened_by_us: self.dialed_by_us,
            streams: self.streams.alive(),
        }
    }
}

impl Inner {
    fn drivers_for(&self, scope: &ScopeId) -> Vec<Arc<dyn Driver>> {
        let drivers = self.drivers.read().unwrap_or_else(PoisonError::into_inner);
        drivers.iter().filter(|driver| driver.carries(scope)).cloned().collect()
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst) || self.cancel.is_cancelled()
    }

    fn unix_now(&self) -> UnixTime {
        UnixTime::now()
    }

    fn local_hello(&self) -> crate::proto::hello::Local {
        crate::proto::hello::Local {
            instance: self.instance,
            features: self.config.features.clone(),
            deadline: self.config.hello_timeout,
        }
    }
}

/// The best of each, in turns, as many as one address may hold.
fn merged(addrs: Vec<NodeAddr>) -> NodeAddr {
    let direct = in_turns(addrs.iter().map(|addr| addr.direct.as_slice()).collect());
    let lan = in_turns(addrs.iter().map(|addr| addr.lan.as_slice()).collect());
    NodeAddr { direct, lan, relay: addrs.into_iter().find_map(|addr| addr.relay) }
}

fn in_turns(lists: Vec<&[SocketAddr]>) -> Vec<SocketAddr> {
    let longest = lists.iter().map(|list| list.len()).max().unwrap_or_default();
    let mut all = Vec::new();
    for at in 0..longest {
        for addr in lists.iter().filter_map(|list| list.get(at)) {
            if !all.contains(addr) && all.len() < DIRECT_ADDRS_MAX {
                all.push(*addr);
            }
        }
    }
    all
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("me", &self.inner.me).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("peer", &self.conn.peer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_all_drivers_fit_into_one() {
        let of = |ip: u8, count: u16, relay: Option<&str>| {
            let direct = (1..=count).map(|port| ([192, 0, 2, ip], port).into()).collect();
            NodeAddr { direct, relay: relay.map(str::to_owned), ..NodeAddr::default() }
        };
        let all = merged(vec![of(1, 8, None), of(2, 2, Some("https://relay.example.org")), of(1, 1, None)]);
        let ends: Vec<_> = all.direct.iter().map(|addr| (addr.ip().to_string(), addr.port())).collect();
        let wanted = [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (1, 4), (1, 5), (1, 6)];
        assert_eq!(ends, wanted.map(|(ip, port)| (format!("192.0.2.{ip}"), port)));
        assert!(all.relay.is_some() && all.encode().is_ok());
        assert_eq!(merged(Vec::new()), NodeAddr::default());
    }
}
