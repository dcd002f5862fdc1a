//! Listening and dialing.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures_util::{FutureExt, future::BoxFuture};
use if_watch::{IfEvent, tokio::IfWatcher};
use libp2p::{
    Multiaddr, PeerId, Transport,
    core::{
        Endpoint as Role,
        transport::{DialOpts, ListenerId, PortUse, TransportError, TransportEvent},
    },
};
use mesh_identity::NodeKey;
use noq::{Endpoint, EndpointConfig, Incoming, TokioRuntime};

use super::{
    Error, Settings,
    muxer::Muxer,
    punch::{self, Holes},
    tls,
};
use crate::lan::{
    Config,
    addr::{Carrier, multiaddr, socket},
    gate::Gates,
};

/// Raw public keys name nobody; TLS wants some name all the same, and does not send it.
const SERVER_NAME: &str = "node";

type Upgrade = BoxFuture<'static, Result<(PeerId, Muxer), Error>>;
type Event = TransportEvent<Upgrade, Error>;

/// The transport: `/ip4/A/udp/P/quic-v1` and the same for IPv6.
pub(in crate::lan) struct Quic {
    settings: Arc<Settings>,
    gates: Gates,
    listeners: Vec<Listener>,
    /// Sockets for dials that no listener's socket suits, IPv4 and IPv6.
    dialers: [Option<Endpoint>; 2],
    holes: Holes,
    waker: Option<Waker>,
}

struct Listener {
    id: ListenerId,
    endpoint: Endpoint,
    /// The same socket, for packets that open the way for a peer's.
    raw: UdpSocket,
    addr: SocketAddr,
    /// For a socket on all interfaces.
    interfaces: Option<IfWatcher>,
    incoming: BoxFuture<'static, Option<Incoming>>,
    events: VecDeque<Event>,
    closed: bool,
}

impl Quic {
    pub(in crate::lan) fn new(key: &NodeKey, config: &Config, gates: Gates) -> Result<Self, rustls::Error> {
        let settings = Arc::new(Settings::new(key, config)?);
        Ok(Self {
            settings,
            gates,
            listeners: Vec::new(),
            dialers: [None, None],
            holes: Holes::default(),
            waker: None,
        })
    }

    /// A listener whose socket reaches that far.
    fn listener_for(&self, to: SocketAddr) -> Option<&Listener> {
        let suits = |from: &SocketAddr| {
            from.is_ipv4() == to.is_ipv4()
                && (from.ip().is_unspecified() || from.ip().is_loopback() == to.ip().is_loopback())
        };
        self.listeners.iter().find(|one| !one.closed && suits(&one.addr))
    }

    /// The socket to dial from: a listener's, so that one port does for both, unless another port is asked for: whether this
    /// node reaches an address is to be tried from where it never spoke to anybody.
    fn endpoint_for(&mut self, to: SocketAddr, port: PortUse) -> io::Result<Endpoint> {
        if let (PortUse::Reuse, Some(listener)) = (port, self.listener_for(to)) {
            return Ok(listener.endpoint.clone());
        }
        let any = match to {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let dialer = &mut self.dialers[usize::from(to.is_ipv6())];
        match dialer {
            Some(endpoint) => Ok(endpoint.clone()),
            None => Ok(dialer.insert(endpoint(socket_at((any, 0).into())?, None)?).clone()),
        }
    }

    /// Lets a peer come in from there, which a NAT between allows only if this node has sent something that way: the role
    /// of the one who listens when a hole is punched.
    fn punch(&self, to: SocketAddr) -> io::Result<Upgrade> {
        let listener = self.listener_for(to).ok_or(io::ErrorKind::AddrNotAvailable)?;
        let opening = punch::send(listener.raw.try_clone()?, to);
        let (settings, gates) = (self.settings.clone(), self.gates.clone());
        let arrival = self.holes.expect(to);
        Ok(async move {
            let waiting = async {
                tokio::select! {
                    biased;
                    incoming = arrival => incoming,
                    error = opening => return Err(Error::Io(error)),
                }
                .ok_or(Error::TimedOut(settings.handshake_timeout))
            };
            let after = settings.handshake_timeout;
            let incoming =
                tokio::time::timeout(after, waiting).await.map_err(|_| Error::TimedOut(after))??;
            finish(async move { incoming.accept()?.await }, settings, gates).await
        }
        .boxed())
    }
}

fn endpoint(socket: UdpSocket, server: Option<noq::ServerConfig>) -> io::Result<Endpoint> {
    Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(TokioRuntime))
}

fn socket_at(addr: SocketAddr) -> io::Result<UdpSocket> {
    match addr {
        SocketAddr::V4(_) => UdpSocket::bind(addr),
        SocketAddr::V6(_) => v6_socket(addr),
    }
}

/// For IPv6 alone, so that the IPv4 socket of the same port is not in its way.
fn v6_socket(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::DGRAM, None)?;
    socket.set_only_v6(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

async fn finish(
    handshake: impl Future<Output = Result<noq::Connection, noq::ConnectionError>>,
    settings: Arc<Settings>,
    gates: Gates,
) -> Result<(PeerId, Muxer), Error> {
    let after = settings.handshake_timeout;
    let conn = tokio::time::timeout(after, handshake).await.map_err(|_| Error::TimedOut(after))??;
    let peer = tls::proved(&conn).ok_or(Error::ForeignKey)?;
    Ok((peer, Muxer::new(conn, gates.of(peer), settings.streams_max)))
}

async fn next_incoming(endpoint: Endpoint) -> Option<Incoming> {
    endpoint.accept().await
}

impl Listener {
    fn new(id: ListenerId, addr: SocketAddr, settings: &Settings) -> io::Result<Self> {
        let socket = socket_at(addr)?;
        let raw = socket.try_clone()?;
        let endpoint = endpoint(socket, Some(settings.server.clone()))?;
        let addr = endpoint.local_addr()?;
        let mut events = VecDeque::new();
        let interfaces = if addr.ip().is_unspecified() { Some(IfWatcher::new()?) } else { None };
        if interfaces.is_none() {
            let listen_addr = multiaddr(addr, Carrier::Quic);
            events.push_back(TransportEvent::NewAddress { listener_id: id, listen_addr });
        }
        let incoming = next_incoming(endpoint.clone()).boxed();
        Ok(Self { id, endpoint, raw, addr, interfaces, incoming, events, closed: false })
    }

    fn close(&mut self, reason: Result<(), Error>) {
        self.closed = true;
        self.events.push_back(TransportEvent::ListenerClosed { listener_id: self.id, reason });
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        settings: &Arc<Settings>,
        gates: &Gates,
        holes: &Holes,
    ) -> Poll<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(event);
            }
            if self.closed {
                return Poll::Pending;
            }
            if let Some(interfaces) = &mut self.interfaces
                && let Poll::Ready(change) = interfaces.poll_if_event(cx)
            {
                match change {
                    Ok(change) => self.interface_changed(&change),
                    Err(error) => self.close(Err(error.into())),
                }
                continue;
            }
            let Poll::Ready(incoming) = self.incoming.poll_unpin(cx) else { return Poll::Pending };
            let Some(incoming) = incoming else {
                self.close(Ok(()));
                continue;
            };
            self.incoming = next_incoming(self.endpoint.clone()).boxed();
            self.handle_incoming(incoming, settings, gates, holes);
        }
    }

    fn interface_changed(&mut self, change: &IfEvent) {
        let (IfEvent::Up(net) | IfEvent::Down(net)) = change;
        if net.addr().is_ipv4() != self.addr.is_ipv4() {
            return;
        }
        let listener_id = self.id;
        let listen_addr = multiaddr((net.addr(), self.addr.port()).into(), Carrier::Quic);
        self.events.push_back(match change {
            IfEvent::Up(_) => TransportEvent::NewAddress { listener_id, listen_addr },
            IfEvent::Down(_) => TransportEvent::AddressExpired { listener_id, listen_addr },
        });
    }

    fn handle_incoming(
        &mut self,
        incoming: Incoming,
        settings: &Arc<Settings>,
        gates: &Gates,
        holes: &Holes,
    ) {
        // A forged address never answers the retry, and so never counts against anybody.
        if !incoming.remote_address_validated() {
            drop(incoming.retry());
            return;
        }
        let from = incoming.remote_address();
        let Some(incoming) = holes.arrived(from, incoming) else { return };
        let local = SocketAddr::new(incoming.local_ip().unwrap_or(self.addr.ip()), self.addr.port());
        let (settings, gates) = (settings.clone(), gates.clone());
        // Accepted only when it is polled: a swarm at its limit drops this, which refuses.
        let handshake = async move { incoming.accept()?.await };
        let upgrade = finish(handshake, settings, gates).boxed();
        self.events.push_back(TransportEvent::Incoming {
            listener_id: self.id,
            upgrade,
            local_addr: multiaddr(local, Carrier::Quic),
            send_back_addr: multiaddr(from, Carrier::Quic),
        });
    }
}

fn quic_socket(addr: Multiaddr) -> Result<SocketAddr, TransportError<Error>> {
    match socket(&addr) {
        Some((socket, Carrier::Quic)) => Ok(socket),
        _ => Err(TransportError::MultiaddrNotSupported(addr)),
    }
}

impl Transport for Quic {
    type Output = (PeerId, Muxer);
    type Error = Error;
    type ListenerUpgrade = Upgrade;
    type Dial = Upgrade;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<Error>> {
        let addr = quic_socket(addr)?;
        let listener =
            Listener::new(id, addr, &self.settings).map_err(|error| TransportError::Other(error.into()))?;
        self.listeners.push(listener);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let listener = self.listeners.iter_mut().find(|one| one.id == id && !one.closed);
        if let Some(listener) = listener {
            listener.close(Ok(()));
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
            return true;
        }
        false
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Upgrade, TransportError<Error>> {
        let to = quic_socket(addr)?;
        if to.port() == 0 || to.ip().is_unspecified() {
            return Err(TransportError::MultiaddrNotSupported(multiaddr(to, Carrier::Quic)));
        }
        if opts.role == Role::Listener {
            return self.punch(to).map_err(|error| TransportError::Other(error.into()));
        }
        let endpoint =
            self.endpoint_for(to, opts.port_use).map_err(|error| TransportError::Other(error.into()))?;
        let client = self.settings.client.clone();
        let connecting = endpoint.connect_with(client, to, SERVER_NAME);
        let connecting = connecting.map_err(|error| TransportError::Other(error.into()))?;
        Ok(finish(connecting, self.settings.clone(), self.gates.clone()).boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Event> {
        let Self { settings, gates, listeners, holes, waker, .. } = &mut *self;
        for listener in listeners.iter_mut() {
            if let Poll::Ready(event) = listener.poll(cx, settings, gates, holes) {
                return Poll::Ready(event);
            }
        }
        listeners.retain(|listener| !listener.closed);
        *waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
