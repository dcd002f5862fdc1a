//! A driver that remembers every byte that its node hears.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use mesh_identity::{NodeAddr, NodeId, ScopeId};
use mesh_transport::{
    CloseCode, ClosedWhy, Connection, ConnectionLost, DialError, DialVia, Driver, Found, Origin, PathFacts,
    RecvHalf, RecvStream, ResetCode, Stream, TransportKind,
};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::watch;

/// What was heard, stream by stream.
#[derive(Clone, Default)]
pub(crate) struct Heard(Arc<Mutex<Vec<HeardStream>>>);

type HeardStream = Arc<Mutex<Vec<u8>>>;

impl Heard {
    fn stream(&self) -> HeardStream {
        let stream = Arc::default();
        self.0.lock().unwrap().push(Arc::clone(&stream));
        stream
    }

    /// Whether these bytes came in a row on any stream.
    pub(crate) fn has(&self, what: &[u8]) -> bool {
        let streams = self.0.lock().unwrap();
        streams.iter().any(|stream| stream.lock().unwrap().windows(what.len()).any(|bytes| bytes == what))
    }
}

/// A driver, listened to.
pub(crate) struct Tap {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) heard: Heard,
}

struct TappedConnection {
    conn: Arc<dyn Connection>,
    heard: Heard,
}

struct TappedHalf {
    recv: Option<RecvStream>,
    heard: HeardStream,
}

impl Tap {
    fn tapped(heard: &Heard, conn: Arc<dyn Connection>) -> Arc<dyn Connection> {
        Arc::new(TappedConnection { conn, heard: heard.clone() })
    }
}

impl Driver for Tap {
    fn name(&self) -> &'static str {
        self.driver.name()
    }

    fn transport(&self) -> TransportKind {
        self.driver.transport()
    }

    fn carries(&self, scope: &ScopeId) -> bool {
        self.driver.carries(scope)
    }

    fn dial(
        &self,
        scope: &ScopeId,
        to: NodeId,
        addr: &NodeAddr,
        via: DialVia,
    ) -> BoxFuture<'static, Result<Arc<dyn Connection>, DialError>> {
        let (dial, heard) = (self.driver.dial(scope, to, addr, via), self.heard.clone());
        Box::pin(async move { dial.await.map(|conn| Self::tapped(&heard, conn)) })
    }

    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn Connection>>> {
        Box::pin(async { self.driver.accept().await.map(|conn| Self::tapped(&self.heard, conn)) })
    }

    fn found(&self) -> BoxFuture<'_, Option<Found>> {
        self.driver.found()
    }

    fn local_addr(&self, scope: &ScopeId) -> NodeAddr {
        self.driver.local_addr(scope)
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        self.driver.shutdown()
    }
}

impl TappedConnection {
    fn listened(&self, stream: Stream) -> Stream {
        let (send, recv) = stream.split();
        let recv = TappedHalf { recv: Some(recv), heard: self.heard.stream() };
        Stream::join(send, Stream::from_halves(Box::new(Deaf), Box::new(recv)).split().1)
    }
}

impl Connection for TappedConnection {
    fn peer(&self) -> NodeId {
        self.conn.peer()
    }

    fn open(&self) -> BoxFuture<'_, Result<Stream, ConnectionLost>> {
        Box::pin(async { self.conn.open().await.map(|stream| self.listened(stream)) })
    }

    fn accept(&self) -> BoxFuture<'_, Result<Stream, ConnectionLost>> {
        Box::pin(async { self.conn.accept().await.map(|stream| self.listened(stream)) })
    }

    fn close(&self, code: CloseCode, reason: &str) {
        self.conn.close(code, reason);
    }

    fn closed(&self) -> BoxFuture<'_, ClosedWhy> {
        Box::pin(async {
            let why = self.conn.closed().await;
            self.heard.stream().lock().unwrap().extend_from_slice(format!("{why:?}").as_bytes());
            why
        })
    }

    fn path(&self) -> PathFacts {
        self.conn.path()
    }

    fn path_changes(&self) -> watch::Receiver<PathFacts> {
        self.conn.path_changes()
    }

    fn origin(&self) -> Origin {
        self.conn.origin()
    }

    fn admitted(&self) {
        self.conn.admitted();
    }
}

impl AsyncRead for TappedHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let Some(recv) = self.recv.as_mut() else { return Poll::Ready(Ok(())) };
        ready!(Pin::new(recv).poll_read(cx, buf))?;
        self.heard.lock().unwrap().extend_from_slice(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl RecvHalf for TappedHalf {
    fn stop(&mut self, code: ResetCode) {
        if let Some(recv) = self.recv.take() {
            recv.stop(code);
        }
    }
}

/// A half that nobody writes to.
struct Deaf;

impl tokio::io::AsyncWrite for Deaf {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl mesh_transport::SendHalf for Deaf {
    fn reset(&mut self, _: ResetCode) {}

    fn stopped(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}
