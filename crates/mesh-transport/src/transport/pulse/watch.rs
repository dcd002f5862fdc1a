//! The side that watches: connects to the peer, and knocks when the connection has ended.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use mesh_identity::NodeId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{Ask, Inner, PULSE, Place, TOKEN_BYTES, Token, Watched, bury, near};
use crate::{
    backoff, call,
    error::{self, CallError},
    transport::{links::LinkConn, serve::open_stream},
};

/// For the peer's answer over the link.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// For a connection, and for the answer to the token: the peer is near, but a packet may be lost twice.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// For a connection while the end of a link waits to be told.
const KNOCK_TIMEOUT: Duration = Duration::from_millis(200);
/// The wait after a first failure. A firewall that lets nobody in is not asked often.
const WAIT_FIRST: Duration = Duration::from_secs(5);
/// The longest wait.
const WAIT_LONGEST: Duration = Duration::from_secs(600);
/// So often in a row a pulse that was cut is made anew without a wait: whoever cuts it for ever is not to make us connect
/// for ever.
const CUTS: u32 = 3;
/// A pulse that stood so long ends the row.
const STOOD: Duration = Duration::from_secs(10);
/// So often it is compared with the address that the link goes to now, which a link by QUIC does not tell.
const COMPARE_EVERY: Duration = Duration::from_secs(30);
/// The waits before knocking again where a connection came up and ended at once: the port of a process that is being
/// taken apart takes connections for some microseconds more.
const KNOCKS: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(50),
];
/// A connection that stood so long was taken by a process that lives.
const TAKEN: Duration = Duration::from_millis(50);

/// Watches one run of a peer until the last link to it has ended.
pub(super) async fn run(inner: Arc<Inner>, node: NodeId, watched: Arc<Watched>) {
    let watch = Watch { inner: &inner, node, watched: &watched };
    tokio::select! {
        () = inner.cancel.cancelled() => {}
        () = watched.unlinked.cancelled() => {}
        () = watch.run() => {}
    }
}

struct Watch<'a> {
    inner: &'a Arc<Inner>,
    node: NodeId,
    watched: &'a Watched,
}

/// A connection to the peer's listener, on which it has shown that it is the peer.
struct Pulse {
    socket: TcpStream,
    addr: SocketAddr,
}

/// Why there is no pulse.
#[derive(Debug, thiserror::Error)]
enum NoPulse {
    #[error("the peer names no port")]
    Asked(#[source] CallError),
    #[error("no way in at {addr}")]
    Connect { addr: SocketAddr, source: io::Error },
    #[error("another process answers at {addr}")]
    Impostor { addr: SocketAddr },
}

/// What a pulse's end says.
enum End {
    /// The peer's machine has ended it.
    Closed,
    /// Nothing of the peer: the network or the path is another one.
    Moved,
}

/// When to try again.
enum Next {
    Again,
    Wait,
}

/// What came of knocking.
enum Knock {
    /// Nobody listens there any more.
    Refused,
    /// Somebody does.
    Open(TcpStream),
    /// No answer.
    Unclear,
}

impl Watch<'_> {
    async fn run(&self) {
        let mut failures = 0;
        loop {
            let Some((conn, addr)) = self.near_link() else {
                drop(timeout(COMPARE_EVERY, self.watched.changed.notified()).await);
                continue;
            };
            let next = match self.establish(&conn, addr).await {
                Ok(pulse) => self.keep(pulse, &mut failures).await,
                Err(why) => {
                    tracing::debug!(error = error::chain(&why), "no pulse: the link must do");
                    Next::Wait
                }
            };
            self.watched.lock().place = None;
            if let Next::Wait = next {
                failures += 1;
                self.wait(failures, addr).await;
            }
        }
    }

    /// A link to this run whose other end is near.
    fn near_link(&self) -> Option<(Arc<LinkConn>, SocketAddr)> {
        let (node, instance) = (self.node, self.watched.instance);
        let links = self.inner.links.matching(|conn| conn.peer.id == node && conn.instance == instance);
        links.into_iter().find_map(|conn| near(&conn).map(|addr| (conn, addr)))
    }

    fn is_at(&self, addr: SocketAddr) -> bool {
        self.near_link().is_some_and(|(_, now)| now.ip() == addr.ip())
    }

    async fn establish(&self, conn: &LinkConn, at: SocketAddr) -> Result<Pulse, NoPulse> {
        let place = self.ask(conn).await?;
        self.prove(&place, at, None).await
    }

    /// Asks over the link where to connect.
    async fn ask(&self, conn: &LinkConn) -> Result<Place, NoPulse> {
        let asked = async {
            let stream = open_stream(self.inner, conn, PULSE).await?;
            call::call_on(stream, &Ask {}, ASK_TIMEOUT, self.inner.config.call_bytes_max).await
        };
        let asked = timeout(ASK_TIMEOUT, asked).await;
        asked.unwrap_or(Err(CallError::Deadline(ASK_TIMEOUT))).map_err(NoPulse::Asked)
    }

    /// Has the peer show at its port that it is the one that was asked.
    async fn prove(
        &self,
        place: &Place,
        at: SocketAddr,
        socket: Option<TcpStream>,
    ) -> Result<Pulse, NoPulse> {
        let mut addr = at;
        addr.set_port(place.port);
        let proved = async {
            let mut socket = match socket {
                Some(socket) => socket,
                None => TcpStream::connect(addr).await?,
            };
            socket.write_all(&place.token).await?;
            let mut answer: Token = [0; TOKEN_BYTES];
            socket.read_exact(&mut answer).await?;
            Ok::<_, io::Error>((socket, answer))
        };
        let proved = timeout(CONNECT_TIMEOUT, proved).await;
        let proved = proved.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let (socket, answer) = proved.map_err(|source| NoPulse::Connect { addr, source })?;
        if answer != place.answer {
            return Err(NoPulse::Impostor { addr });
        }
        self.watched.lock().place = Some(addr);
        self.inner.metrics.pulses_made.add();
        Ok(Pulse { socket, addr })
    }

    /// Holds a pulse, and each that takes the place of one that was cut.
    async fn keep(&self, mut pulse: Pulse, failures: &mut u32) -> Next {
        loop {
            let since = Instant::now();
            if let End::Moved = self.stand(&mut pulse).await {
                return Next::Again;
            }
            if since.elapsed() >= STOOD {
                *failures = 0;
            }
            match self.judge(pulse.addr).await {
                Some(renewed) if *failures < CUTS => pulse = renewed,
                _ => return Next::Wait,
            }
            *failures += 1;
        }
    }

    async fn stand(&self, pulse: &mut Pulse) -> End {
        let mut network = self.inner.network.subscribe();
        loop {
            tokio::select! {
                biased;
                ended = pulse.socket.read_u8() => return match ended {
                    Err(error) if !is_said_by_peer(error.kind()) => End::Moved,
                    _ => End::Closed,
                },
                // In another network another machine may have the address.
                Ok(()) = network.changed() => return End::Moved,
                () = self.watched.changed.notified() => {}
                () = tokio::time::sleep(COMPARE_EVERY) => {}
            }
            if !self.is_at(pulse.addr) {
                return End::Moved;
            }
        }
    }

    /// The pulse has ended. Another one, if the process lives; if its machine says that it does not, its links end.
    async fn judge(&self, addr: SocketAddr) -> Option<Pulse> {
        for wait in KNOCKS {
            tokio::time::sleep(wait).await;
            let mut socket = match knock(addr, CONNECT_TIMEOUT).await {
                Knock::Open(socket) => socket,
                Knock::Unclear => return None,
                Knock::Refused => {
                    bury(self.inner, self.node, self.watched.instance);
                    return None;
                }
            };
            let (conn, at) = self.near_link().filter(|(_, at)| at.ip() == addr.ip())?;
            let asked = tokio::select! {
                biased;
                _ = socket.read_u8() => continue,
                asked = self.ask(&conn) => asked,
            };
            let place = asked.ok()?;
            let socket = (place.port == addr.port()).then_some(socket);
            return self.prove(&place, at, socket).await.ok();
        }
        None
    }

    /// Waits before another try: less if there is something new.
    async fn wait(&self, failures: u32, failed: SocketAddr) {
        let wait = backoff::wait_before(failures, WAIT_FIRST, WAIT_LONGEST, rand::random());
        let until = Instant::now() + wait;
        let mut network = self.inner.network.subscribe();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                Ok(()) = network.changed() => return,
                () = self.watched.changed.notified() => if !self.is_at(failed) { return },
            }
        }
    }
}

/// Whether such an end was sent by the peer's machine. Any other comes of this machine or of the way.
fn is_said_by_peer(end: io::ErrorKind) -> bool {
    matches!(end, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

async fn knock(addr: SocketAddr, within: Duration) -> Knock {
    match timeout(within, TcpStream::connect(addr)).await {
        Ok(Ok(socket)) => Knock::Open(socket),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Knock::Refused,
        _ => Knock::Unclear,
    }
}

/// Whether the machine at which a peer has let us in now says that nobody listens there.
pub(super) async fn is_refused(addr: SocketAddr) -> bool {
    for wait in KNOCKS {
        tokio::time::sleep(wait).await;
        match knock(addr, KNOCK_TIMEOUT).await {
            Knock::Refused => return true,
            Knock::Unclear => return false,
            Knock::Open(mut socket) => {
                if timeout(TAKEN, socket.read_u8()).await.is_err() {
                    return false;
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn only_a_refusal_is_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("is bound");
        assert!(!is_refused(addr).await, "nobody accepts, but the port is there");
        drop(listener);
        assert!(is_refused(addr).await);
        assert!(!is_refused(SocketAddr::from(([255, 255, 255, 255], 9))).await, "no such way");
    }

    #[tokio::test]
    async fn a_port_that_closes_after_its_connections_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("is bound");
        let closing = tokio::spawn(async move {
            for _ in 0..2 {
                drop(listener.accept().await);
            }
        });
        assert!(is_refused(addr).await);
        closing.await.expect("ends");
    }
}
