//! The nodes that serve circuits for this one: where it is anchored, and what they see of it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use libp2p::{Multiaddr, PeerId, core::transport::ListenerId, multiaddr::Protocol, swarm::ConnectionId};
use mesh_identity::DIRECT_ADDRS_MAX;
use tokio::time::Instant;

use crate::{
    backoff,
    lan::addr::{self, Carrier},
};

/// Nodes known to serve circuits; more are not needed.
const KNOWN_MAX: usize = 16;
/// Nodes at which this one lets itself be reached: a second one for when the first dies.
const ANCHORS_MAX: usize = 2;
/// Nodes through which one dial is tried.
const THROUGH_MAX: usize = 4;
/// The waits between two tries to be anchored at a node; there is no last one.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// All of them. Reads no clock and owns no socket.
#[derive(Debug, Default)]
pub(in crate::lan) struct Relays(BTreeMap<PeerId, Relay>);

#[derive(Debug)]
struct Relay {
    /// Named by the configuration: preferred.
    is_static: bool,
    addrs: Vec<SocketAddr>,
    /// Connections on which it said that it serves circuits, and where they lead.
    heard_on: BTreeMap<ConnectionId, Multiaddr>,
    anchor: Option<Anchor>,
    /// Where it sees this node.
    observed: Option<SocketAddr>,
    tries: u32,
    again: Option<Instant>,
}

/// A connection of this node's to it, over which others reach this node.
#[derive(Debug)]
struct Anchor {
    id: ConnectionId,
    /// Where it leads, once it is there.
    remote: Option<Multiaddr>,
    reservation: Option<ListenerId>,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::lan) enum Step {
    /// Connect to the node at one of these, and tell [`Relays::dialing`].
    Connect(PeerId, Vec<Multiaddr>),
    /// Ask for a reservation there, and tell [`Relays::reserving`].
    Reserve(PeerId, Multiaddr),
    /// Close the anchor: this node is reached without it.
    Close(ConnectionId),
}

impl Relays {
    /// A peer says on a connection that it serves circuits; it may be at any of the addresses.
    pub(in crate::lan) fn heard(
        &mut self,
        peer: PeerId,
        (id, remote): (ConnectionId, Multiaddr),
        (is_static, addrs): (bool, Vec<SocketAddr>),
        is_linked: impl Fn(&PeerId) -> bool,
    ) {
        if self.0.len() >= KNOWN_MAX && !self.0.contains_key(&peer) {
            // Strangers may say so too, and must not be in the way.
            self.0.retain(|known, relay| relay.anchor.is_some() || is_linked(known));
            if self.0.len() >= KNOWN_MAX {
                return;
            }
        }
        let relay = self.0.entry(peer).or_insert_with(|| Relay {
            is_static,
            addrs: Vec::new(),
            heard_on: BTreeMap::new(),
            anchor: None,
            observed: None,
            tries: 0,
            again: None,
        });
        relay.is_static = is_static;
        relay.heard_on.insert(id, remote);
        for addr in addrs {
            if !relay.addrs.contains(&addr) && relay.addrs.len() < DIRECT_ADDRS_MAX {
                relay.addrs.push(addr);
            }
        }
    }

    /// Whether this connection is an anchor; what its node sees of this one is worth something then.
    pub(in crate::lan) fn is_anchor(&self, id: ConnectionId) -> bool {
        self.0.values().any(|relay| relay.anchor.as_ref().is_some_and(|anchor| anchor.id == id))
    }

    /// The node sees this one there.
    pub(in crate::lan) fn observed(&mut self, peer: &PeerId, addr: SocketAddr) {
        if let Some(relay) = self.0.get_mut(peer) {
            relay.observed = Some(addr);
        }
    }

    /// The connection for [`Step::Connect`].
    pub(in crate::lan) fn dialing(&mut self, peer: &PeerId, id: ConnectionId) {
        if let Some(relay) = self.0.get_mut(peer) {
            relay.anchor = Some(Anchor { id, remote: None, reservation: None });
        }
    }

    /// A connection is there.
    pub(in crate::lan) fn connected(&mut self, id: ConnectionId, remote: &Multiaddr) {
        if let Some(anchor) = self.anchor_mut(id) {
            anchor.remote = Some(remote.clone());
        }
    }

    /// A connection has ended, or never came.
    pub(in crate::lan) fn gone(&mut self, id: ConnectionId, now: Instant) {
        for relay in self.0.values_mut() {
            relay.heard_on.remove(&id);
            if relay.anchor.take_if(|anchor| anchor.id == id).is_some() {
                relay.put_off(now);
            }
        }
        self.0.retain(|_, relay| !relay.heard_on.is_empty() || relay.anchor.is_some());
    }

    /// The listener for [`Step::Reserve`].
    pub(in crate::lan) fn reserving(&mut self, peer: &PeerId, listener: ListenerId) {
        if let Some(anchor) = self.0.get_mut(peer).and_then(|relay| relay.anchor.as_mut()) {
            anchor.reservation = Some(listener);
        }
    }

    /// The node has taken the reservation.
    pub(in crate::lan) fn reserved(&mut self, peer: &PeerId) {
        if let Some(relay) = self.0.get_mut(peer) {
            relay.tries = 0;
        }
    }

    /// A listener has closed; the anchor whose reservation it was, to be closed.
    pub(in crate::lan) fn refused(&mut self, listener: ListenerId) -> Option<ConnectionId> {
        let mut anchors = self.0.values().filter_map(|relay| relay.anchor.as_ref());
        anchors.find(|anchor| anchor.reservation == Some(listener)).map(|anchor| anchor.id)
    }

    /// What to do next, if anything. `is_linked`: whether a peer serves this node now; `is_reached`: whether this node is
    /// reached from outside at an address.
    pub(in crate::lan) fn step(
        &mut self,
        is_linked: impl Fn(&PeerId) -> bool,
        is_reached: impl Fn(SocketAddr) -> bool,
        now: Instant,
    ) -> Option<Step> {
        let anchored = self.0.values().filter(|relay| relay.anchor.is_some()).count();
        let mut relays: Vec<_> = self.0.iter_mut().collect();
        relays.sort_by_key(|(_, relay)| !relay.is_static);
        for (peer, relay) in relays {
            let wanted = !relay.observed.is_some_and(&is_reached);
            match &relay.anchor {
                Some(Anchor { id, .. }) if !wanted => return Some(Step::Close(*id)),
                Some(Anchor { remote: Some(remote), reservation: None, .. }) if is_linked(peer) => {
                    return Some(Step::Reserve(*peer, through(remote, *peer)));
                }
                None if wanted && anchored < ANCHORS_MAX && relay.is_due(now) && is_linked(peer) => {
                    return Some(Step::Connect(*peer, relay.to_dial()));
                }
                _ => {}
            }
        }
        None
    }

    /// Where a circuit to a node may begin: put the node's id behind each.
    pub(in crate::lan) fn circuits(&self, is_linked: impl Fn(&PeerId) -> bool) -> Vec<Multiaddr> {
        let linked = self.0.iter().filter(|(peer, _)| is_linked(peer));
        let mut linked: Vec<_> =
            linked.filter_map(|(peer, relay)| Some((peer, relay, relay.heard_on.values().next()?))).collect();
        linked.sort_by_key(|(_, relay, _)| (!relay.is_static, relay.anchor.is_none()));
        linked.into_iter().take(THROUGH_MAX).map(|(peer, _, remote)| through(remote, *peer)).collect()
    }

    fn anchor_mut(&mut self, id: ConnectionId) -> Option<&mut Anchor> {
        self.0.values_mut().filter_map(|relay| relay.anchor.as_mut()).find(|anchor| anchor.id == id)
    }
}

impl Relay {
    fn is_due(&self, now: Instant) -> bool {
        self.again.is_none_or(|again| again <= now)
    }

    fn put_off(&mut self, now: Instant) {
        self.tries += 1;
        self.again = Some(now + backoff::wait_before(self.tries, RETRY_FIRST, RETRY_LONGEST, rand::random()));
    }

    /// By QUIC, whose address others can be told; by TCP where it does not answer.
    fn to_dial(&self) -> Vec<Multiaddr> {
        let carrier = if self.tries.is_multiple_of(2) { Carrier::Quic } else { Carrier::Tcp };
        self.addrs.iter().map(|addr| addr::multiaddr(*addr, carrier)).collect()
    }
}

/// The circuit part of an address, without whom it leads to.
fn through(remote: &Multiaddr, relay: PeerId) -> Multiaddr {
    let bare = addr::socket(remote).map(|(socket, carrier)| addr::multiaddr(socket, carrier));
    bare.unwrap_or_else(|| remote.clone()).with(Protocol::P2p(relay)).with(Protocol::P2pCircuit)
}
