//! Between libp2p's addresses and ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use libp2p::{Multiaddr, multiaddr::Protocol};

/// What carries a connection to a socket address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carrier {
    Tcp,
    Quic,
}

/// `/ip4/A/tcp/P` or `/ip4/A/udp/P/quic-v1`, and the same for IPv6.
pub(super) fn multiaddr(addr: SocketAddr, carrier: Carrier) -> Multiaddr {
    let base = Multiaddr::from(addr.ip().to_canonical());
    match carrier {
        Carrier::Tcp => base.with(Protocol::Tcp(addr.port())),
        Carrier::Quic => base.with(Protocol::Udp(addr.port())).with(Protocol::QuicV1),
    }
}

/// The socket address and what carries it; `/p2p/ID` behind it is ignored. `None` for anything else, relayed
/// addresses and names among them.
pub(super) fn socket(addr: &Multiaddr) -> Option<(SocketAddr, Carrier)> {
    let mut parts = addr.iter().peekable();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    let (port, carrier) = match (parts.next()?, parts.peek()) {
        (Protocol::Tcp(port), _) => (port, Carrier::Tcp),
        (Protocol::Udp(port), Some(Protocol::QuicV1)) => {
            parts.next();
            (port, Carrier::Quic)
        }
        _ => return None,
    };
    match (parts.next(), parts.next()) {
        (None | Some(Protocol::P2p(_)), None) => Some((SocketAddr::new(ip, port), carrier)),
        _ => None,
    }
}

/// The IP address of the machine that the address leads to first.
pub(super) fn ip(addr: &Multiaddr) -> Option<IpAddr> {
    match addr.iter().next()? {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip).to_canonical()),
        _ => None,
    }
}

/// The address of this machine from which it speaks to that one now.
pub(crate) fn own_ip_towards(ip: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // Nothing is sent: this only asks the system for the way. The port does not matter.
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((ip, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip().to_canonical())
}

/// Whether the address leads through a relay.
pub(super) fn is_relayed(addr: &Multiaddr) -> bool {
    addr.iter().any(|part| part == Protocol::P2pCircuit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Multiaddr {
        text.parse().expect("an address")
    }

    #[test]
    fn sockets_survive_both_ways() {
        for socket_addr in ["192.0.2.1:9000", "[2001:db8::1]:1"] {
            let addr: SocketAddr = socket_addr.parse().expect("an address");
            for carrier in [Carrier::Tcp, Carrier::Quic] {
                assert_eq!(socket(&multiaddr(addr, carrier)), Some((addr, carrier)));
            }
        }
        let with_id = "/ip4/192.0.2.1/tcp/9/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
        assert_eq!(socket(&parsed(with_id)), Some(("192.0.2.1:9".parse().expect("one"), Carrier::Tcp)));
    }

    #[test]
    fn what_is_no_plain_socket_is_none() {
        for text in [
            "/dns4/example.org/tcp/9",
            "/ip4/192.0.2.1/udp/9",
            "/ip4/192.0.2.1/udp/9/quic",
            "/ip4/192.0.2.1/tcp/9/ws",
            "/ip4/192.0.2.1/tcp/9/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN/p2p-circuit",
        ] {
            assert_eq!(socket(&parsed(text)), None, "{text}");
        }
    }
}
