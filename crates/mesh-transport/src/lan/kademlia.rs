//! Finding nodes through nodes: libp2p's Kademlia among peers of ours, with bootstrap peers of the user's own.
//!
//! It answers who is there and where, and stores nothing: records and providers of others are not taken.

use std::{net::SocketAddr, time::Duration};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol, identify,
    kad::{self, store::MemoryStore},
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};
use mesh_identity::{DIRECT_ADDRS_MAX, NodeId};

use super::{
    addr::{self, Carrier},
    found,
};
use crate::convert;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/qmt/kad/1");
/// One query over the whole network; a LAN answers in well under that.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the network is looked over again.
const LOOK_AGAIN_EVERY: Duration = Duration::from_secs(60);

/// Kademlia, where it is asked for.
#[derive(NetworkBehaviour)]
pub(super) struct Kademlia {
    kad: Toggle<kad::Behaviour<MemoryStore>>,
}

impl Kademlia {
    pub(super) fn off() -> Self {
        Self { kad: None.into() }
    }

    pub(super) fn new(me: PeerId) -> Self {
        let mut config = kad::Config::new(PROTOCOL);
        config
            .set_query_timeout(QUERY_TIMEOUT)
            .set_periodic_bootstrap_interval(Some(LOOK_AGAIN_EVERY))
            .set_record_filtering(kad::StoreInserts::FilterBoth);
        let mut kad = kad::Behaviour::with_config(me, MemoryStore::new(me), config);
        // On a network of one's own every node answers.
        kad.set_mode(Some(kad::Mode::Server));
        Self { kad: Some(kad).into() }
    }

    /// Begins at a node that the configuration names.
    pub(super) fn begin_at(&mut self, node: &NodeId, addrs: &[SocketAddr]) {
        let Some(kad) = self.kad.as_mut() else { return };
        let peer = convert::peer_id(node);
        for addr in addrs {
            for carrier in [Carrier::Tcp, Carrier::Quic] {
                kad.add_address(&peer, addr::multiaddr(*addr, carrier));
            }
        }
        // Fails only when no node is known, and one was just added.
        drop(kad.bootstrap());
    }

    /// What an event says of nodes and their addresses.
    pub(super) fn learn(&mut self, event: KademliaEvent) -> Vec<(NodeId, SocketAddr)> {
        match event {
            KademliaEvent::Kad(kad::Event::RoutingUpdated { peer, addresses, .. }) => {
                let Some(node) = convert::node_of_peer(&peer) else { return Vec::new() };
                plausible(addresses.iter()).map(|(_, socket)| (node, socket)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// A connected peer says where it listens: a claim, about itself alone.
    pub(super) fn identified(&mut self, peer: PeerId, info: &identify::Info) {
        let Some(kad) = self.kad.as_mut() else { return };
        if info.protocols.contains(&PROTOCOL) && convert::node_of_peer(&peer).is_some() {
            for (addr, _) in plausible(info.listen_addrs.iter()).take(DIRECT_ADDRS_MAX) {
                kad.add_address(&peer, addr);
            }
        }
    }
}

fn plausible<'a>(
    addrs: impl Iterator<Item = &'a Multiaddr>,
) -> impl Iterator<Item = (Multiaddr, SocketAddr)> {
    addrs.filter_map(|addr| {
        let (socket, carrier) = addr::socket(addr)?;
        found::is_plausible(socket).then(|| (addr::multiaddr(socket, carrier), socket))
    })
}
