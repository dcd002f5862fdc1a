//! The handle: what this node offers, and what it has opened to others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use mesh_identity::{NodeId, ScopeId};
use mesh_transport::{
    FrameError, FrameReader, Handler, Member, Protocol, ResetCode, Stream, StreamFault, Transport,
    handler_fn, write_message,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::exit::{Services, serve, serve_rpc};
use crate::metrics::Counters;
use crate::proto::wire::{Answer, FRAME_BYTES_MAX, Open, RefusalCode};
use crate::rpc::{RPC_PROTOCOL, RpcOffer, RpcUse};
use crate::{
    Config, ListenError, LocalListener, OfferError, Offered, OpenError, Remote, RpcStats, ServiceName, Stats,
};

/// The protocol, as streams name it.
pub const PROTOCOL: Protocol = Protocol::new("tunnel/1");

/// The tunnels of a node: the services it offers to members and the listeners that stand for services at peers.
///
/// Cheap to clone. When the last clone is dropped all listeners close and connections are reset.
#[derive(Clone)]
pub struct Tunnels {
    inner: Arc<Inner>,
    _close: Arc<DropGuard>,
}

/// Listeners by what they stand for, and whether it is an rpc-server.
type Listeners = BTreeMap<(Remote, bool), Weak<LocalListener>>;

pub(crate) struct Inner {
    pub(crate) transport: Transport,
    pub(crate) config: Config,
    pub(crate) services: Arc<Services>,
    pub(crate) counters: Counters,
    pub(crate) exit_room: Arc<Semaphore>,
    entry_room: Arc<Semaphore>,
    listeners: Mutex<Listeners>,
    pub(crate) cancel: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl Tunnels {
    /// Serves `tunnel/1` and `rpc/2` on the transport, with nothing on offer yet. One per transport.
    pub fn start(transport: Transport, config: Config) -> Self {
        let room = || Arc::new(Semaphore::new(config.connections_max.min(Semaphore::MAX_PERMITS)));
        let cancel = CancellationToken::new();
        let inner = Arc::new(Inner {
            services: Arc::default(),
            counters: Counters::default(),
            exit_room: room(),
            entry_room: room(),
            listeners: Mutex::default(),
            cancel: cancel.clone(),
            tasks: TaskTracker::new(),
            transport: transport.clone(),
            config,
        });
        transport.serve(PROTOCOL, handler(&inner, serve));
        transport.serve(RPC_PROTOCOL, handler(&inner, serve_rpc));
        Self { inner, _close: Arc::new(cancel.drop_guard()) }
    }

    /// Offers a service at a loopback address to members, until the returned value is dropped.
    ///
    /// # Errors
    /// [`OfferError`] when the address is not loopback or the name is taken.
    pub fn offer(&self, name: ServiceName, at: SocketAddr) -> Result<Offered, OfferError> {
        self.inner.services.offer(name, at, None)
    }

    /// Offers an rpc-server at a loopback address to the members that the offer allows, until the returned value is dropped.
    /// Nothing connects to it before one of them does.
    ///
    /// # Errors
    /// [`OfferError`] when the address is not loopback or the name is taken.
    pub fn offer_rpc(
        &self,
        name: ServiceName,
        at: SocketAddr,
        offer: RpcOffer,
    ) -> Result<Offered, OfferError> {
        self.inner.services.offer(name, at, Some(offer))
    }

    /// The names on offer, sorted.
    pub fn offered(&self) -> Vec<ServiceName> {
        self.inner.services.names()
    }

    /// The local port that stands for a service at a peer: the one that is open, or a new one on 127.0.0.1.
    ///
    /// The peer is not asked before the first connection. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// [`ListenError`] when no port can be had or the tunnels are shut down.
    pub fn listen(&self, remote: Remote) -> Result<Arc<LocalListener>, ListenError> {
        self.inner.listen(remote, None)
    }

    /// The local port that stands for an rpc-server at a peer: the one that is open, with what it was opened with, or a
    /// new one on 127.0.0.1 for a llama-server's `--rpc`.
    ///
    /// The peer is not asked before the first connection. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// [`ListenError`] when no port can be had or the tunnels are shut down.
    pub fn listen_rpc(&self, remote: Remote, how: RpcUse) -> Result<Arc<LocalListener>, ListenError> {
        self.inner.listen(remote, Some(how))
    }

    /// The listeners that are open.
    pub fn listeners(&self) -> Vec<Arc<LocalListener>> {
        let listeners = self.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.values().filter_map(Weak::upgrade).filter(|listener| !listener.is_closed()).collect()
    }

    /// A connection to a service at a peer, without a local port: the stream carries the service's bytes and nothing else.
    ///
    /// Cancel safe: a dropped future leaves no connection.
    ///
    /// # Errors
    /// [`OpenError`]; no byte of the caller's was sent.
    pub async fn open(&self, remote: &Remote) -> Result<Stream, OpenError> {
        self.inner.open(self.inner.ask(remote)).await.map(|(stream, _room)| stream)
    }

    /// Counters of all listeners and services together.
    pub fn stats(&self) -> Stats {
        self.inner.counters.stats()
    }

    /// What passed to and from rpc-servers, here and at peers.
    pub fn rpc_stats(&self) -> RpcStats {
        self.inner.counters.rpc_stats()
    }

    /// Closes all listeners, resets all connections and waits for their tasks. Idempotent.
    pub async fn shutdown(&self) {
        self.inner.cancel.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    /// Opens a connection at the peer; it counts against the entry's cap while the permit lives.
    pub(crate) async fn open<T>(
        &self,
        asked: impl Future<Output = Result<T, OpenError>>,
    ) -> Result<(T, OwnedSemaphorePermit), OpenError> {
        let Ok(room) = self.entry_room.clone().try_acquire_owned() else {
            return Err(OpenError::Full(self.config.connections_max));
        };
        let timeout = self.config.open_timeout;
        let opened = tokio::select! { biased;
            () = self.cancel.cancelled() => return Err(OpenError::Closed),
            opened = tokio::time::timeout(timeout, asked) => opened,
        };
        Ok((opened.map_err(|_| OpenError::Timeout(timeout))??, room))
    }

    pub(crate) async fn ask(&self, remote: &Remote) -> Result<Stream, OpenError> {
        let stream = self.transport.open(&remote.scope, &remote.peer, PROTOCOL).await?;
        let (mut send, recv) = stream.split();
        let open = Open { service: remote.service.as_str().to_owned() };
        // A peer that refuses at once may have stopped reading: its answer says why, so it is read all the same.
        let asked = write_message(&mut send, &open, FRAME_BYTES_MAX).await;
        let mut reader = FrameReader::new(recv, FRAME_BYTES_MAX);
        match (reader.next_message::<Answer>().await, asked) {
            (Ok(Some(Answer::Accepted)), Ok(())) => Ok(Stream::join(send, reader.into_inner())),
            (Ok(Some(Answer::Refused { code, text })), _) => {
                Err(OpenError::Refused { code: RefusalCode::from_wire(code), text })
            }
            (answer, asked) => Err(answer_error(answer.map(|answer| answer.map(drop)), asked)),
        }
    }

    pub(crate) fn listen(
        self: &Arc<Self>,
        remote: Remote,
        rpc: Option<RpcUse>,
    ) -> Result<Arc<LocalListener>, ListenError> {
        if self.cancel.is_cancelled() {
            return Err(ListenError::Closed);
        }
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let open =
            |listener: &Weak<LocalListener>| listener.upgrade().filter(|listener| !listener.is_closed());
        let key = (remote.clone(), rpc.is_some());
        if let Some(listener) = listeners.get(&key).and_then(open) {
            return Ok(listener);
        }
        listeners.retain(|_, listener| open(listener).is_some());
        let listener = LocalListener::start(self, remote, rpc)?;
        listeners.insert(key, Arc::downgrade(&listener));
        Ok(listener)
    }

    /// Which rpc-server of which node of the scope a port of this machine stands for.
    pub(crate) fn stands_for(&self, port: u16, scope: &ScopeId) -> Option<(NodeId, ServiceName)> {
        if let Some(own) = self.services.rpc_at(port) {
            return Some((self.transport.node_id(), own));
        }
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let rpc = listeners.iter().filter(|((remote, rpc), _)| *rpc && remote.scope == *scope);
        let mut open = rpc.filter_map(|(_, listener)| listener.upgrade());
        let found = open.find(|listener| listener.addr().port() == port && !listener.is_closed())?;
        Some((found.remote().peer, found.remote().service.clone()))
    }
}

/// A handler that serves while the tunnels live.
fn handler<S, Fut>(inner: &Arc<Inner>, serve: S) -> Arc<dyn Handler>
where
    S: Fn(Arc<Inner>, Member, Stream) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    // Weak: the transport keeps its handlers, and a handler must not keep the transport.
    let served = Arc::downgrade(inner);
    handler_fn(move |member: Member, stream| {
        let served = served.upgrade();
        async move {
            if let Some(inner) = served {
                let tracked = inner.tasks.token();
                serve(inner, member, stream).await;
                drop(tracked);
            }
        }
    })
}

/// Why a question has no answer that opens a connection.
pub(crate) fn answer_error(
    answer: Result<Option<()>, FrameError>,
    asked: Result<(), FrameError>,
) -> OpenError {
    match (answer, asked) {
        (Err(FrameError::Io(error)), _) if is_not_allowed(&error) => {
            OpenError::Refused { code: RefusalCode::NotAllowed, text: "only members open tunnels".into() }
        }
        (Err(error @ FrameError::Io(_)), Err(_)) | (Err(error), Ok(())) => OpenError::Handshake(error),
        (_, Err(error)) => OpenError::Handshake(error),
        (Ok(_), Ok(())) => OpenError::HungUp,
    }
}

/// Whether the peer's transport has turned us away, since only members get through to its tunnels.
fn is_not_allowed(error: &std::io::Error) -> bool {
    matches!(StreamFault::of(error), Some(StreamFault::Reset(ResetCode::NOT_ALLOWED)))
}
