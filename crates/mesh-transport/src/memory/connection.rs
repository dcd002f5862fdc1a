//! A connection in memory: two ends, streams between them, and what the network does to them.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use mesh_identity::NodeId;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use super::{
    network::Conditions,
    pipe::{MemoryRecv, MemorySend, Pipe},
};
use crate::{
    connection::{Connection, Origin, PathFacts, PathKind, TransportKind},
    error::{CloseCode, ClosedWhy, ConnectionLost},
    stream::Stream,
};

/// Inbound streams that may be open at once, as over QUIC.
const STREAMS_MAX: usize = 1024;

/// Which end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Dialer,
    Acceptor,
}

impl End {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Dialer => Self::Acceptor,
            Self::Acceptor => Self::Dialer,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Dialer => 0,
            Self::Acceptor => 1,
        }
    }
}

/// What both ends have in common.
pub(super) struct Shared {
    pub(super) nodes: [NodeId; 2],
    plays: (TransportKind, PathKind),
    conditions: Conditions,
    stalled: AtomicBool,
    random: Mutex<u64>,
    ends: Mutex<[EndState; 2]>,
    pipes: Mutex<Vec<Weak<Pipe>>>,
    changed: [Notify; 2],
    streams: [Arc<Semaphore>; 2],
    tasks: TaskTracker,
}

#[derive(Default)]
struct EndState {
    closed: Option<ClosedWhy>,
    incoming: VecDeque<(Instant, Stream)>,
}

impl Shared {
    pub(super) fn new(
        nodes: [NodeId; 2],
        plays: (TransportKind, PathKind),
        conditions: Conditions,
        seed: u64,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Self {
            nodes,
            plays,
            conditions,
            stalled: AtomicBool::new(false),
            random: Mutex::new(seed),
            ends: Mutex::default(),
            pipes: Mutex::default(),
            changed: [Notify::new(), Notify::new()],
            streams: [Arc::new(Semaphore::new(STREAMS_MAX)), Arc::new(Semaphore::new(STREAMS_MAX))],
            tasks,
        })
    }

    fn ends(&self) -> MutexGuard<'_, [EndState; 2]> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn closed(&self, end: End) -> Option<ClosedWhy> {
        self.ends()[end.index()].closed.clone()
    }

    pub(super) fn stalled(&self) -> bool {
        self.stalled.load(Ordering::SeqCst)
    }

    /// When something sent now arrives. A lost packet arrives a retransmission later.
    pub(super) fn arrival(&self) -> Instant {
        let Conditions { latency, jitter, loss, .. } = self.conditions;
        let mut after = latency;
        if !jitter.is_zero() {
            after += jitter.mul_f64(self.draw());
        }
        if loss > 0.0 && self.draw() < loss {
            after += 2 * latency + Duration::from_millis(50);
        }
        Instant::now() + after
    }

    /// The next number in 0..1 of this connection's own sequence (splitmix64).
    fn draw(&self) -> f64 {
        let mut state = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        f64::from(u32::try_from(z >> 32).expect("32 bits are left")) / (f64::from(u32::MAX) + 1.0)
    }

    /// Stops or restarts everything on the connection.
    pub(super) fn stall(self: &Arc<Self>, stalled: bool) {
        self.stalled.store(stalled, Ordering::SeqCst);
        self.wake_all();
        if !stalled {
            return;
        }
        let (shared, after) = (self.clone(), self.conditions.detect_after);
        self.tasks.spawn(async move {
            let until = Instant::now() + after;
            loop {
                let changed = shared.changed[0].notified();
                if !shared.stalled() || shared.closed(End::Dialer).is_some() {
                    return;
                }
                if tokio::time::timeout_at(until, changed).await.is_err() {
                    break;
                }
            }
            shared.fail(&ClosedWhy::TimedOut);
        });
    }

    /// Ends the connection at both ends without a goodbye.
    pub(super) fn fail(&self, why: &ClosedWhy) {
        self.mark(End::Dialer, why.clone());
        self.mark(End::Acceptor, why.clone());
    }

    pub(super) fn close(self: &Arc<Self>, end: End, code: CloseCode, reason: &str) {
        if !self.mark(end, ClosedWhy::Local(code)) {
            return;
        }
        let why = ClosedWhy::Peer { code, reason: crate::proto::hello::truncated(reason, 256).to_owned() };
        let due = self.arrival();
        if due <= Instant::now() && !self.stalled() {
            self.mark(end.other(), why);
            return;
        }
        let shared = self.clone();
        self.tasks.spawn(async move {
            tokio::time::sleep_until(due).await;
            let lost_at = due + shared.conditions.detect_after;
            loop {
                let changed = shared.changed[end.other().index()].notified();
                if !shared.stalled() {
                    shared.mark(end.other(), why);
                    return;
                }
                if tokio::time::timeout_at(lost_at, changed).await.is_err() {
                    shared.mark(end.other(), ClosedWhy::TimedOut);
                    return;
                }
            }
        });
    }

    /// Sets how the connection ended for one end; only the first counts.
    fn mark(&self, end: End, why: ClosedWhy) -> bool {
        let abandoned = {
            let mut ends = self.ends();
            let state = &mut ends[end.index()];
            if state.closed.is_some() {
                return false;
            }
            state.closed = Some(why);
            std::mem::take(&mut state.incoming)
        };
        drop(abandoned);
        self.streams[end.index()].close();
        self.wake_all();
        true
    }

    fn wake_all(&self) {
        let pipes: Vec<_> = {
            let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
            pipes.retain(|pipe| pipe.strong_count() > 0);
            pipes.iter().filter_map(Weak::upgrade).collect()
        };
        for pipe in pipes {
            pipe.wake();
        }
        self.changed[0].notify_waiters();
        self.changed[1].notify_waiters();
    }

    fn remember(&self, pipe: &Arc<Pipe>) {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        if pipes.len() == pipes.capacity() {
            pipes.retain(|pipe| pipe.strong_count() > 0);
        }
        pipes.push(Arc::downgrade(pipe));
    }

    /// A stream as seen by the end that opens it; the other end finds its side in its queue.
    fn open(self: &Arc<Self>, end: End, slot: OwnedSemaphorePermit) -> Result<Stream, ConnectionLost> {
        let (there, back) = (Pipe::new(self.clone(), end), Pipe::new(self.clone(), end.other()));
        self.remember(&there);
        self.remember(&back);
        let slot = Some(Arc::new(slot));
        let theirs = Stream::from_halves(
            Box::new(MemorySend { pipe: back.clone(), _slot: slot.clone() }),
            Box::new(MemoryRecv { pipe: there.clone(), sleep: None, _slot: slot }),
        );
        let ours = Stream::from_halves(
            Box::new(MemorySend { pipe: there, _slot: None }),
            Box::new(MemoryRecv { pipe: back, sleep: None, _slot: None }),
        );
        let due = self.arrival();
        let refused = {
            let mut ends = self.ends();
            if let Some(why) = ends[end.index()].closed.clone() {
                Some((why, theirs))
            } else {
                let queue = &mut ends[end.other().index()];
                match queue.closed {
                    Some(_) => None, // the goodbye is on its way to us; the stream goes nowhere
                    None => {
                        queue.incoming.push_back((due, theirs));
                        None
                    }
                }
            }
        };
        self.changed[end.other().index()].notify_waiters();
        match refused {
            Some((why, _theirs)) => Err(ConnectionLost { why }),
            None => Ok(ours),
        }
    }
}

/// One end of a connection in memory.
pub(super) struct MemoryConnection {
    pub(super) shared: Arc<Shared>,
    pub(super) end: End,
    /// Kept so that receivers of path changes never end.
    pub(super) path: watch::Sender<PathFacts>,
}

impl MemoryConnection {
    pub(super) fn new(shared: Arc<Shared>, end: End) -> Self {
        let rtt = Some(2 * shared.conditions.latency);
        let (transport, kind) = shared.plays;
        let facts = PathFacts { kind, rtt, transport };
        Self { shared, end, path: watch::Sender::new(facts) }
    }
}

impl Connection for MemoryConnection {
    fn peer(&self) -> NodeId {
        self.shared.nodes[self.end.other().index()]
    }

    fn open(&self) -> BoxFuture<'_, Result<Stream, ConnectionLost>> {
        Box::pin(async {
            let slot = self.shared.streams[self.end.index()].clone().acquire_owned().await;
            let slot = slot.map_err(|_| ConnectionLost {
                why: self.shared.closed(self.end).unwrap_or(ClosedWhy::Failed("closing".into())),
            })?;
            self.shared.open(self.end, slot)
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Stream, ConnectionLost>> {
        Box::pin(async {
            loop {
                let changed = self.shared.changed[self.end.index()].notified();
                let due = {
                    let mut ends = self.shared.ends();
                    let state = &mut ends[self.end.index()];
                    if let Some(why) = state.closed.clone() {
                        return Err(ConnectionLost { why });
                    }
                    let due = state.incoming.front().map(|(due, _)| *due).filter(|_| !self.shared.stalled());
                    if due.is_some_and(|due| due <= Instant::now())
                        && let Some((_, stream)) = state.incoming.pop_front()
                    {
                        return Ok(stream);
                    }
                    due
                };
                match due {
                    Some(due) => drop(tokio::time::timeout_at(due, changed).await),
                    None => changed.await,
                }
            }
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.shared.close(self.end, code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, ClosedWhy> {
        Box::pin(async {
            loop {
                let changed = self.shared.changed[self.end.index()].notified();
                if let Some(why) = self.shared.closed(self.end) {
                    return why;
                }
                changed.await;
            }
        })
    }

    fn path(&self) -> PathFacts {
        *self.path.borrow()
    }

    fn path_changes(&self) -> watch::Receiver<PathFacts> {
        self.path.subscribe()
    }

    fn origin(&self) -> Origin {
        Origin::Node(self.peer())
    }
}

impl Drop for MemoryConnection {
    fn drop(&mut self) {
        self.shared.close(self.end, CloseCode::Done, "dropped");
    }
}
