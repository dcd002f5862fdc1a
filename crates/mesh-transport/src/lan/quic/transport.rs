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
    core::transport::{DialOpts, ListenerId, TransportError, TransportEvent},
};
use mesh_identity::NodeKey;
use noq::{Endpoint, EndpointConfig, Incoming, TokioRuntime};

use super::{Error, Settings, muxer::Muxer, tls};
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
    waker: Option<Waker>,
}

struct Listener {
    id: ListenerId,
    endpoint: Endpoint,
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
        Ok(Self { settings, gates, listeners: Vec::new(), dialers: [None, None], waker: None })
    }

    /// The socket to dial from: a listener's if it can reach that far, so that one port does for both.
    fn endpoint_for(&mut self, to: SocketAddr) -> io::Result<Endpoint> {
        let suits = |from: &SocketAddr| {
            from.is_ipv4() == to.is_ipv4()
                && (from.ip().is_unspecified() || from.ip().is_loopback() == to.ip().is_loopback())
        };
        if let Some(listener) = self.listeners.iter().find(|one| !one.closed && suits(&one.addr)) {
            return Ok(listener.endpoint.clone());
        }
        let any = match to {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let dialer = &mut self.dialers[usize::from(to.is_ipv6())];
        match dialer {
            Some(endpoint) => Ok(endpoint.clone()),
            None => Ok(dialer.insert(endpoint((any, 0).into(), None)?).clone()),
        }
    }
}

fn endpoint(addr: SocketAddr, server: Option<noq::ServerConfig>) -> io::Result<Endpoint> {
    let socket = match addr {
        SocketAddr::V4(_) => UdpSocket::bind(addr)?,
        SocketAddr::V6(_) => v6_socket(addr)?,
    };
    Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(TokioRuntime))
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
        let endpoint = endpoint(addr, Some(settings.server.clone()))?;
        let addr = endpoint.local_addr()?;
        let mut events = VecDeque::new();
        let interfaces = if addr.ip().is_unspecified() { Some(IfWatcher::new()?) } else { None };
        if interfaces.is_none() {
            let listen_addr = multiaddr(addr, Carrier::Quic);
            events.push_back(TransportEvent::NewAddress { listener_id: id, listen_addr });
        }
        let incoming = next_incoming(endpoint.clone()).boxed();
        Ok(Self { id, endpoint, addr, interfaces, incoming, events, closed: false })
    }

    fn close(&mut self, reason: Result<(), Error>) {
        self.closed = true;
        self.events.push_back(TransportEvent::ListenerClosed { listener_id: self.id, reason });
    }

    fn poll(&mut self, cx: &mut Context<'_>, settings: &Arc<Settings>, gates: &Gates) -> Poll<Event> {
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
            self.handle_incoming(incoming, settings, gates);
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

    fn handle_incoming(&mut self, incoming: Incoming, settings: &Arc<Settings>, gates: &Gates) {
        // A forged address never answers the retry, and so never counts against anybody.
        if !incoming.remote_address_validated() {
            drop(incoming.retry());
            return;
        }
        let from = incoming.remote_address();
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

    fn dial(&mut self, addr: Multiaddr, _opts: DialOpts) -> Result<Upgrade, TransportError<Error>> {
        let to = quic_socket(addr)?;
        if to.port() == 0 || to.ip().is_unspecified() {
            return Err(TransportError::MultiaddrNotSupported(multiaddr(to, Carrier::Quic)));
        }
        let endpoint = self.endpoint_for(to).map_err(|error| TransportError::Other(error.into()))?;
        let client = self.settings.client.clone();
        let connecting = endpoint.connect_with(client, to, SERVER_NAME);
        let connecting = connecting.map_err(|error| TransportError::Other(error.into()))?;
        Ok(finish(connecting, self.settings.clone(), self.gates.clone()).boxed())
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Event> {
        let Self { settings, gates, listeners, waker, .. } = &mut *self;
        for listener in listeners.iter_mut() {
            if let Poll::Ready(event) = listener.poll(cx, settings, gates) {
                return Poll::Ready(event);
            }
        }
        listeners.retain(|listener| !listener.closed);
        *waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
