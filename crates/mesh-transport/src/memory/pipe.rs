//! One direction of a stream in memory, with a bounded buffer.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, OwnedSemaphorePermit},
    time::{Instant, Sleep},
};

use super::connection::{End, Shared};
use crate::{
    error::{ClosedWhy, ConnectionLost, ResetCode, StreamFault},
    stream::{RecvHalf, SendHalf},
};

/// What a writer may be ahead of its reader, like the window of a real stream.
const BUFFER_BYTES: usize = 256 * 1024;

pub(super) struct Pipe {
    shared: Arc<Shared>,
    writer_end: End,
    state: Mutex<State>,
    /// Something that may end the writer's interest has happened.
    gone: Notify,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Chunk>,
    buffered: usize,
    last_due: Option<Instant>,
    fin: Option<Instant>,
    fin_read: bool,
    reset: Option<(Instant, ResetCode)>,
    stop: Option<ResetCode>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

struct Chunk {
    due: Instant,
    bytes: Vec<u8>,
    read: usize,
}

impl Pipe {
    pub(super) fn new(shared: Arc<Shared>, writer_end: End) -> Arc<Self> {
        Arc::new(Self { shared, writer_end, state: Mutex::default(), gone: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets both sides look again: the connection closed, stalled or healed.
    pub(super) fn wake(&self) {
        self.lock().wake();
        self.gone.notify_waiters();
    }

    fn writer_is_done(&self) -> bool {
        let state = self.lock();
        state.fin_read
            || self.shared.closed(self.writer_end).is_some()
            || (state.stop.is_some() && !self.shared.stalled())
    }
}

impl State {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// Bytes arrive in order, whatever the wire does to one packet.
    fn next_due(&mut self, shared: &Shared) -> Instant {
        let due = shared.arrival().max(self.last_due.unwrap_or_else(Instant::now));
        self.last_due = Some(due);
        due
    }
}

/// The writing half.
pub(super) struct MemorySend {
    pub(super) pipe: Arc<Pipe>,
    pub(super) _slot: Option<Arc<OwnedSemaphorePermit>>,
}

/// The reading half.
pub(super) struct MemoryRecv {
    pub(super) pipe: Arc<Pipe>,
    pub(super) sleep: Option<Pin<Box<Sleep>>>,
    pub(super) _slot: Option<Arc<OwnedSemaphorePermit>>,
}

fn lost(why: ClosedWhy) -> io::Error {
    StreamFault::Lost(ConnectionLost { why }).into()
}

impl AsyncWrite for MemorySend {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let pipe = &self.pipe;
        let mut state = pipe.lock();
        if let Some(why) = pipe.shared.closed(pipe.writer_end) {
            return Poll::Ready(Err(lost(why)));
        }
        if state.fin.is_some() || state.reset.is_some() {
            return Poll::Ready(Err(StreamFault::Ended.into()));
        }
        if let Some(code) = state.stop
            && !pipe.shared.stalled()
        {
            return Poll::Ready(Err(StreamFault::Stopped(code).into()));
        }
        let room = BUFFER_BYTES - state.buffered;
        if room == 0 {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let taken = room.min(buf.len());
        let due = state.next_due(&pipe.shared);
        state.chunks.push_back(Chunk { due, bytes: buf[..taken].to_vec(), read: 0 });
        state.buffered += taken;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.pipe.lock();
        if let Some(why) = self.pipe.shared.closed(self.pipe.writer_end) {
            return Poll::Ready(Err(lost(why)));
        }
        if state.fin.is_none() {
            state.fin = Some(state.next_due(&self.pipe.shared));
            if let Some(reader) = state.reader.take() {
                reader.wake();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl SendHalf for MemorySend {
    fn reset(&mut self, code: ResetCode) {
        // The end of the connection says it all, as over QUIC.
        if self.pipe.shared.closed(self.pipe.writer_end).is_some() {
            return;
        }
        let mut state = self.pipe.lock();
        if state.fin.is_none() && state.reset.is_none() {
            state.reset = Some((self.pipe.shared.arrival(), code));
            state.wake();
        }
    }

    fn stopped(&self) -> BoxFuture<'static, ()> {
        let pipe = self.pipe.clone();
        Box::pin(async move {
            loop {
                let gone = pipe.gone.notified();
                if pipe.writer_is_done() {
                    return;
                }
                gone.await;
            }
        })
    }
}

enum Ready {
    Bytes,
    End,
    Error(io::Error),
    At(Option<Instant>),
}

impl MemoryRecv {
    fn ready(&self, state: &mut State, buf: &mut ReadBuf<'_>) -> Ready {
        let shared = &self.pipe.shared;
        let closed = shared.closed(self.pipe.writer_end.other());
        if let Some(why @ ClosedWhy::Local(_)) = closed {
            return Ready::Error(lost(why));
        }
        if shared.stalled() && closed.is_none() {
            return Ready::At(None);
        }
        let now = Instant::now();
        if let Some((due, code)) = state.reset
            && due <= now
        {
            return Ready::Error(StreamFault::Reset(code).into());
        }
        if let Some(chunk) = state.chunks.front_mut()
            && chunk.due <= now
        {
            let taken = buf.remaining().min(chunk.bytes.len() - chunk.read);
            buf.put_slice(&chunk.bytes[chunk.read..chunk.read + taken]);
            chunk.read += taken;
            if chunk.read == chunk.bytes.len() {
                state.chunks.pop_front();
            }
            state.buffered -= taken;
            return Ready::Bytes;
        }
        if state.chunks.is_empty() && state.fin.is_some_and(|due| due <= now) {
            state.fin_read = true;
            return Ready::End;
        }
        if let Some(why) = closed {
            return Ready::Error(lost(why));
        }
        let next = state.chunks.front().map(|chunk| chunk.due).or(state.fin);
        Ready::At([next, state.reset.map(|(due, _)| due)].into_iter().flatten().min())
    }
}

impl AsyncRead for MemoryRecv {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let pipe = self.pipe.clone();
        loop {
            let at = {
                let mut state = pipe.lock();
                match self.ready(&mut state, buf) {
                    Ready::Bytes => {
                        if let Some(writer) = state.writer.take() {
                            writer.wake();
                        }
                        return Poll::Ready(Ok(()));
                    }
                    Ready::End => {
                        drop(state);
                        pipe.gone.notify_waiters();
                        return Poll::Ready(Ok(()));
                    }
                    Ready::Error(error) => return Poll::Ready(Err(error)),
                    Ready::At(at) => {
                        state.reader = Some(cx.waker().clone());
                        at
                    }
                }
            };
            let Some(at) = at else { return Poll::Pending };
            let mut sleep = self.sleep.take().unwrap_or_else(|| Box::pin(tokio::time::sleep_until(at)));
            if sleep.deadline() != at {
                sleep.as_mut().reset(at);
            }
            let elapsed = sleep.as_mut().poll(cx).is_ready();
            if !elapsed {
                self.sleep = Some(sleep);
                return Poll::Pending;
            }
        }
    }
}

impl RecvHalf for MemoryRecv {
    fn stop(&mut self, code: ResetCode) {
        if self.pipe.shared.closed(self.pipe.writer_end.other()).is_some() {
            return;
        }
        {
            let mut state = self.pipe.lock();
            if state.stop.is_none() && !state.fin_read {
                state.stop = Some(code);
                state.chunks.clear();
                state.buffered = 0;
                state.wake();
            }
        }
        self.pipe.gone.notify_waiters();
    }
}
