//! The libraries that carry links, as they come: one connection on loopback and its own streams, to measure beside ours.
//!
//! Nothing here is ours but the keys: no hello, no headers, no limits, every parameter at its default (TCP without Nagle's
//! delay, as everybody sets it).

use std::{
    future::poll_fn,
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
};

use iroh::endpoint::{RelayMode, presets};
use libp2p::{
    Multiaddr, PeerId, Transport as _,
    core::{
        Endpoint,
        muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox},
        transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent},
        upgrade::Version,
    },
    noise, tcp, yamux,
};
use mesh_identity::NodeKey;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Mutex, mpsc, oneshot},
};
use tokio_util::{compat::FuturesAsyncReadCompatExt, task::AbortOnDropHandle};

use crate::{convert, lan};

/// Which library, and what it runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// libp2p on TCP: noise, then yamux.
    Libp2pTcp,
    /// noq, which is QUIC and what iroh and our LAN driver are built on.
    Noq,
    /// iroh, on direct addresses.
    Iroh,
}

/// A byte stream of a library.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// One end of a connection. Dropped, it is gone without a goodbye.
pub struct Connection(Kind);

enum Kind {
    Libp2p(Muxer),
    Noq(noq::Connection, noq::Endpoint),
    Iroh(iroh::endpoint::Connection, iroh::Endpoint),
}

impl Connection {
    /// Opens a stream.
    pub async fn open(&self) -> io::Result<Box<dyn Duplex>> {
        Ok(match &self.0 {
            Kind::Libp2p(muxer) => Box::new(muxer.open().await?.compat()),
            Kind::Noq(conn, _) => {
                let (send, recv) = conn.open_bi().await?;
                Box::new(tokio::io::join(recv, send))
            }
            Kind::Iroh(conn, _) => {
                let (send, recv) = conn.open_bi().await?;
                Box::new(tokio::io::join(recv, send))
            }
        })
    }

    /// The next stream that the other end opened and wrote to.
    pub async fn accept(&self) -> io::Result<Box<dyn Duplex>> {
        Ok(match &self.0 {
            Kind::Libp2p(muxer) => Box::new(muxer.accept().await?.compat()),
            Kind::Noq(conn, _) => {
                let (send, recv) = conn.accept_bi().await?;
                Box::new(tokio::io::join(recv, send))
            }
            Kind::Iroh(conn, _) => {
                let (send, recv) = conn.accept_bi().await?;
                Box::new(tokio::io::join(recv, send))
            }
        })
    }

    /// Ends it and gives its socket back.
    pub async fn close(self) {
        match self.0 {
            Kind::Libp2p(_) => {}
            Kind::Noq(conn, endpoint) => {
                conn.close(noq::VarInt::from_u32(0), b"");
                endpoint.wait_idle().await;
            }
            Kind::Iroh(_, endpoint) => endpoint.close().await,
        }
    }
}

/// A new connection on loopback: the end that dialed and the one that was dialed.
pub async fn pair(library: Library) -> io::Result<[Connection; 2]> {
    let keys = [NodeKey::from_seed([0xb1; 32]), NodeKey::from_seed([0xb2; 32])];
    match library {
        Library::Libp2pTcp => libp2p_pair(&keys).await,
        Library::Noq => noq_pair(&keys).await,
        Library::Iroh => iroh_pair(&keys).await,
    }
}

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

async fn noq_pair([dialer, acceptor]: &[NodeKey; 2]) -> io::Result<[Connection; 2]> {
    let (_, server) = lan::default_quic(acceptor).map_err(io::Error::other)?;
    let (client, _) = lan::default_quic(dialer).map_err(io::Error::other)?;
    let (there, here) = (noq::Endpoint::server(server, LOOPBACK)?, noq::Endpoint::client(LOOPBACK)?);
    let dialing = here.connect_with(client, there.local_addr()?, "node").map_err(io::Error::other)?;
    let accepting = async { there.accept().await.ok_or_else(ended)?.await.map_err(io::Error::other) };
    let (dialed, accepted) = tokio::try_join!(async { dialing.await.map_err(io::Error::other) }, accepting)?;
    Ok([Connection(Kind::Noq(dialed, here)), Connection(Kind::Noq(accepted, there))])
}

async fn iroh_pair([dialer, acceptor]: &[NodeKey; 2]) -> io::Result<[Connection; 2]> {
    const ALPN: &[u8] = b"bare";
    let bind = async |key| {
        iroh::Endpoint::builder(presets::Minimal)
            .secret_key(convert::iroh_key(key))
            .alpns(vec![ALPN.to_vec()])
            .relay_mode(RelayMode::Disabled)
            .clear_ip_transports()
            .bind_addr(LOOPBACK)
            .map_err(io::Error::other)?
            .bind()
            .await
            .map_err(io::Error::other)
    };
    let (here, there) = (bind(dialer).await?, bind(acceptor).await?);
    let mut target = iroh::EndpointAddr::new(there.id());
    for addr in there.bound_sockets() {
        target = target.with_ip_addr(addr);
    }
    let dialing = async { here.connect(target, ALPN).await.map_err(io::Error::other) };
    let accepting = async { there.accept().await.ok_or_else(ended)?.await.map_err(io::Error::other) };
    let (dialed, accepted) = tokio::try_join!(dialing, accepting)?;
    Ok([Connection(Kind::Iroh(dialed, here)), Connection(Kind::Iroh(accepted, there))])
}

async fn libp2p_pair([dialer, acceptor]: &[NodeKey; 2]) -> io::Result<[Connection; 2]> {
    let (mut here, mut there) = (libp2p_tcp(dialer)?, libp2p_tcp(acceptor)?);
    let any: Multiaddr = "/ip4/127.0.0.1/tcp/0".parse().map_err(io::Error::other)?;
    there.listen_on(ListenerId::next(), any).map_err(io::Error::other)?;
    let addr = loop {
        if let TransportEvent::NewAddress { listen_addr, .. } = next_event(&mut there).await {
            break listen_addr;
        }
    };
    let how = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
    let dialing = here.dial(addr, how).map_err(io::Error::other)?;
    // The dialer says which muxer it means with its first bytes, and so must be moving before the acceptor knows.
    let dialing = async { dialing.await.map(|(_, muxer)| Muxer::new(muxer)) };
    let accepting = async {
        loop {
            if let TransportEvent::Incoming { upgrade, .. } = next_event(&mut there).await {
                return upgrade.await.map(|(_, muxer)| Muxer::new(muxer));
            }
        }
    };
    let (dialed, accepted) = tokio::try_join!(dialing, accepting)?;
    Ok([dialed, accepted].map(|muxer| Connection(Kind::Libp2p(muxer))))
}

type Tcp = Boxed<(PeerId, StreamMuxerBox)>;

fn libp2p_tcp(key: &NodeKey) -> io::Result<Tcp> {
    let noise = noise::Config::new(&convert::libp2p_key(key)).map_err(io::Error::other)?;
    Ok(tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed())
}

async fn next_event(
    transport: &mut Tcp,
) -> TransportEvent<<Tcp as libp2p::Transport>::ListenerUpgrade, io::Error> {
    poll_fn(|cx| Pin::new(&mut *transport).poll(cx)).await
}

fn ended() -> io::Error {
    io::Error::from(io::ErrorKind::ConnectionAborted)
}

/// A connection of libp2p, and the task that moves its bytes.
struct Muxer {
    opening: mpsc::Sender<oneshot::Sender<SubstreamBox>>,
    arrived: Mutex<mpsc::Receiver<SubstreamBox>>,
    _moving: AbortOnDropHandle<()>,
}

/// Streams that are asked for or have arrived at once; a measurement has a few.
const STREAMS_WAITING_MAX: usize = 64;

impl Muxer {
    fn new(muxer: StreamMuxerBox) -> Self {
        let (opening, asked) = mpsc::channel(STREAMS_WAITING_MAX);
        let (found, arrived) = mpsc::channel(STREAMS_WAITING_MAX);
        let moving = tokio::spawn(Moving { muxer, asked, next: None, found }.run());
        Self { opening, arrived: Mutex::new(arrived), _moving: AbortOnDropHandle::new(moving) }
    }

    async fn open(&self) -> io::Result<SubstreamBox> {
        let (reply, opened) = oneshot::channel();
        self.opening.send(reply).await.map_err(|_| ended())?;
        opened.await.map_err(|_| ended())
    }

    async fn accept(&self) -> io::Result<SubstreamBox> {
        self.arrived.lock().await.recv().await.ok_or_else(ended)
    }
}

struct Moving {
    muxer: StreamMuxerBox,
    asked: mpsc::Receiver<oneshot::Sender<SubstreamBox>>,
    /// Who gets the next stream that opens.
    next: Option<oneshot::Sender<SubstreamBox>>,
    found: mpsc::Sender<SubstreamBox>,
}

impl Moving {
    async fn run(mut self) {
        // Whoever waits for a stream of a connection that has failed sees its channel closed.
        drop(poll_fn(|cx| self.poll(cx)).await);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.next.is_none()
                && let Poll::Ready(asked) = self.asked.poll_recv(cx)
            {
                match asked {
                    Some(reply) => self.next = Some(reply),
                    None => return Poll::Ready(Ok(())),
                }
            }
            if self.next.is_some()
                && let Poll::Ready(stream) = self.muxer.poll_outbound_unpin(cx)?
                && let Some(reply) = self.next.take()
            {
                drop(reply.send(stream));
                continue;
            }
            if let Poll::Ready(stream) = self.muxer.poll_inbound_unpin(cx)? {
                drop(self.found.try_send(stream));
                continue;
            }
            match self.muxer.poll_unpin(cx)? {
                Poll::Ready(_) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn each_library_carries_a_question_and_its_answer() {
        for library in [Library::Libp2pTcp, Library::Noq, Library::Iroh] {
            let [here, there] = pair(library).await.expect("a connection");
            let asking = async {
                let mut stream = here.open().await?;
                stream.write_all(b"question").await?;
                stream.shutdown().await?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await?;
                io::Result::Ok(answer)
            };
            let answering = async {
                let mut stream = there.accept().await?;
                let mut question = String::new();
                stream.read_to_string(&mut question).await?;
                stream.write_all(format!("{question}, answered").as_bytes()).await?;
                stream.shutdown().await
            };
            let (answer, ()) = tokio::try_join!(asking, answering).expect("both");
            assert_eq!(answer, "question, answered", "{library:?}");
            tokio::join!(here.close(), there.close());
        }
    }
}
