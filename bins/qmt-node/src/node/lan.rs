//! The LAN transport: one driver for every scope of this node, with the peers that the configuration names.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_identity::NodeKey;
use mesh_transport::lan::{BindError, Config as DriverConfig, Discovery, Lan};
use multiaddr::{Multiaddr, Protocol};

use crate::config::{self, Mesh, StaticPeer};

/// Starts the LAN transport where the configuration asks for it. Peers to dial ask for it too: then it listens where the
/// system chooses, and looks for nobody else. `external` are the announced addresses of this node; it is to serve circuits
/// where it runs a relay.
pub(super) async fn start(
    key: &NodeKey,
    mesh: &Mesh,
    external: &[SocketAddr],
    serve_circuits: bool,
) -> Result<Option<Arc<Lan>>, BindError> {
    let peers: Vec<Multiaddr> = mesh.peers.iter().filter_map(dialable).collect();
    if mesh.enabled == Some(false) || (mesh.lan.is_none() && peers.is_empty()) {
        return Ok(None);
    }
    let (listen, discovery) = match &mesh.lan {
        Some(lan) => (both(&lan.listen), discovery(lan.discovery)),
        None => (DriverConfig::default().listen, Discovery::None),
    };
    let config = DriverConfig {
        listen,
        discovery,
        peers,
        external_addrs: external.to_vec(),
        serve_circuits,
        ..DriverConfig::default()
    };
    let lan = Lan::bind(key, config).await?;
    tracing::info!(listening = ?lan.listening(), "LAN transport started");
    Ok(Some(lan))
}

/// TCP and QUIC at one port, whichever of them was written.
fn both(listen: &Multiaddr) -> Vec<Multiaddr> {
    let mut parts = listen.iter();
    let (Some(ip), Some(Protocol::Tcp(port) | Protocol::Udp(port))) = (parts.next(), parts.next()) else {
        return vec![listen.clone()];
    };
    let at = Multiaddr::from(ip);
    vec![at.clone().with(Protocol::Tcp(port)), at.with(Protocol::Udp(port)).with(Protocol::QuicV1)]
}

fn discovery(wanted: config::Discovery) -> Discovery {
    match wanted {
        config::Discovery::Mdns => Discovery::Mdns,
        config::Discovery::Kademlia => Discovery::Kademlia { bootstrap: Vec::new() },
        config::Discovery::None => Discovery::None,
    }
}

/// The address of a peer with its id behind it, if both are known. One that is known by its id alone has to be found.
fn dialable(peer: &StaticPeer) -> Option<Multiaddr> {
    let addr = peer.addr.clone()?;
    match &peer.id {
        Some(id) => format!("{addr}/p2p/{id}").parse().ok(),
        None => Some(addr),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn texts(addrs: Vec<Multiaddr>) -> Vec<String> {
        addrs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tcp_and_quic_listen_at_the_port_that_was_written_for_either() {
        let expected = ["/ip4/192.0.2.1/tcp/9000", "/ip4/192.0.2.1/udp/9000/quic-v1"];
        assert_eq!(texts(both(&expected[0].parse().unwrap())), expected);
        assert_eq!(texts(both(&expected[1].parse().unwrap())), expected);
    }

    #[test]
    fn a_peer_is_dialed_by_its_address_and_held_to_its_id() {
        let id = NodeKey::from_seed([1; 32]).node_id();
        let addr: Multiaddr = "/ip4/192.0.2.1/tcp/9000".parse().unwrap();
        let peer = |addr, id| StaticPeer { name: None, addr, id, role: None };
        assert_eq!(dialable(&peer(Some(addr.clone()), None)), Some(addr.clone()));
        let held = dialable(&peer(Some(addr.clone()), Some(id))).unwrap();
        assert_eq!(held.to_string(), format!("{addr}/p2p/{id}"));
        assert_eq!(dialable(&peer(None, Some(id))), None);
    }
}
