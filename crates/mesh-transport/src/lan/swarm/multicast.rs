//! What multicast says of other nodes, and how much of it is kept.

use std::net::SocketAddr;

use libp2p::{
    Multiaddr, PeerId,
    core::transport::ListenerId,
    mdns,
    swarm::{FromSwarm, NetworkBehaviour, NewListenAddr},
};
use mesh_identity::NodeId;

use super::Task;
use crate::{
    convert,
    lan::{addr, parts},
};

/// What multicast may name at once, in libp2p's list: as many as fit our table, with two addresses each.
const HEARD_MAX: usize = 2048;

impl Task {
    pub(super) fn heard(&mut self, event: mdns::Event) {
        match event {
            mdns::Event::Discovered(said) => {
                for (node, addr) in said.iter().filter_map(node_at) {
                    let told = self.table.seen(node, addr);
                    self.tell(told);
                }
            }
            mdns::Event::Expired(said) => {
                for (node, addr) in said.iter().filter_map(node_at) {
                    let told = self.table.gone(node, addr);
                    self.tell(told);
                }
            }
        }
        self.bound_mdns();
    }

    /// libp2p keeps all that it hears for as long as the speaker likes. When that is too much it starts anew, and asks
    /// again who is there.
    fn bound_mdns(&mut self) {
        let me = *self.swarm.local_peer_id();
        let heard = self.swarm.behaviour().mdns.as_ref().map_or(0, |mdns| mdns.discovered_nodes().len());
        if heard <= HEARD_MAX {
            return;
        }
        tracing::warn!(heard, "too many nodes are announced on the local network; listening anew");
        match parts::multicast(me) {
            Ok(mut mdns) => {
                // It has not heard where this node listens, and would announce nothing.
                for addr in self.swarm.listeners() {
                    let listener_id = ListenerId::next();
                    mdns.on_swarm_event(FromSwarm::NewListenAddr(NewListenAddr { listener_id, addr }));
                }
                self.swarm.behaviour_mut().mdns = Some(mdns).into();
            }
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot listen anew");
                self.swarm.behaviour_mut().mdns = None.into();
            }
        }
    }
}

/// A node of ours at a socket address, out of what multicast said.
fn node_at((peer, addr): &(PeerId, Multiaddr)) -> Option<(NodeId, SocketAddr)> {
    Some((convert::node_of_peer(peer)?, addr::socket(addr)?.0))
}
