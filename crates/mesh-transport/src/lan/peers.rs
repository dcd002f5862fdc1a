//! Peers that the configuration names by address.

use std::{net::SocketAddr, time::Duration};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use mesh_identity::NodeId;
use tokio::sync::{mpsc, oneshot};

use super::{
    addr::{self, Carrier},
    swarm::{Command, ConnectError},
};
use crate::{backoff, convert};

/// The wait before the second try.
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// How long one try to learn who is there may take: a closed port of QUIC says nothing, and a peer that starts meanwhile
/// is to be met soon. Three round trips to anywhere on earth.
const LEARN_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest wait between two tries; there is no last one.
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// How often a name is looked up again once its node is known.
const LOOK_UP_EVERY: Duration = Duration::from_secs(60);

/// Where a peer is, and who it is if that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StaticPeer {
    host: Host,
    port: u16,
    carrier: Carrier,
    node: Option<NodeId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Ip(std::net::IpAddr),
    Name(String),
}

impl StaticPeer {
    /// Reads `/ip4/A/tcp/P`, also with `ip6`, `dns`, `dns4` or `dns6`, with `udp/P/quic-v1`, and with `/p2p/ID` behind it.
    /// `None` for anything else.
    pub(super) fn parse(addr: &Multiaddr) -> Option<Self> {
        let mut parts = addr.iter().peekable();
        let host = match parts.next()? {
            Protocol::Ip4(ip) => Host::Ip(ip.into()),
            Protocol::Ip6(ip) => Host::Ip(ip.into()),
            Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => {
                Host::Name(name.into_owned())
            }
            _ => return None,
        };
        let (port, carrier) = match parts.next()? {
            Protocol::Tcp(port) => (port, Carrier::Tcp),
            Protocol::Udp(port) if parts.next() == Some(Protocol::QuicV1) => (port, Carrier::Quic),
            _ => return None,
        };
        let node = match parts.next() {
            None => None,
            Some(Protocol::P2p(peer)) => Some(convert::node_of_peer(&peer)?),
            Some(_) => return None,
        };
        (port != 0 && parts.next().is_none()).then_some(Self { host, port, carrier, node })
    }

    async fn sockets(&self) -> Result<Vec<SocketAddr>, String> {
        match &self.host {
            Host::Ip(ip) => Ok(vec![SocketAddr::new(*ip, self.port)]),
            Host::Name(name) => {
                let found = tokio::net::lookup_host((name.as_str(), self.port)).await;
                let found: Vec<_> = found.map_err(|error| error.to_string())?.collect();
                if found.is_empty() { Err("the name has no address".into()) } else { Ok(found) }
            }
        }
    }
}

/// Finds the peer and tells the swarm where it is; for ever, as long as it is not found or its name may move.
/// Dropped at any time, it leaves nothing behind.
pub(super) async fn watch(mut peer: StaticPeer, given: Multiaddr, commands: mpsc::Sender<Command>) {
    let mut tries = 0;
    loop {
        let wait = match find(&peer, &commands).await {
            Ok((node, addrs)) => {
                if commands.send(Command::Fix { node, addrs }).await.is_err() {
                    return;
                }
                // From now on it is held to the key that it has shown.
                peer.node = Some(node);
                match peer.host {
                    Host::Ip(_) => return,
                    Host::Name(_) => LOOK_UP_EVERY,
                }
            }
            Err(detail) => {
                tries += 1;
                tracing::debug!(peer = %given, detail, tries, "static peer not found yet");
                backoff::wait_before(tries, RETRY_FIRST, RETRY_LONGEST, rand::random())
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Who is there, and where: asked of whoever answers, unless the configuration says it.
async fn find(
    peer: &StaticPeer,
    commands: &mpsc::Sender<Command>,
) -> Result<(NodeId, Vec<SocketAddr>), String> {
    let addrs = peer.sockets().await?;
    if let Some(node) = peer.node {
        return Ok((node, addrs));
    }
    let mut details = Vec::new();
    for addr in &addrs {
        match learn(addr::multiaddr(*addr, peer.carrier), commands).await {
            Ok(id) => match convert::node_of_peer(&id) {
                Some(node) => return Ok((node, addrs)),
                None => details.push("another kind of node answers".to_owned()),
            },
            Err(ConnectError::Failed(detail)) => details.push(detail),
            Err(ConnectError::WrongPeer) => details.push("this node itself answers".to_owned()),
        }
    }
    Err(details.join(", "))
}

async fn learn(addr: Multiaddr, commands: &mpsc::Sender<Command>) -> Result<PeerId, ConnectError> {
    let (reply, answer) = oneshot::channel();
    let gone = || ConnectError::Failed("the driver has ended".into());
    commands.send(Command::Learn { addr, reply }).await.map_err(|_| gone())?;
    let silent = |_| ConnectError::Failed("nobody answers".into());
    tokio::time::timeout(LEARN_TIMEOUT, answer).await.map_err(silent)?.map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    fn parsed(text: &str) -> Option<StaticPeer> {
        StaticPeer::parse(&text.parse().expect("an address"))
    }

    #[test]
    fn every_way_to_write_a_peer_is_read() {
        let ip = Host::Ip([192, 0, 2, 1].into());
        let peer = |host, carrier, node| Some(StaticPeer { host, port: 9000, carrier, node });
        let name = Host::Name("example.org".into());
        let node = Some(ID.parse().expect("an id"));
        assert_eq!(parsed("/ip4/192.0.2.1/tcp/9000"), peer(ip.clone(), Carrier::Tcp, None));
        assert_eq!(parsed("/ip4/192.0.2.1/udp/9000/quic-v1"), peer(ip, Carrier::Quic, None));
        assert_eq!(
            parsed(&format!("/dns/example.org/tcp/9000/p2p/{ID}")),
            peer(name.clone(), Carrier::Tcp, node)
        );
        assert_eq!(parsed("/dns4/example.org/udp/9000/quic-v1"), peer(name, Carrier::Quic, None));
    }

    #[test]
    fn what_cannot_be_dialed_is_none() {
        for text in [
            "/ip4/192.0.2.1",
            "/ip4/192.0.2.1/tcp/0",
            "/ip4/192.0.2.1/udp/9000",
            "/ip4/192.0.2.1/tcp/9000/ws",
            "/ip4/192.0.2.1/tcp/9000/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        ] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
