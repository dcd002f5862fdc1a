//! Which connection to a node its circuits go over.

use std::{
    collections::{HashMap, HashSet},
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    relay,
    swarm::{
        ConnectionClosed, ConnectionDenied, ConnectionId, DialFailure, FromSwarm, NetworkBehaviour, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm, behaviour::ConnectionEstablished,
    },
};

/// libp2p's client of relays, which is shown one connection to each node: it takes the oldest that it knows, and a
/// reservation has to be on the one by which this node's address is known, which comes later (an anchor).
pub(in crate::lan) struct Client {
    inner: relay::client::Behaviour,
    anchors: HashSet<ConnectionId>,
    direct: HashMap<PeerId, Vec<(ConnectionId, ConnectedPoint)>>,
    shown: HashMap<PeerId, (ConnectionId, ConnectedPoint)>,
}

impl Client {
    pub(super) fn new(inner: relay::client::Behaviour) -> Self {
        Self { inner, anchors: HashSet::new(), direct: HashMap::new(), shown: HashMap::new() }
    }

    /// The connection that is being dialed is to be used for circuits, once it is there.
    pub(in crate::lan) fn expect_anchor(&mut self, id: ConnectionId) {
        self.anchors.insert(id);
    }

    fn established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        self.direct.entry(peer).or_default().push((id, endpoint.clone()));
        if self.anchors.contains(&id) {
            self.hide(peer);
        }
        self.show_one(peer);
    }

    fn closed(&mut self, peer: PeerId, id: ConnectionId) {
        self.anchors.remove(&id);
        if let Some(connections) = self.direct.get_mut(&peer) {
            connections.retain(|(other, _)| *other != id);
            if connections.is_empty() {
                self.direct.remove(&peer);
            }
        }
        if self.shown.get(&peer).is_some_and(|(shown, _)| *shown == id) {
            self.hide(peer);
            self.show_one(peer);
        }
    }

    /// Shows the newest connection to the peer if none is shown.
    fn show_one(&mut self, peer_id: PeerId) {
        let Some((id, endpoint)) = self.direct.get(&peer_id).and_then(|connections| connections.last())
        else {
            return;
        };
        if self.shown.contains_key(&peer_id) {
            return;
        }
        self.inner.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id,
            connection_id: *id,
            endpoint,
            failed_addresses: &[],
            other_established: 0,
        }));
        self.shown.insert(peer_id, (*id, endpoint.clone()));
    }

    fn hide(&mut self, peer_id: PeerId) {
        if let Some((id, endpoint)) = self.shown.remove(&peer_id) {
            self.inner.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id: id,
                endpoint: &endpoint,
                cause: None,
                remaining_established: 0,
            }));
        }
    }
}

impl NetworkBehaviour for Client {
    type ConnectionHandler = <relay::client::Behaviour as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = relay::client::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_outbound_connection(id, peer, addr, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            }) if !endpoint.is_relayed() => self.established(peer_id, connection_id, endpoint),
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, endpoint, .. })
                if !endpoint.is_relayed() =>
            {
                self.closed(peer_id, connection_id);
            }
            FromSwarm::ConnectionEstablished(_) | FromSwarm::ConnectionClosed(_) => {}
            FromSwarm::DialFailure(DialFailure { connection_id, .. }) => {
                self.anchors.remove(&connection_id);
                self.inner.on_swarm_event(event);
            }
            other => self.inner.on_swarm_event(other),
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        // libp2p expects to know the connection of which it hears.
        if self.shown.get(&peer).is_some_and(|(shown, _)| *shown == id) {
            self.inner.on_connection_handler_event(peer, id, event);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<relay::client::Event, THandlerInEvent<Self>>> {
        self.inner.poll(cx)
    }
}
