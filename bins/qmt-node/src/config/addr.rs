//! Addresses of peers and of listeners, as people write them.

use mesh_identity::NodeId;
use multiaddr::{Multiaddr, Protocol};

/// What an address must look like, for messages.
pub(super) const LISTEN: &str = "an address such as /ip4/0.0.0.0/tcp/9000 or /ip6/::/udp/9000/quic-v1";
pub(super) const PEER: &str =
    "an address such as /ip4/192.168.1.100/tcp/9000 or /dns/host/udp/9000/quic-v1, with or without /p2p/ID";

/// An address, its `/p2p/` part, and how it was mended, if it was.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) addr: Multiaddr,
    pub(super) id: Option<NodeId>,
    pub(super) mended: Option<String>,
}

/// Reads an address. The seed's `/udp/9000/quic`, which is no multiaddr, is mended to `/ip4/0.0.0.0/udp/9000/quic-v1`.
pub(super) fn address(text: &str) -> Option<Address> {
    let mut mended = text.to_owned();
    if text.starts_with("/udp/") || text.starts_with("/tcp/") {
        mended = format!("/ip4/0.0.0.0{text}");
    }
    if mended.ends_with("/quic") || mended.contains("/quic/") {
        mended = mended.replacen("/quic", "/quic-v1", 1);
    }
    let mut addr: Multiaddr = mended.parse().ok()?;
    let id = match addr.iter().last()? {
        Protocol::P2p(peer) => {
            addr.pop();
            Some(peer.to_string().parse().ok()?)
        }
        _ => None,
    };
    let parts: Vec<Protocol<'_>> = addr.iter().collect();
    let host = matches!(
        parts.first()?,
        Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)
    );
    let port = matches!(parts[1..], [Protocol::Tcp(_)] | [Protocol::Udp(_), Protocol::QuicV1]);
    let mended = (mended != text).then_some(mended);
    (host && port).then_some(Address { addr, id, mended })
}

/// The same for an address to listen on: an IP address without `/p2p/`.
pub(super) fn listen(text: &str) -> Option<Address> {
    let address = address(text)?;
    let is_ip = matches!(address.addr.iter().next()?, Protocol::Ip4(_) | Protocol::Ip6(_));
    (is_ip && address.id.is_none()).then_some(address)
}

/// Whether a relay's URL can be used: `http` or `https`, a host, no query, as long as invites can carry.
pub(super) fn relay_url(text: &str) -> Result<String, String> {
    let expected = || "a relay's URL such as https://relay.example.org".to_owned();
    let uri: http::Uri = text.parse().map_err(|_| expected())?;
    if !matches!(uri.scheme_str(), Some("http" | "https"))
        || uri.host().is_none_or(str::is_empty)
        || uri.query().is_some()
    {
        return Err(expected());
    }
    if text.len() > mesh_identity::RELAY_URL_BYTES_MAX {
        return Err(format!("a relay's URL of at most {} bytes", mesh_identity::RELAY_URL_BYTES_MAX));
    }
    Ok(text.to_owned())
}
