//! A libp2p connection as one of ours.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use libp2p::Multiaddr;
use mesh_identity::NodeId;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use super::{addr, gate::Gate, stream};
use crate::{
    connection::{Connection, Origin, PathFacts},
    error::{CloseCode, ClosedWhy, ConnectionLost},
    proto::hello::truncated,
    stream::Stream,
};

/// Streams asked for and not yet handed to libp2p; more askers wait.
const OPENS: usize = 64;

/// A stream that libp2p has negotiated, or what it says instead.
pub(super) type Opened = Result<libp2p::Stream, String>;

/// What a connection's handler in libp2p and its [`LanConnection`] have in common.
pub(super) struct Shared {
    pub(super) peer: NodeId,
    pub(super) origin: Origin,
    ends: Ends,
    pub(super) tasks: TaskTracker,
    /// How it ended; only the first cause counts.
    closed: watch::Sender<Option<ClosedWhy>>,
    /// What the peer is told with the code.
    goodbye: Mutex<String>,
    path: watch::Sender<PathFacts>,
    opens: mpsc::Sender<oneshot::Sender<Opened>>,
    /// Streams we may open: one before hello.
    outbound: Arc<Semaphore>,
    /// Streams the peer may open: one before hello. Those beyond wait in the peer.
    inbound: Arc<Semaphore>,
    streams_max: usize,
    used: AtomicBool,
    admitted: AtomicBool,
    gate: Arc<Gate>,
    born: Instant,
    /// Milliseconds after `born` at which the peer was last heard.
    heard: AtomicU64,
    arrived: mpsc::Sender<(libp2p::Stream, OwnedSemaphorePermit)>,
}

/// Where the two ends of a connection are.
pub(super) struct Ends {
    /// The machine's own address that it needs; none where another node lies between.
    pub(super) here: Option<IpAddr>,
    pub(super) there: Multiaddr,
}

/// What only one side of [`Shared`] reads from.
pub(super) struct Queues {
    /// For the handler: streams to open.
    pub(super) opens: mpsc::Receiver<oneshot::Sender<Opened>>,
    /// For the connection: streams that the peer opened.
    pub(super) arrived: mpsc::Receiver<(libp2p::Stream, OwnedSemaphorePermit)>,
}

impl Shared {
    pub(super) fn new(
        peer: NodeId,
        origin: Origin,
        ends: Ends,
        path: PathFacts,
        gate: Arc<Gate>,
        streams_max: usize,
        tasks: TaskTracker,
    ) -> (Arc<Self>, Queues) {
        let (opens, opens_queue) = mpsc::channel(OPENS);
        let (arrived, arrived_queue) = mpsc::channel(streams_max);
        let shared = Self {
            peer,
            origin,
            ends,
            tasks,
            closed: watch::Sender::new(None),
            goodbye: Mutex::default(),
            path: watch::Sender::new(path),
            opens,
            outbound: Arc::new(Semaphore::new(1)),
            inbound: Arc::new(Semaphore::new(1)),
            streams_max,
            used: AtomicBool::new(false),
            admitted: AtomicBool::new(false),
            gate,
            born: Instant::now(),
            heard: AtomicU64::new(0),
            arrived,
        };
        (Arc::new(shared), Queues { opens: opens_queue, arrived: arrived_queue })
    }

    /// Ends the connection for all who use it. `false` if it had ended before.
    pub(super) fn end(&self, why: ClosedWhy) -> bool {
        self.closed.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(why);
            first
        })
    }

    /// How it ended, if it has.
    pub(super) fn ended(&self) -> Option<ClosedWhy> {
        self.closed.borrow().clone()
    }

    /// Resolves when it has ended, with the cause. Cancel safe.
    pub(super) async fn closed(&self) -> ClosedWhy {
        let mut closed = self.closed.subscribe();
        match closed.wait_for(Option::is_some).await {
            Ok(why) => why.clone().expect("waited for"),
            Err(_) => unreachable!("the sender is in self"),
        }
    }

    /// What the peer is to be told once the connection was closed here.
    pub(super) fn goodbye(&self) -> Option<(CloseCode, String)> {
        match self.ended() {
            Some(ClosedWhy::Local(code)) => {
                Some((code, self.goodbye.lock().unwrap_or_else(PoisonError::into_inner).clone()))
            }
            _ => None,
        }
    }

    /// Room for a stream of the peer's; waits while it has as many as it may.
    pub(super) async fn inbound_room(&self) -> OwnedSemaphorePermit {
        self.inbound.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Hands a stream of the peer's to whoever accepts.
    pub(super) fn arrive(&self, io: libp2p::Stream, room: OwnedSemaphorePermit) {
        // There are as many places as permits, so this fails only when nobody accepts any more.
        drop(self.arrived.try_send((io, room)));
    }

    /// Notes a sign of life.
    pub(super) fn hear(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
    }

    /// How long ago the last one was.
    pub(super) fn silent_for(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.heard.load(Ordering::Relaxed)))
    }

    /// Whether it was handed out, and is not libp2p's own business alone.
    pub(super) fn is_used(&self) -> bool {
        self.used.load(Ordering::SeqCst)
    }

    pub(super) fn path(&self) -> PathFacts {
        *self.path.borrow()
    }

    /// Notes what was measured; subscribers are told only of another kind of path.
    pub(super) fn set_path(&self, facts: PathFacts) {
        self.path.send_if_modified(|known| {
            let changed = known.kind != facts.kind;
            *known = facts;
            changed
        });
    }

    fn lost(&self, otherwise: impl Into<String>) -> ConnectionLost {
        ConnectionLost { why: self.ended().unwrap_or_else(|| ClosedWhy::Failed(otherwise.into())) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if *self.admitted.get_mut() {
            self.gate.leave();
        }
    }
}

/// The connection as the transport holds it; dropped, it is closed.
pub(super) struct LanConnection {
    shared: Arc<Shared>,
    arrived: tokio::sync::Mutex<mpsc::Receiver<(libp2p::Stream, OwnedSemaphorePermit)>>,
}

impl LanConnection {
    pub(super) fn new(
        shared: Arc<Shared>,
        arrived: mpsc::Receiver<(libp2p::Stream, OwnedSemaphorePermit)>,
    ) -> Self {
        shared.used.store(true, Ordering::SeqCst);
        Self { shared, arrived: tokio::sync::Mutex::new(arrived) }
    }

    /// A stream of the library's, without anything of ours on it.
    #[cfg(test)]
    pub(super) async fn open_bare(&self) -> libp2p::Stream {
        let (opened, stream) = oneshot::channel();
        self.shared.opens.send(opened).await.expect("is there");
        stream.await.expect("is there").expect("opens")
    }

    /// The other end of one.
    #[cfg(test)]
    pub(super) async fn accept_bare(&self) -> libp2p::Stream {
        self.arrived.lock().await.recv().await.expect("arrives").0
    }

    async fn open_stream(&self) -> Result<Stream, ConnectionLost> {
        let gone = || self.shared.lost("the driver has ended");
        let permit = self.shared.outbound.clone().acquire_owned().await.map_err(|_| gone())?;
        let (opened, stream) = oneshot::channel();
        self.shared.opens.send(opened).await.map_err(|_| gone())?;
        let opened = stream.await.map_err(|_| gone())?;
        let io = opened.map_err(|error| self.shared.lost(error))?;
        Ok(stream::wrap(io, self.shared.clone(), permit))
    }
}

impl Connection for LanConnection {
    fn peer(&self) -> NodeId {
        self.shared.peer
    }

    fn open(&self) -> BoxFuture<'_, Result<Stream, ConnectionLost>> {
        Box::pin(async {
            tokio::select! {
                biased;
                why = self.shared.closed() => Err(ConnectionLost { why }),
                opened = self.open_stream() => opened,
            }
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Stream, ConnectionLost>> {
        Box::pin(async {
            let next = async { self.arrived.lock().await.recv().await };
            tokio::select! {
                biased;
                why = self.shared.closed() => Err(ConnectionLost { why }),
                next = next => {
                    let (io, room) = next.ok_or_else(|| self.shared.lost("the driver has ended"))?;
                    Ok(stream::wrap(io, self.shared.clone(), room))
                }
            }
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        let mut goodbye = self.shared.goodbye.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shared.ended().is_none() {
            truncated(reason, 256).clone_into(&mut goodbye);
            self.shared.end(ClosedWhy::Local(code));
        }
    }

    fn closed(&self) -> BoxFuture<'_, ClosedWhy> {
        Box::pin(self.shared.closed())
    }

    fn path(&self) -> PathFacts {
        self.shared.path()
    }

    fn path_changes(&self) -> watch::Receiver<PathFacts> {
        self.shared.path.subscribe()
    }

    fn origin(&self) -> Origin {
        self.shared.origin
    }

    fn remote(&self) -> Option<String> {
        Some(match addr::socket(&self.shared.ends.there) {
            Some((socket, _)) => socket.to_string(),
            None => self.shared.ends.there.to_string(),
        })
    }

    fn remote_addr(&self) -> Option<SocketAddr> {
        addr::socket(&self.shared.ends.there).map(|(socket, _)| socket)
    }

    fn bound_to(&self) -> Option<IpAddr> {
        self.shared.ends.here
    }

    fn admitted(&self) {
        if !self.shared.admitted.swap(true, Ordering::SeqCst) {
            self.shared.gate.open();
            let more = self.shared.streams_max - 1;
            self.shared.outbound.add_permits(more);
            self.shared.inbound.add_permits(more);
        }
    }
}

impl Drop for LanConnection {
    fn drop(&mut self) {
        self.close(CloseCode::Done, "dropped");
    }
}
