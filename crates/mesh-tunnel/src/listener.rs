//! The side of the user: a loopback socket that stands for a service at a peer.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh_identity::{NodeId, ScopeId};
use mesh_transport::{LinkEvent, Stream, Transport};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::carry::{carry, refuse};
use crate::metrics::Counters;
use crate::rpc::entry::Entering;
use crate::rpc::open::Entrance;
use crate::tunnels::Inner;
use crate::{ListenError, OpenError, RpcFault, RpcStats, RpcUse, ServiceName, Stats, WeightId};

/// What a listener stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remote {
    /// The scope of the link.
    pub scope: ScopeId,
    /// The peer.
    pub peer: NodeId,
    /// Its service.
    pub service: ServiceName,
}

/// A loopback port whose connections are carried to a service at a peer.
///
/// Nothing is sent to the peer before the first connection. Closed when the peer's last link ends, when the tunnels are
/// shut down, or when the last clone of its `Arc` is dropped; its connections are then reset.
#[derive(Debug)]
pub struct LocalListener {
    remote: Remote,
    addr: SocketAddr,
    counters: Arc<Counters>,
    last_error: Arc<Mutex<Option<Arc<OpenError>>>>,
    rpc: Option<Arc<Rpc>>,
    closed: CancellationToken,
    _close: DropGuard,
}

/// What a listener for an rpc-server has beyond.
#[derive(Debug)]
struct Rpc {
    entrance: Entrance,
    last_fault: Mutex<Option<Arc<RpcFault>>>,
}

impl LocalListener {
    /// What it stands for.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// Where to connect: a port of 127.0.0.1.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its counters.
    pub fn stats(&self) -> Stats {
        self.counters.stats()
    }

    /// Why the last connection could not be opened, if one could not: a socket can only say "reset".
    pub fn last_error(&self) -> Option<Arc<OpenError>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What passed to the rpc-server and back.
    pub fn rpc_stats(&self) -> RpcStats {
        self.counters.rpc_stats()
    }

    /// How many weights of the host's file are at the worker too; `None` before the first connection has learnt it.
    pub fn weights_in_common(&self) -> Option<usize> {
        self.rpc.as_ref()?.entrance.weights_in_common()
    }

    /// Why the last connection to the rpc-server broke, if one did: a llama-server only says that it did.
    pub fn last_fault(&self) -> Option<Arc<RpcFault>> {
        self.rpc.as_ref()?.last_fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is closed; it does not open again.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Closes it and resets its connections. Idempotent.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Resolves when it is closed. Cancel safe.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Binds the port and starts its task, which ends with it.
    pub(crate) fn start(
        inner: &Arc<Inner>,
        remote: Remote,
        rpc: Option<RpcUse>,
    ) -> Result<Arc<Self>, ListenError> {
        // Before anything is bound, so that no end of a link is missed.
        let events = inner.transport.events();
        let bound = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(ListenError::Bind)?;
        bound.set_nonblocking(true).map_err(ListenError::Bind)?;
        let listener = TcpListener::from_std(bound).map_err(ListenError::Bind)?;
        let addr = listener.local_addr().map_err(ListenError::Bind)?;
        let closed = inner.cancel.child_token();
        let last_error = Arc::<Mutex<_>>::default();
        let rpc = rpc.map(|how| Arc::new(Rpc { entrance: Entrance::new(how), last_fault: Mutex::default() }));
        let entry = Entry {
            inner: Arc::clone(inner),
            remote: remote.clone(),
            counters: Arc::default(),
            last_error: Arc::clone(&last_error),
            rpc: rpc.clone(),
            closed: closed.clone(),
        };
        let counters = Arc::clone(&entry.counters);
        inner.tasks.spawn(entry.run(listener, events));
        Ok(Arc::new(Self {
            remote,
            addr,
            counters,
            last_error,
            rpc,
            _close: closed.clone().drop_guard(),
            closed,
        }))
    }
}

/// What the task of a listener owns.
#[derive(Clone)]
struct Entry {
    inner: Arc<Inner>,
    remote: Remote,
    counters: Arc<Counters>,
    last_error: Arc<Mutex<Option<Arc<OpenError>>>>,
    rpc: Option<Arc<Rpc>>,
    closed: CancellationToken,
}

/// How long to wait after a failed accept (out of file descriptors): not to spin, and soon enough to go on.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Entry {
    async fn run(self, listener: TcpListener, mut events: broadcast::Receiver<LinkEvent>) {
        let connections = TaskTracker::new();
        loop {
            tokio::select! { biased;
                () = self.closed.cancelled() => break,
                event = events.recv() => if self.is_gone(event) { break },
                accepted = listener.accept() => match accepted {
                    Ok((socket, _)) => _ = connections.spawn(self.clone().connect(socket)),
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "tunnel listener cannot accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        tracing::debug!(peer = %self.remote.peer.short(), service = %self.remote.service, "tunnel listener closed");
        self.closed.cancel();
        drop(listener);
        connections.close();
        connections.wait().await;
    }

    /// Whether the event says that the peer has left.
    fn is_gone(&self, event: Result<LinkEvent, broadcast::error::RecvError>) -> bool {
        let Remote { scope, peer, .. } = &self.remote;
        match event {
            Ok(LinkEvent::Down { peer: down, .. }) => down.scope == *scope && down.id == *peer,
            Ok(_) => false,
            // Missed events may have held the end: a listener that was in use and has no link now has lost its peer.
            Err(broadcast::error::RecvError::Lagged(_)) => {
                self.counters.stats().opened > 0 && transport_has_no_link(&self.inner.transport, scope, peer)
            }
            Err(broadcast::error::RecvError::Closed) => true,
        }
    }

    async fn connect(self, socket: TcpStream) {
        let closed = self.closed.clone();
        tokio::select! { biased;
            // Dropping the other branch resets the socket and the stream.
            () = closed.cancelled() => {}
            () = self.carry(socket) => {}
        }
    }

    async fn carry(&self, socket: TcpStream) {
        let _ = socket.set_nodelay(true);
        match &self.rpc {
            None => match self.inner.open(self.inner.ask(&self.remote)).await {
                Ok((stream, _room)) => {
                    let counters = [&*self.counters, &self.inner.counters];
                    let carried = carry(socket, stream, &counters, self.inner.config.buffer_bytes).await;
                    if let Err(error) = carried {
                        tracing::debug!(
                            peer = %self.remote.peer.short(),
                            error = &error as &dyn std::error::Error,
                            "tunnel connection broke"
                        );
                    }
                }
                Err(refused) => self.refuse(socket, refused),
            },
            Some(rpc) => {
                let asked = rpc.entrance.ask(&self.inner, &self.remote);
                match self.inner.open(asked).await {
                    Ok(((stream, at_peer), _room)) => self.carry_rpc(rpc, socket, stream, at_peer).await,
                    Err(refused) => self.refuse(socket, refused),
                }
            }
        }
    }

    async fn carry_rpc(&self, rpc: &Rpc, socket: TcpStream, stream: Stream, at_peer: Arc<HashSet<WeightId>>) {
        let counters = [&*self.counters, &self.inner.counters];
        let entering = Entering {
            inner: &self.inner,
            remote: &self.remote,
            entrance: &rpc.entrance,
            counters: &counters,
        };
        if let Err(fault) = entering.carry(socket, stream, at_peer).await {
            tracing::warn!(
                peer = %self.remote.peer.short(),
                fault = &fault as &dyn std::error::Error,
                "connection to the rpc-server broke"
            );
            *rpc.last_fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(fault));
        }
    }

    fn refuse(&self, socket: TcpStream, refused: OpenError) {
        refuse(socket);
        self.counters.refused.fetch_add(1, Relaxed);
        self.inner.counters.refused.fetch_add(1, Relaxed);
        tracing::warn!(
            peer = %self.remote.peer.short(),
            service = %self.remote.service,
            error = &refused as &dyn std::error::Error,
            "tunnel connection refused"
        );
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(refused));
    }
}

fn transport_has_no_link(transport: &Transport, scope: &ScopeId, peer: &NodeId) -> bool {
    transport.linked(scope, peer).is_none()
}
