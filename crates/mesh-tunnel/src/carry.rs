//! Bytes between a socket and a stream, each direction with its own end.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mesh_transport::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use crate::metrics::Counters;

/// Carries bytes both ways until both directions have ended. An end of one direction is passed on and leaves the other
/// open. An error ends both, and both sides see a reset: a cut-off answer is never taken for a whole one.
///
/// The future may be dropped at any await; the stream is then reset, and so is the socket.
pub(crate) async fn carry(
    socket: TcpStream,
    stream: Stream,
    counters: &[&Counters],
    buffer_bytes: usize,
) -> io::Result<()> {
    let mut socket = Cut::new(socket);
    let _open = Open::count(counters);
    let cut_off = stream.cut_off();
    let (mut send, mut recv) = stream.split();
    let (mut from_local, mut to_local) = socket.split();
    let to_peers = counters.iter().map(|all| &all.to_peers_bytes).collect::<Vec<_>>();
    let from_peers = counters.iter().map(|all| &all.from_peers_bytes).collect::<Vec<_>>();
    let both = async {
        tokio::try_join!(
            pump(&mut from_local, &mut send, &to_peers, buffer_bytes),
            pump(&mut recv, &mut to_local, &from_peers, buffer_bytes),
        )
    };
    let carried = until_cut(cut_off, both).await;
    socket.end(carried.is_ok(), counters);
    carried.map(drop)
}

/// What `both` comes to, or an error as soon as this node cuts the link off.
pub(crate) async fn until_cut<T, E: From<io::Error>>(
    cut_off: impl Future<Output = ()>,
    both: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::select! {
        biased;
        // Also where neither side moves: what waits for a slow socket is not to be delivered any more.
        () = cut_off => Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
        carried = both => carried,
    }
}

async fn pump<R, W>(from: &mut R, to: &mut W, counted: &[&AtomicU64], buffer_bytes: usize) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; buffer_bytes.max(1)];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
        counted.iter().for_each(|counter| _ = counter.fetch_add(read as u64, Relaxed));
    }
}

/// A socket that is reset rather than closed unless all of it was carried.
pub(crate) struct Cut {
    socket: TcpStream,
    whole: bool,
}

impl Cut {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { socket, whole: false }
    }

    pub(crate) fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        self.socket.split()
    }

    /// Says how the connection ended.
    pub(crate) fn end(&mut self, whole: bool, counters: &[&Counters]) {
        self.whole = whole;
        if !whole {
            counters.iter().for_each(|all| _ = all.broken.fetch_add(1, Relaxed));
        }
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if !self.whole {
            // Fails only where the socket is gone already.
            let _ = self.socket.set_zero_linger();
        }
    }
}

/// Counts a connection as open while it lives.
pub(crate) struct Open<'a>(&'a [&'a Counters]);

impl<'a> Open<'a> {
    pub(crate) fn count(counters: &'a [&'a Counters]) -> Self {
        for all in counters {
            all.opened.fetch_add(1, Relaxed);
            all.open.fetch_add(1, Relaxed);
        }
        Self(counters)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|all| _ = all.open.fetch_sub(1, Relaxed));
    }
}

/// Closes a socket so that its other side sees an error and not an empty answer.
pub(crate) fn refuse(socket: TcpStream) {
    drop(Cut::new(socket));
}
