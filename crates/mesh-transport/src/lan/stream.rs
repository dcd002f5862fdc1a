//! A libp2p stream as one of ours: two halves for the program, and a task that moves bytes between them and the wire.
//!
//! The task is what lets a write return at once, a dropped half still say why, and a stop be heard by a writer that
//! never reads.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::{OwnedSemaphorePermit, watch},
};
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::{
    connection::Shared,
    record::{self, Piece, Reader},
};
use crate::{
    error::{ClosedWhy, ConnectionLost, ResetCode, StreamFault},
    stream::{RecvHalf, SendHalf, Stream},
};

/// Bytes that a writer may be ahead of the wire; as much again is on its way to it. Two records at full size.
const OUT_BYTES_MAX: usize = 2 * record::DATA_BYTES_MAX;
/// Bytes read from the wire ahead of the reader, as large as yamux's own window of a stream at its start.
const IN_BYTES_MAX: usize = 256 * 1024;
/// The most that is read from the wire at once: a frame of yamux, since so much is zeroed before each read.
const READ_BYTES: usize = 16 * 1024;
/// What is allocated to read into, several reads at a time.
const ROOM_BYTES: usize = 64 * 1024;
/// How long an abandoned stream may take to tell its codes; then it is dropped, and the peer sees "cancelled".
const ABANDONED_FOR: Duration = Duration::from_secs(2);
/// How long after a stream fell silent its connection may take to say that it has ended.
const CAUSE_WAIT: Duration = Duration::from_millis(500);

/// Wraps a stream that both sides have agreed upon. The permit is given back when both directions are over.
pub(super) fn wrap(io: libp2p::Stream, conn: Arc<Shared>, permit: OwnedSemaphorePermit) -> Stream {
    let pipe = Arc::new(Pipe { state: Mutex::default(), gone: watch::Sender::new(false), conn });
    let (send, recv) = (LanSend(pipe.clone()), LanRecv(pipe.clone()));
    pipe.conn.tasks.spawn(pump(pipe.clone(), io, permit));
    Stream::from_halves(Box::new(send), Box::new(recv))
}

struct Pipe {
    state: Mutex<State>,
    /// Set when nobody reads any more what we write.
    gone: watch::Sender<bool>,
    conn: Arc<Shared>,
}

#[derive(Default)]
struct State {
    /// Records not yet taken by the task.
    out: Vec<u8>,
    /// The last record of our direction is in `out` or beyond.
    send_over: bool,
    /// It was a reset.
    reset: bool,
    /// The peer stopped reading.
    stopped: Option<ResetCode>,
    incoming: VecDeque<Bytes>,
    buffered: usize,
    recv_end: Option<RecvEnd>,
    /// We stopped reading.
    stop: Option<ResetCode>,
    lost: Option<ClosedWhy>,
    writer: Option<Waker>,
    reader: Option<Waker>,
    to_wire: Option<Waker>,
    from_wire: Option<Waker>,
}

#[derive(Clone, Copy)]
enum RecvEnd {
    End,
    Reset(ResetCode),
}

impl State {
    fn is_over(&self) -> bool {
        self.send_over && self.recv_end.is_some()
    }

    /// Neither direction has anything more to deliver; only codes are to be told.
    fn is_abandoned(&self) -> bool {
        self.reset && (self.stop.is_some() || self.recv_end.is_some())
    }

    fn wake_all(&mut self) {
        let wakers = [&mut self.writer, &mut self.reader, &mut self.to_wire, &mut self.from_wire];
        wakers.into_iter().filter_map(Option::take).for_each(Waker::wake);
    }

    /// What was not yet taken is lost; the reader learns the code.
    fn abandon(&mut self, code: ResetCode) {
        if self.send_over {
            return;
        }
        self.out.clear();
        if let Some(code) = self.stop {
            record::put_stop(&mut self.out, code);
        }
        record::put_reset(&mut self.out, code);
        (self.send_over, self.reset) = (true, true);
        self.wake_all();
    }

    fn take_in(&mut self, piece: Piece) {
        match piece {
            Piece::Data(bytes) if self.recv_end.is_none() && self.stop.is_none() => {
                self.buffered += bytes.len();
                self.incoming.push_back(bytes);
                if let Some(reader) = self.reader.take() {
                    reader.wake();
                }
                return;
            }
            Piece::Data(_) => return,
            Piece::End => self.recv_end = self.recv_end.or(Some(RecvEnd::End)),
            Piece::Reset(code) => self.cut(code),
            Piece::Stop(code) => self.stop_sending(code),
        }
        self.wake_all();
    }

    fn cut(&mut self, code: ResetCode) {
        if self.recv_end.is_none() {
            self.incoming.clear();
            self.buffered = 0;
            self.recv_end = Some(RecvEnd::Reset(code));
        }
    }

    fn stop_sending(&mut self, code: ResetCode) {
        self.stopped = self.stopped.or(Some(code));
        self.abandon(code);
    }
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Swaps `taken`, which is empty, for the records to send; `false` when nothing will follow.
    fn poll_records(&self, taken: &mut Vec<u8>, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.lock();
        if !state.out.is_empty() {
            std::mem::swap(&mut state.out, taken);
            if let Some(writer) = state.writer.take() {
                writer.wake();
            }
            return Poll::Ready(true);
        }
        if state.is_over() {
            return Poll::Ready(false);
        }
        state.to_wire = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether to read on: ready with `true` when there is room, with `false` when nothing more is expected.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.lock();
        if state.is_over() {
            return Poll::Ready(false);
        }
        if state.buffered < IN_BYTES_MAX {
            return Poll::Ready(true);
        }
        state.from_wire = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_abandoned(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.is_abandoned() {
            return Poll::Ready(());
        }
        // Both wakers are this task's; whoever changes the state wakes all of them.
        state.to_wire = Some(cx.waker().clone());
        Poll::Pending
    }

    async fn write_wire(&self, io: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut taken = Vec::new();
        while poll_fn(|cx| self.poll_records(&mut taken, cx)).await {
            io.write_all(&taken).await?;
            io.flush().await?;
            taken.clear();
        }
        io.shutdown().await
    }

    async fn read_wire(&self, io: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
        let (mut reader, mut read) = (Reader::default(), BytesMut::new());
        while poll_fn(|cx| self.poll_room(cx)).await {
            if read.capacity() - read.len() < READ_BYTES {
                read.reserve(ROOM_BYTES);
            }
            if io.read_buf(&mut (&mut read).limit(READ_BYTES)).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.conn.hear();
            let mut state = self.lock();
            while let Some(piece) = reader.next(&mut read).map_err(io::Error::other)? {
                state.take_in(piece);
            }
            if state.stopped.is_some() {
                self.gone.send_replace(true);
            }
        }
        Ok(())
    }

    /// The stream ended without saying how: it was lost with its connection, or the peer dropped it.
    fn fail(&self, connection: Option<ClosedWhy>) {
        let mut state = self.lock();
        match connection {
            Some(why) => state.lost = state.lost.take().or(Some(why)),
            None => {
                state.cut(ResetCode::CANCELLED);
                state.stopped = state.stopped.or(Some(ResetCode::CANCELLED));
                state.send_over = true;
            }
        }
        state.wake_all();
        drop(state);
        self.gone.send_replace(true);
    }
}

/// Moves bytes until both directions are over, the stream fails, or the connection ends.
async fn pump(pipe: Arc<Pipe>, io: libp2p::Stream, permit: OwnedSemaphorePermit) {
    let (mut reading, mut writing) = tokio::io::split(io.compat());
    let work = async { tokio::try_join!(pipe.write_wire(&mut writing), pipe.read_wire(&mut reading)) };
    let abandoned = async {
        poll_fn(|cx| pipe.poll_abandoned(cx)).await;
        tokio::time::sleep(ABANDONED_FOR).await;
    };
    tokio::select! {
        biased;
        done = work => match done {
            Ok(_) => drop(pipe.gone.send_replace(true)),
            // The peer was done first.
            Err(_) if pipe.lock().is_over() => drop(pipe.gone.send_replace(true)),
            Err(error) => {
                tracing::trace!(%error, "stream ended early");
                pipe.fail(tokio::time::timeout(CAUSE_WAIT, pipe.conn.closed()).await.ok());
            }
        },
        why = pipe.conn.closed() => pipe.fail(Some(why)),
        () = abandoned => pipe.fail(None),
    }
    drop(permit);
}

struct LanSend(Arc<Pipe>);

impl LanSend {
    fn failed(&self, state: &State) -> Option<StreamFault> {
        if let Some(why) = &state.lost {
            return Some(StreamFault::Lost(ConnectionLost { why: why.clone() }));
        }
        if let Some(code) = state.stopped {
            return Some(StreamFault::Stopped(code));
        }
        state.send_over.then_some(StreamFault::Ended)
    }
}

impl AsyncWrite for LanSend {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        if let Some(fault) = self.failed(&state) {
            return Poll::Ready(Err(fault.into()));
        }
        if state.out.len() >= OUT_BYTES_MAX {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        // The task looks again by itself after what it has taken; it waits only on nothing.
        let was_empty = state.out.is_empty();
        let taken = record::put_data(&mut state.out, buf);
        if was_empty && let Some(to_wire) = state.to_wire.take() {
            to_wire.wake();
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        if let Some(why) = &state.lost {
            return Poll::Ready(Err(StreamFault::Lost(ConnectionLost { why: why.clone() }).into()));
        }
        if !state.send_over {
            record::put_end(&mut state.out);
            state.send_over = true;
            state.wake_all();
        }
        Poll::Ready(Ok(()))
    }
}

impl SendHalf for LanSend {
    fn reset(&mut self, code: ResetCode) {
        self.0.lock().abandon(code);
    }

    fn stopped(&self) -> BoxFuture<'static, ()> {
        let mut gone = self.0.gone.subscribe();
        // The sender lives as long as the pipe; without it there is nobody left to read either.
        Box::pin(async move { drop(gone.wait_for(|gone| *gone).await) })
    }
}

struct LanRecv(Arc<Pipe>);

impl AsyncRead for LanRecv {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        if let Some(why @ ClosedWhy::Local(_)) = &state.lost {
            return Poll::Ready(Err(StreamFault::Lost(ConnectionLost { why: why.clone() }).into()));
        }
        if !state.incoming.is_empty() {
            let was_full = state.buffered >= IN_BYTES_MAX;
            while buf.remaining() > 0
                && let Some(front) = state.incoming.front_mut()
            {
                let taken = buf.remaining().min(front.len());
                buf.put_slice(&front[..taken]);
                front.advance(taken);
                if front.is_empty() {
                    state.incoming.pop_front();
                }
                state.buffered -= taken;
            }
            if was_full && let Some(from_wire) = state.from_wire.take() {
                from_wire.wake();
            }
            return Poll::Ready(Ok(()));
        }
        match state.recv_end {
            Some(RecvEnd::End) => return Poll::Ready(Ok(())),
            Some(RecvEnd::Reset(code)) => return Poll::Ready(Err(StreamFault::Reset(code).into())),
            None => {}
        }
        if let Some(why) = &state.lost {
            return Poll::Ready(Err(StreamFault::Lost(ConnectionLost { why: why.clone() }).into()));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl RecvHalf for LanRecv {
    fn stop(&mut self, code: ResetCode) {
        let mut state = self.0.lock();
        if state.stop.is_some() || state.recv_end.is_some() {
            return;
        }
        state.stop = Some(code);
        state.incoming.clear();
        state.buffered = 0;
        record::put_stop(&mut state.out, code);
        state.wake_all();
    }
}
