//! An iroh connection as one of ours.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Mutex, OnceLock, PoisonError},
    task::{Context, Poll},
};

use futures_util::{StreamExt, future::BoxFuture};
use iroh::{
    RelayUrl, TransportAddr,
    endpoint::{ConnectionError, ReadError, RecvStream, SendStream, VarInt, WriteError},
};
use mesh_identity::NodeId;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

use super::{loss::LossMeter, quic};
use crate::{
    connection::{Connection, Origin, PathFacts, PathKind, TransportKind},
    error::{CloseCode, ClosedWhy, ConnectionLost, ResetCode, StreamFault},
    proto::hello::truncated,
    stream::{RecvHalf, SendHalf, Stream},
};

pub(super) struct IrohConnection {
    conn: iroh::endpoint::Connection,
    peer: NodeId,
    origin: Origin,
    streams_max: u32,
    closed_with: OnceLock<CloseCode>,
    path: watch::Sender<PathFacts>,
    loss: Mutex<LossMeter<noq::PathId>>,
    _path_task: AbortOnDropHandle<()>,
}

impl IrohConnection {
    pub(super) fn new(
        conn: iroh::endpoint::Connection,
        peer: NodeId,
        origin: Origin,
        streams_max: u32,
    ) -> Self {
        let path = watch::Sender::new(path_of(&conn));
        let task = tokio::spawn(watch_path(conn.clone(), path.clone()));
        let _path_task = AbortOnDropHandle::new(task);
        Self {
            conn,
            peer,
            origin,
            streams_max,
            closed_with: OnceLock::new(),
            path,
            loss: Mutex::default(),
            _path_task,
        }
    }

    /// Whether what is sent goes by this relay.
    pub(super) fn is_carried_by(&self, relay: &RelayUrl) -> bool {
        let paths = self.conn.paths();
        let path = paths.iter().find(|path| path.is_selected()).or_else(|| paths.iter().next());
        path.is_some_and(|path| matches!(path.remote_addr(), TransportAddr::Relay(url) if url == relay))
    }

    fn why(&self, error: ConnectionError) -> ClosedWhy {
        match error {
            ConnectionError::LocallyClosed => {
                ClosedWhy::Local(self.closed_with.get().copied().unwrap_or(CloseCode::Done))
            }
            other => closed_why(other),
        }
    }

    fn lost(&self, error: ConnectionError) -> ConnectionLost {
        ConnectionLost { why: self.why(error) }
    }
}

/// The path that carries data now; the one most like it while none is selected.
fn path_of(conn: &iroh::endpoint::Connection) -> PathFacts {
    let paths = conn.paths();
    let mut facts = PathFacts { kind: PathKind::Direct, rtt: None, transport: TransportKind::Internet };
    if let Some(path) = paths.iter().find(|path| path.is_selected()).or_else(|| paths.iter().next()) {
        facts.kind = if path.is_relay() { PathKind::Relayed } else { PathKind::Direct };
        facts.rtt = Some(path.rtt());
    }
    facts
}

/// Publishes changes of the path's kind until the connection ends.
async fn watch_path(conn: iroh::endpoint::Connection, path: watch::Sender<PathFacts>) {
    let mut events = conn.path_events();
    // The stream tells of changes only, and may skip some: each event is a reason to look.
    while events.next().await.is_some() {
        if conn.close_reason().is_some() {
            break;
        }
        let now = path_of(&conn);
        path.send_if_modified(|known| {
            let changed = known.kind != now.kind;
            *known = now;
            changed
        });
    }
}

fn closed_why(error: ConnectionError) -> ClosedWhy {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let code = u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX);
            let reason = String::from_utf8_lossy(&close.reason);
            ClosedWhy::Peer { code: CloseCode::from_code(code), reason: truncated(&reason, 256).to_owned() }
        }
        ConnectionError::LocallyClosed => ClosedWhy::Local(CloseCode::Done),
        ConnectionError::TimedOut => ClosedWhy::TimedOut,
        other => ClosedWhy::Failed(other.to_string()),
    }
}

fn reset_code(code: VarInt) -> ResetCode {
    ResetCode(u32::try_from(code.into_inner()).unwrap_or(u32::MAX))
}

impl Connection for IrohConnection {
    fn peer(&self) -> NodeId {
        self.peer
    }

    fn open(&self) -> BoxFuture<'_, Result<Stream, ConnectionLost>> {
        Box::pin(async {
            let (send, recv) = self.conn.open_bi().await.map_err(|error| self.lost(error))?;
            Ok(stream(send, recv))
        })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Stream, ConnectionLost>> {
        Box::pin(async {
            let (send, recv) = self.conn.accept_bi().await.map_err(|error| self.lost(error))?;
            Ok(stream(send, recv))
        })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        if self.closed_with.set(code).is_ok() {
            self.conn.close(VarInt::from_u32(code.code()), truncated(reason, 256).as_bytes());
        }
    }

    fn closed(&self) -> BoxFuture<'_, ClosedWhy> {
        Box::pin(async {
            let error = self.conn.closed().await;
            self.why(error)
        })
    }

    fn path(&self) -> PathFacts {
        if self.conn.close_reason().is_some() { *self.path.borrow() } else { path_of(&self.conn) }
    }

    fn loss(&self) -> Option<u16> {
        let paths = self.conn.paths();
        let path = paths.iter().find(|path| path.is_selected())?;
        let stats = path.stats();
        let mut loss = self.loss.lock().unwrap_or_else(PoisonError::into_inner);
        loss.measure(path.id(), stats.sent_packets, stats.lost_packets)
    }

    fn path_changes(&self) -> watch::Receiver<PathFacts> {
        self.path.subscribe()
    }

    fn origin(&self) -> Origin {
        self.origin
    }

    fn remote_addr(&self) -> Option<SocketAddr> {
        let paths = self.conn.paths();
        // As in `path`: none is selected in the first moments, and nothing tells of the first that is.
        let path = paths.iter().find(|path| path.is_selected()).or_else(|| paths.iter().next())?;
        match path.remote_addr() {
            TransportAddr::Ip(addr) => Some(*addr),
            _ => None,
        }
    }

    fn remote(&self) -> Option<String> {
        let paths = self.conn.paths();
        let path = paths.iter().find(|path| path.is_selected()).or_else(|| paths.iter().next())?;
        Some(match path.remote_addr() {
            TransportAddr::Ip(addr) => addr.to_string(),
            TransportAddr::Relay(url) => format!("behind the relay {url}"),
            other => other.to_string(),
        })
    }

    fn admitted(&self) {
        quic::admit(&self.conn, self.streams_max);
    }
}

impl Drop for IrohConnection {
    fn drop(&mut self) {
        self.close(CloseCode::Done, "dropped");
    }
}

fn stream(send: SendStream, recv: RecvStream) -> Stream {
    Stream::from_halves(Box::new(IrohSend(send)), Box::new(IrohRecv(recv)))
}

struct IrohSend(SendStream);

impl AsyncWrite for IrohSend {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf).map_err(|error| match error {
            WriteError::Stopped(code) => StreamFault::Stopped(reset_code(code)).into(),
            WriteError::ConnectionLost(error) => lost(error),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => StreamFault::Ended.into(),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The only error is that it has ended before.
        drop(self.0.finish());
        Poll::Ready(Ok(()))
    }
}

impl SendHalf for IrohSend {
    fn reset(&mut self, code: ResetCode) {
        drop(self.0.reset(VarInt::from_u32(code.0)));
    }

    fn stopped(&self) -> BoxFuture<'static, ()> {
        let stopped = self.0.stopped();
        Box::pin(async move { drop(stopped.await) })
    }
}

struct IrohRecv(RecvStream);

impl AsyncRead for IrohRecv {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // By the trait, which leaves what it does not fill as it is: a buffer is larger than most reads.
        AsyncRead::poll_read(Pin::new(&mut self.0), cx, buf).map_err(|error| {
            match error.downcast::<ReadError>() {
                Ok(ReadError::Reset(code)) => StreamFault::Reset(reset_code(code)).into(),
                Ok(ReadError::ConnectionLost(error)) => lost(error),
                Ok(ReadError::ClosedStream | ReadError::ZeroRttRejected) => StreamFault::Ended.into(),
                Err(error) => error,
            }
        })
    }
}

impl RecvHalf for IrohRecv {
    fn stop(&mut self, code: ResetCode) {
        drop(self.0.stop(VarInt::from_u32(code.0)));
    }
}

fn lost(error: ConnectionError) -> io::Error {
    StreamFault::Lost(ConnectionLost { why: closed_why(error) }).into()
}
