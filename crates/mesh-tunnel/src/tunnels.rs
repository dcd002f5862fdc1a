//! The handle: what this node offers, and what it has opened to others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use mesh_transport::{
    FrameError, FrameReader, Member, Protocol, ResetCode, Stream, StreamFault, Transport, handler_fn,
    write_message,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::exit::{Services, serve};
use crate::metrics::Counters;
use crate::proto::wire::{Answer, FRAME_BYTES_MAX, Open, RefusalCode};
use crate::{Config, ListenError, LocalListener, OfferError, Offered, OpenError, Remote, ServiceName, Stats};

/// The protocol, as streams name it.
pub const PROTOCOL: Protocol = Protocol::new("tunnel/1");

/// The tunnels of a node: the services it offers to members and the listeners that stand for services at peers.
///
/// Cheap to clone. When the last clone is dropped all listeners close and connections are reset.
#[derive(Clone)]
pub struct Tunnels {
    inner: Arc<Inner>,
    listeners: Arc<Mutex<BTreeMap<Remote, Weak<LocalListener>>>>,
    _close: Arc<DropGuard>,
}

pub(crate) struct Inner {
    pub(crate) transport: Transport,
    pub(crate) config: Config,
    pub(crate) services: Arc<Services>,
    pub(crate) counters: Counters,
    pub(crate) exit_room: Arc<Semaphore>,
    entry_room: Arc<Semaphore>,
    pub(crate) cancel: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl Tunnels {
    /// Serves `tunnel/1` on the transport, with nothing on offer yet. One per transport.
    pub fn start(transport: Transport, config: Config) -> Self {
        let room = || Arc::new(Semaphore::new(config.connections_max.min(Semaphore::MAX_PERMITS)));
        let cancel = CancellationToken::new();
        let inner = Arc::new(Inner {
            services: Arc::default(),
            counters: Counters::default(),
            exit_room: room(),
            entry_room: room(),
            cancel: cancel.clone(),
            tasks: TaskTracker::new(),
            transport: transport.clone(),
            config,
        });
        // Weak: the transport keeps its handlers, and a handler must not keep the transport.
        let served = Arc::downgrade(&inner);
        transport.serve(
            PROTOCOL,
            handler_fn(move |member: Member, stream| {
                let served = served.upgrade();
                async move {
                    if let Some(inner) = served {
                        let tracked = inner.tasks.token();
                        serve(inner, member, stream).await;
                        drop(tracked);
                    }
                }
            }),
        );
        Self { inner, listeners: Arc::default(), _close: Arc::new(cancel.drop_guard()) }
    }

    /// Offers a service at a loopback address to members, until the returned value is dropped.
    ///
    /// # Errors
    /// [`OfferError`] when the address is not loopback or the name is taken.
    pub fn offer(&self, name: ServiceName, at: SocketAddr) -> Result<Offered, OfferError> {
        self.inner.services.offer(name, at)
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
        if self.inner.cancel.is_cancelled() {
            return Err(ListenError::Closed);
        }
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let open =
            |listener: &Weak<LocalListener>| listener.upgrade().filter(|listener| !listener.is_closed());
        if let Some(listener) = listeners.get(&remote).and_then(open) {
            return Ok(listener);
        }
        listeners.retain(|_, listener| open(listener).is_some());
        let listener = LocalListener::start(&self.inner, remote.clone())?;
        listeners.insert(remote, Arc::downgrade(&listener));
        Ok(listener)
    }

    /// The listeners that are open.
    pub fn listeners(&self) -> Vec<Arc<LocalListener>> {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.values().filter_map(Weak::upgrade).filter(|listener| !listener.is_closed()).collect()
    }

    /// A connection to a service at a peer, without a local port: the stream carries the service's bytes and nothing else.
    ///
    /// Cancel safe: a dropped future leaves no connection.
    ///
    /// # Errors
    /// [`OpenError`]; no byte of the caller's was sent.
    pub async fn open(&self, remote: &Remote) -> Result<Stream, OpenError> {
        self.inner.open(remote).await.map(|(stream, _room)| stream)
    }

    /// Counters of all listeners and services together.
    pub fn stats(&self) -> Stats {
        self.inner.counters.stats()
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
    pub(crate) async fn open(&self, remote: &Remote) -> Result<(Stream, OwnedSemaphorePermit), OpenError> {
        let Ok(room) = self.entry_room.clone().try_acquire_owned() else {
            return Err(OpenError::Full(self.config.connections_max));
        };
        let timeout = self.config.open_timeout;
        let opened = tokio::select! { biased;
            () = self.cancel.cancelled() => return Err(OpenError::Closed),
            opened = tokio::time::timeout(timeout, self.ask(remote)) => opened,
        };
        Ok((opened.map_err(|_| OpenError::Timeout(timeout))??, room))
    }

    async fn ask(&self, remote: &Remote) -> Result<Stream, OpenError> {
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
            (Err(FrameError::Io(error)), _) if is_not_allowed(&error) => Err(OpenError::Refused {
                code: RefusalCode::NotAllowed,
                text: "only members open tunnels".into(),
            }),
            (Err(error @ FrameError::Io(_)), Err(_)) | (Err(error), Ok(())) => {
                Err(OpenError::Handshake(error))
            }
            (_, Err(error)) => Err(OpenError::Handshake(error)),
            (Ok(None), Ok(())) => Err(OpenError::HungUp),
        }
    }
}

/// Whether the peer's transport has turned us away, since only members get through to its tunnels.
fn is_not_allowed(error: &std::io::Error) -> bool {
    matches!(StreamFault::of(error), Some(StreamFault::Reset(ResetCode::NOT_ALLOWED)))
}
