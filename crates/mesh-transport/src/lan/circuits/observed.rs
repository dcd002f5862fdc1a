//! Identification without what strangers say of our addresses.

use std::task::{Context, Poll, ready};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    identify,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm,
    },
};

/// libp2p's, except that what a peer sees of us is no candidate for an address of ours by itself: whoever connects could
/// name any, and as many as it likes. [`super::Relays`] takes it from those that serve circuits for us.
pub(in crate::lan) struct Identify(identify::Behaviour);

impl Identify {
    pub(super) fn new(identify: identify::Behaviour) -> Self {
        Self(identify)
    }
}

impl NetworkBehaviour for Identify {
    type ConnectionHandler = <identify::Behaviour as NetworkBehaviour>::ConnectionHandler;
    type ToSwarm = identify::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.0.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.0.handle_established_outbound_connection(id, peer, addr, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.0.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.0.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<identify::Event, THandlerInEvent<Self>>> {
        loop {
            match ready!(self.0.poll(cx)) {
                ToSwarm::NewExternalAddrCandidate(_) => {}
                other => return Poll::Ready(other),
            }
        }
    }
}
