//! Being reached where nothing comes in by itself: reservations, circuits, holes, and what others see of this node.

use std::sync::PoisonError;

use libp2p::{
    Multiaddr, PeerId, dcutr, identify, relay,
    swarm::{
        ConnectionId,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::time::Instant;

use super::Task;
use crate::{
    convert,
    lan::{
        addr::{self, Carrier},
        circuits::{CircuitsEvent, Step},
        found,
    },
};

impl Task {
    pub(super) fn handle_circuits(&mut self, event: CircuitsEvent) {
        match event {
            CircuitsEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => {
                self.identified(connection_id, peer_id, &info);
            }
            CircuitsEvent::Client(relay::client::Event::ReservationReqAccepted { relay_peer_id, .. }) => {
                tracing::debug!(relay = %relay_peer_id, "reached through a node that serves circuits");
                self.relays.reserved(&relay_peer_id);
            }
            CircuitsEvent::Server(relay::Event::ReservationReqAccepted { src_peer_id, .. }) => {
                self.swarm.behaviour_mut().carrier.vouch(&src_peer_id);
            }
            CircuitsEvent::Punch(dcutr::Event { remote_peer_id, result }) => match result {
                Ok(id) => self.punched(id),
                Err(error) => {
                    tracing::debug!(peer = %remote_peer_id, error = &error as &dyn std::error::Error, "no hole");
                }
            },
            _ => {}
        }
    }

    fn identified(&mut self, id: ConnectionId, peer: PeerId, info: &identify::Info) {
        self.swarm.behaviour_mut().kademlia.identified(peer, info);
        let Some(remote) = self.swarm.behaviour().carrier.remote(id).cloned() else { return };
        if self.relays.is_anchor(id)
            && let Some((seen, Carrier::Quic)) = addr::socket(&info.observed_addr)
            && found::is_plausible(seen)
        {
            self.relays.observed(&peer, seen);
            self.swarm.behaviour_mut().carrier.suggest(addr::multiaddr(seen, Carrier::Quic));
        }
        let Some(node) = convert::node_of_peer(&peer) else { return };
        if info.protocols.contains(&relay::HOP_PROTOCOL_NAME) {
            let fixed = self.table.fixed(&node).iter().copied();
            let claimed = info.listen_addrs.iter().filter_map(|addr| Some(addr::socket(addr)?.0));
            let addrs = fixed.chain(claimed.filter(|addr| found::is_plausible(*addr))).collect();
            let is_static = !self.table.fixed(&node).is_empty();
            self.relays.heard(peer, (id, remote), (is_static, addrs), |known| self.gates.is_linked(known));
        }
    }

    /// A hole was punched: the transport hears where, and dials there by itself.
    fn punched(&mut self, id: ConnectionId) {
        let carrier = &self.swarm.behaviour().carrier;
        let (Some(shared), Some(remote)) = (carrier.shared(id), carrier.remote(id)) else { return };
        if let Some((socket, Carrier::Quic)) = addr::socket(remote) {
            tracing::debug!(peer = %shared.peer.short(), "a hole was punched");
            let told = self.table.punched(shared.peer, socket);
            self.tell(told);
        }
    }

    pub(super) fn confirm(&mut self, addr: &Multiaddr, is_reached: bool) {
        let Some((socket, _)) = addr::socket(addr) else { return };
        let mut confirmed = self.confirmed.write().unwrap_or_else(PoisonError::into_inner);
        match is_reached {
            true => confirmed.insert(socket),
            false => confirmed.remove(&socket),
        };
    }

    /// Keeps this node reached where it is not by itself, and ends what strangers keep open here.
    pub(super) fn tend_relays(&mut self) {
        if self.serves_circuits {
            for id in self.swarm.behaviour().carrier.left_over(&self.gates) {
                self.swarm.close_connection(id);
            }
            return;
        }
        let (gates, now) = (self.gates.clone(), Instant::now());
        let confirmed = self.confirmed.read().unwrap_or_else(PoisonError::into_inner).clone();
        let own = self.listening.read().unwrap_or_else(PoisonError::into_inner).clone();
        // Behind a NAT somebody who was talked to may come in where nobody else does: only a socket of this node's own is
        // believed to be reached by all.
        let is_reached = |addr| confirmed.contains(&addr) && own.contains(&addr);
        while let Some(step) = self.relays.step(|peer| gates.is_linked(peer), is_reached, now) {
            match step {
                Step::Connect(peer, addrs) => self.anchor(peer, addrs),
                Step::Reserve(peer, circuit) => match self.swarm.listen_on(circuit) {
                    Ok(listener) => self.relays.reserving(&peer, listener),
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "no reservation");
                        return;
                    }
                },
                Step::Close(id) => {
                    self.relays.gone(id, now);
                    self.swarm.close_connection(id);
                }
            }
        }
    }

    /// Connects from the port that others are to reach.
    fn anchor(&mut self, peer: PeerId, addrs: Vec<Multiaddr>) {
        let dial = DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(addrs).build();
        let id = dial.connection_id();
        self.swarm.behaviour_mut().circuits.client.expect_anchor(id);
        self.relays.dialing(&peer, id);
        if self.swarm.dial(dial).is_err() {
            self.relays.gone(id, Instant::now());
        }
    }
}
