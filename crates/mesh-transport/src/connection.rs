//! What a driver gives: authenticated, multiplexed connections. Membership is not its business.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures_util::future::BoxFuture;
use mesh_identity::{NodeAddr, NodeId, ScopeId};
use tokio::sync::watch;

use crate::{
    error::{CloseCode, ClosedWhy, ConnectionLost, DialError},
    stream::Stream,
};

/// How bytes reach the peer at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathKind {
    /// Straight to one of its addresses.
    Direct,
    /// Through a relay.
    Relayed,
    /// Inside this process.
    Memory,
}

/// Which family of transport carries the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TransportKind {
    /// The local network driver.
    Lan,
    /// The internet driver.
    Internet,
    /// The in-memory network.
    Memory,
}

/// Facts about a connection's current path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathFacts {
    /// Direct, relayed or in memory.
    pub kind: PathKind,
    /// Smoothed round-trip time, once one was measured.
    pub rtt: Option<Duration>,
    /// The transport that carries it.
    pub transport: TransportKind,
}

/// Where a connection came from, as far as limits per origin care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// A remote IP address.
    Ip(IpAddr),
    /// A key, where no address is known (relayed, in memory).
    Node(NodeId),
}

/// An authenticated, encrypted, multiplexed connection. The peer's key is proved; its membership is not.
///
/// Every method may be called from several tasks at once.
pub trait Connection: Send + Sync + 'static {
    /// The key the other end has proved.
    fn peer(&self) -> NodeId;

    /// Opens a stream in both directions; waits while the peer's stream limit is reached.
    /// Cancel safe: a dropped future opens nothing, or a stream that is reset at once.
    fn open(&self) -> BoxFuture<'_, Result<Stream, ConnectionLost>>;

    /// The next stream that the peer opened. Cancel safe: no stream is lost.
    fn accept(&self) -> BoxFuture<'_, Result<Stream, ConnectionLost>>;

    /// Closes the connection and everything on it. Only the first call counts.
    /// `reason` is cut at 256 bytes.
    fn close(&self, code: CloseCode, reason: &str);

    /// Resolves when the connection has ended, with the cause. Cancel safe.
    fn closed(&self) -> BoxFuture<'_, ClosedWhy>;

    /// The path in use now.
    fn path(&self) -> PathFacts;

    /// Packets lost of a thousand on the path in use, lately; `None` where the transport does not tell, or too little was
    /// sent.
    fn loss(&self) -> Option<u16> {
        None
    }

    /// Changes of the path's kind; the value is the latest. `rtt` there may be old: ask [`Connection::path`].
    fn path_changes(&self) -> watch::Receiver<PathFacts>;

    /// Where limits count this connection.
    fn origin(&self) -> Origin;

    /// Where the other end is, in words for a human: an address or a relay. `None` if there is no such thing.
    fn remote(&self) -> Option<String> {
        None
    }

    /// The peer's own address, as far as it is seen: `None` behind a relay or in memory.
    fn remote_addr(&self) -> Option<SocketAddr> {
        None
    }

    /// The address of this machine without which the connection cannot live; `None` if it can move to another one.
    fn bound_to(&self) -> Option<IpAddr> {
        None
    }

    /// Hello is done: lift the tight bounds that a stranger's connection has.
    fn admitted(&self) {}
}

/// A node that a driver has found by itself, such as by multicast. Nothing is proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Who is said to be there.
    pub node: NodeId,
    /// All addresses known now; empty when it is no longer said to be there.
    pub addr: NodeAddr,
}

/// By which ways a dial may go.
#[derive(Clone, Default)]
pub struct DialVia {
    /// Shown to the relay that the address names: a joiner's, who is no member there yet (none).
    pub relay_token: Option<String>,
    /// Straight to one of the addresses or not at all: through no relay and no other node (no).
    pub direct_only: bool,
}

impl DialVia {
    /// Straight or not at all.
    pub fn direct() -> Self {
        Self { relay_token: None, direct_only: true }
    }
}

impl fmt::Debug for DialVia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DialVia").field("direct_only", &self.direct_only).finish_non_exhaustive()
    }
}

/// The scopes that a driver carries: every one, until some are named.
#[derive(Debug, Default)]
pub(crate) struct Carried(RwLock<Option<BTreeSet<ScopeId>>>);

impl Carried {
    /// Carries this scope; after the first call only scopes that were named.
    pub(crate) fn carry(&self, scope: ScopeId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().insert(scope);
    }

    /// Whether the scope is carried.
    pub(crate) fn carries(&self, scope: &ScopeId) -> bool {
        let scopes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        scopes.as_ref().is_none_or(|scopes| scopes.contains(scope))
    }
}

/// Makes and takes connections for one kind of transport.
pub trait Driver: Send + Sync + 'static {
    /// What its connections say of themselves in [`PathFacts`].
    fn transport(&self) -> TransportKind;

    /// A short fixed name for logs and errors, such as `internet`.
    fn name(&self) -> &'static str;

    /// Whether this driver carries the scope. A driver that says no is never asked to dial for it.
    fn carries(&self, scope: &ScopeId) -> bool;

    /// Connects to the node and proves its key, by the ways that `via` allows. Cancel safe: a dropped future leaves no
    /// connection.
    fn dial(
        &self,
        scope: &ScopeId,
        to: NodeId,
        addr: &NodeAddr,
        via: DialVia,
    ) -> BoxFuture<'static, Result<Arc<dyn Connection>, DialError>>;

    /// The next connection dialed by another node; `None` once the driver is shut down. Cancel safe.
    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn Connection>>>;

    /// The next node whose addresses the driver has found or lost by itself; `None` when it looks for none (any more).
    /// Cancel safe.
    fn found(&self) -> BoxFuture<'_, Option<Found>> {
        Box::pin(std::future::ready(None))
    }

    /// The machine's network has changed, or the machine was asleep: look at once for what still works. By default
    /// nothing is to be done.
    fn network_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Where others in the scope can dial us, best first.
    fn local_addr(&self, scope: &ScopeId) -> NodeAddr;

    /// Ends every connection and gives its sockets back. Idempotent.
    fn shutdown(&self) -> BoxFuture<'_, ()>;
}
