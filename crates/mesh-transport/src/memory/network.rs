//! The nodes of a network in memory, and its faults.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures_util::future::BoxFuture;
use mesh_identity::{NodeAddr, NodeId, NodeKey, ScopeId};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::connection::{End, MemoryConnection, Shared};
use crate::{
    connection::{Connection, DialVia, Driver, Found, PathKind, TransportKind},
    error::{CloseCode, ClosedWhy, DialError},
};

/// Dialed connections that a node has not yet accepted; more are refused.
const BACKLOG: usize = 256;

/// What the wire does to connections made from now on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// One way (zero).
    pub latency: Duration,
    /// Added to the latency, evenly from zero to this (zero).
    pub jitter: Duration,
    /// How likely a write or a stream's opening is lost and sent again, 0 to 1 (0).
    pub loss: f64,
    /// How long a cut connection is silent before both ends take it for lost (5 s).
    pub detect_after: Duration,
}

impl Default for Conditions {
    fn default() -> Self {
        let zero = Duration::ZERO;
        Self { latency: zero, jitter: zero, loss: 0.0, detect_after: Duration::from_secs(5) }
    }
}

/// A network in this process. Clones are handles to the same one.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    seed: u64,
    plays: (TransportKind, PathKind),
    state: Mutex<State>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct State {
    conditions: Conditions,
    nodes: BTreeMap<NodeId, mpsc::Sender<Arc<dyn Connection>>>,
    cuts: BTreeSet<(NodeId, NodeId)>,
    connections: Vec<Weak<Shared>>,
    dialed: u64,
}

impl Network {
    /// An empty, perfect network. The seed fixes jitter and loss.
    pub fn new(seed: u64) -> Self {
        Self::playing(seed, TransportKind::Memory, PathKind::Memory)
    }

    /// The same, whose connections pass for those of another driver: for tests of which one is preferred.
    pub fn playing(seed: u64, transport: TransportKind, kind: PathKind) -> Self {
        let (plays, state, tasks) = ((transport, kind), Mutex::default(), TaskTracker::new());
        Self { inner: Arc::new(Inner { seed, plays, state, tasks }) }
    }

    /// What connections made from now on suffer.
    pub fn set_conditions(&self, conditions: Conditions) {
        self.lock().conditions = conditions;
    }

    /// A node's driver. A second one for the same key takes its place, as after a restart.
    pub fn driver(&self, key: &NodeKey) -> Arc<MemoryDriver> {
        let me = key.node_id();
        let (sender, incoming) = mpsc::channel(BACKLOG);
        let (finder, found) = mpsc::channel(BACKLOG);
        self.lock().nodes.insert(me, sender.clone());
        Arc::new(MemoryDriver {
            me,
            network: self.clone(),
            sender,
            incoming: tokio::sync::Mutex::new(incoming),
            finder,
            found: tokio::sync::Mutex::new(found),
        })
    }

    /// Silence between two nodes, in both directions, until [`Network::heal`].
    pub fn cut(&self, a: NodeId, b: NodeId) {
        self.lock().cuts.insert(pair(a, b));
        self.stall_between(a, b, true);
    }

    /// Ends a cut. Connections that have not been taken for lost go on, with nothing missing.
    pub fn heal(&self, a: NodeId, b: NodeId) {
        self.lock().cuts.remove(&pair(a, b));
        self.stall_between(a, b, false);
    }

    /// Cuts a node off from every other.
    pub fn isolate(&self, node: NodeId) {
        for other in self.others(node) {
            self.cut(node, other);
        }
    }

    /// Ends every cut of the node.
    pub fn rejoin(&self, node: NodeId) {
        for other in self.others(node) {
            self.heal(node, other);
        }
    }

    /// Every connection between the two fails at once, as after a reset; new ones can be dialed.
    pub fn break_connections(&self, a: NodeId, b: NodeId) {
        for shared in self.between(a, b) {
            shared.fail(&ClosedWhy::Failed("connection reset".into()));
        }
    }

    /// How many connections are alive between the two.
    pub fn connections(&self, a: NodeId, b: NodeId) -> usize {
        self.between(a, b).iter().filter(|shared| shared.closed(End::Dialer).is_none()).count()
    }

    fn others(&self, node: NodeId) -> Vec<NodeId> {
        self.lock().nodes.keys().copied().filter(|other| *other != node).collect()
    }

    fn between(&self, a: NodeId, b: NodeId) -> Vec<Arc<Shared>> {
        let state = self.lock();
        let alive = state.connections.iter().filter_map(Weak::upgrade);
        alive.filter(|shared| pair(shared.nodes[0], shared.nodes[1]) == pair(a, b)).collect()
    }

    fn stall_between(&self, a: NodeId, b: NodeId, stalled: bool) {
        for shared in self.between(a, b) {
            shared.stall(stalled);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn dial(self, from: NodeId, to: NodeId) -> Result<Arc<dyn Connection>, DialError> {
        let (conditions, cut) = {
            let state = self.lock();
            (state.conditions, state.cuts.contains(&pair(from, to)))
        };
        if cut {
            // Nobody answers and nobody refuses: the caller's deadline ends it.
            std::future::pending::<()>().await;
        }
        if !conditions.latency.is_zero() {
            tokio::time::sleep(2 * conditions.latency).await;
        }
        let (shared, acceptor) = {
            let mut state = self.lock();
            let unreachable = || DialError::Unreachable { node: to, detail: "nobody listens".into() };
            let acceptor = state.nodes.get(&to).cloned().ok_or_else(unreachable)?;
            state.dialed += 1;
            let seed = self.inner.seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(state.dialed);
            let shared =
                Shared::new([from, to], self.inner.plays, conditions, seed, self.inner.tasks.clone());
            state.connections.retain(|connection| connection.strong_count() > 0);
            state.connections.push(Arc::downgrade(&shared));
            if state.cuts.contains(&pair(from, to)) {
                shared.stall(true);
            }
            (shared, acceptor)
        };
        let theirs = Arc::new(MemoryConnection::new(shared.clone(), End::Acceptor));
        let ours = Arc::new(MemoryConnection::new(shared, End::Dialer));
        if acceptor.try_send(theirs).is_err() {
            return Err(DialError::Unreachable { node: to, detail: "its backlog is full".into() });
        }
        Ok(ours)
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network").field("seed", &self.inner.seed).finish_non_exhaustive()
    }
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

/// One node's place in a [`Network`]. It needs no addresses: ids are enough.
pub struct MemoryDriver {
    me: NodeId,
    network: Network,
    sender: mpsc::Sender<Arc<dyn Connection>>,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Arc<dyn Connection>>>,
    finder: mpsc::Sender<Found>,
    found: tokio::sync::Mutex<mpsc::Receiver<Found>>,
}

impl MemoryDriver {
    /// The driver finds a node by itself, or loses it. Lost when nobody takes up what was found before.
    pub fn find(&self, found: Found) {
        drop(self.finder.try_send(found));
    }

    /// The node vanishes as if its machine lost power: no goodbye, its connections fall silent.
    pub fn vanish(&self) {
        self.leave();
        for shared in self.own_connections() {
            shared.stall(true);
        }
    }

    fn leave(&self) {
        let mut state = self.network.lock();
        // A later driver of the same key stays.
        if state.nodes.get(&self.me).is_some_and(|sender| sender.same_channel(&self.sender)) {
            state.nodes.remove(&self.me);
        }
    }

    fn own_connections(&self) -> Vec<Arc<Shared>> {
        let state = self.network.lock();
        state
            .connections
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|shared| shared.nodes.contains(&self.me))
            .collect()
    }
}

impl Driver for MemoryDriver {
    fn transport(&self) -> TransportKind {
        self.network.inner.plays.0
    }

    fn name(&self) -> &'static str {
        "memory"
    }

    fn carries(&self, _scope: &ScopeId) -> bool {
        true
    }

    fn dial(
        &self,
        _scope: &ScopeId,
        to: NodeId,
        _addr: &NodeAddr,
        via: DialVia,
    ) -> BoxFuture<'static, Result<Arc<dyn Connection>, DialError>> {
        if via.direct_only && self.network.inner.plays.1 == PathKind::Relayed {
            return Box::pin(std::future::ready(Err(DialError::NoAddress(to))));
        }
        Box::pin(self.network.clone().dial(self.me, to))
    }

    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn Connection>>> {
        Box::pin(async { self.incoming.lock().await.recv().await })
    }

    fn found(&self) -> BoxFuture<'_, Option<Found>> {
        Box::pin(async { self.found.lock().await.recv().await })
    }

    fn local_addr(&self, _scope: &ScopeId) -> NodeAddr {
        NodeAddr::default()
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.leave();
            let mut incoming = self.incoming.lock().await;
            incoming.close();
            while let Ok(conn) = incoming.try_recv() {
                conn.close(CloseCode::Shutdown, "shutting down");
            }
        })
    }
}
