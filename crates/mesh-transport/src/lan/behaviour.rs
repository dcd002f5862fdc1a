//! Our part of the swarm: it makes a [`Shared`] for each connection, and limits handshakes.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io,
    task::{Context, Poll},
    time::Duration,
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionError, ConnectionId, DialFailure,
        FromSwarm, ListenFailure, NetworkBehaviour, THandlerInEvent, THandlerOutEvent, ToSwarm,
    },
};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{
    Config, addr,
    connection::{Ends, LanConnection, Queues, Shared},
    gate::Gates,
    handler::{Handler, Told},
    places::Places,
    quic,
};
use crate::{
    connection::{Origin, PathFacts, PathKind, TransportKind},
    convert,
    error::ClosedWhy,
};

/// Inbound connections on which nothing of ours was said yet; libp2p's own protocols may run there for a while.
const SILENT_MAX: usize = 128;
/// Of these, from one IP address.
const SILENT_PER_ADDRESS_MAX: usize = 32;

/// How long a connection may be open for circuits before its peer is linked: time for hello.
const LEFT_OVER: Duration = Duration::from_secs(30);

/// Carries our streams on the connections of a swarm.
pub(super) struct Behaviour {
    gates: Gates,
    streams_max: usize,
    tasks: TaskTracker,
    connections: HashMap<ConnectionId, Entry>,
    /// Inbound connections that have not proved a key yet.
    handshakes: Places<ConnectionId>,
    /// Inbound connections that have, and on which no stream of ours was opened yet.
    silent: Places<ConnectionId>,
    to_swarm: VecDeque<ToSwarm<Arrived, Infallible>>,
}

struct Entry {
    remote: Multiaddr,
    is_inbound: bool,
    since: Instant,
    shared: std::sync::Arc<Shared>,
    /// Until the connection is handed out.
    arrived: Option<tokio::sync::mpsc::Receiver<(libp2p::Stream, tokio::sync::OwnedSemaphorePermit)>>,
}

/// The peer of this inbound connection wants a link: it can be taken.
#[derive(Debug)]
pub(super) struct Arrived(pub(super) ConnectionId);

/// Why a connection was not let in.
#[derive(Debug, thiserror::Error)]
enum Denied {
    #[error("at the limit of handshakes")]
    Handshakes,
    #[error("at the limit of connections without a stream")]
    Silent,
    #[error("the peer's key is not an ed25519 key")]
    ForeignKey,
}

impl Behaviour {
    pub(super) fn new(config: &Config, gates: Gates, tasks: TaskTracker) -> Self {
        Self {
            gates,
            streams_max: config.streams_max.max(1),
            tasks,
            connections: HashMap::new(),
            handshakes: Places::new(config.handshakes_max, config.handshakes_per_address_max),
            silent: Places::new(SILENT_MAX, SILENT_PER_ADDRESS_MAX),
            to_swarm: VecDeque::new(),
        }
    }

    /// The connection that was just established; it can be taken once.
    pub(super) fn take(&mut self, id: ConnectionId) -> Option<LanConnection> {
        let entry = self.connections.get_mut(&id)?;
        Some(LanConnection::new(entry.shared.clone(), entry.arrived.take()?))
    }

    pub(super) fn shared(&self, id: ConnectionId) -> Option<&Shared> {
        self.connections.get(&id).map(|entry| &*entry.shared)
    }

    /// Where a connection leads.
    pub(super) fn remote(&self, id: ConnectionId) -> Option<&Multiaddr> {
        self.connections.get(&id).map(|entry| &entry.remote)
    }

    /// An address that this node may have outside; libp2p asks others whether they reach it there.
    pub(super) fn suggest(&mut self, addr: Multiaddr) {
        self.to_swarm.push_back(ToSwarm::NewExternalAddrCandidate(addr));
    }

    /// The peer is linked and has a reservation here: its connections are no stranger's any more.
    pub(super) fn vouch(&mut self, peer: &PeerId) {
        let node = convert::node_of_peer(peer);
        let theirs = self.connections.iter().filter(|(_, entry)| Some(entry.shared.peer) == node);
        for id in theirs.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.silent.leave(id);
        }
    }

    /// Connections that others have kept open for circuits, and whose peers are linked here no more.
    pub(super) fn left_over(&self, gates: &Gates) -> Vec<ConnectionId> {
        let is_over = |entry: &Entry| {
            entry.is_inbound
                && !entry.shared.is_used()
                && entry.since.elapsed() > LEFT_OVER
                && !gates.is_linked(&convert::peer_id(&entry.shared.peer))
        };
        self.connections.iter().filter(|(_, entry)| is_over(entry)).map(|(id, _)| *id).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Every connection that there is.
    pub(super) fn each(&self) -> impl Iterator<Item = (ConnectionId, &Shared)> {
        self.connections.iter().map(|(id, entry)| (*id, &*entry.shared))
    }

    fn handler(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        inbound_at: Option<&Multiaddr>,
        relayed: bool,
    ) -> Result<Handler, ConnectionDenied> {
        let node = convert::node_of_peer(&peer).ok_or_else(|| ConnectionDenied::new(Denied::ForeignKey))?;
        let origin = match addr::ip(addr) {
            Some(ip) if inbound_at.is_some() && !relayed => Origin::Ip(ip),
            _ => Origin::Node(node),
        };
        let kind = if relayed { PathKind::Relayed } else { PathKind::Direct };
        let path = PathFacts { kind, rtt: None, transport: TransportKind::Lan };
        let gate = self.gates.of(peer);
        let listening = inbound_at.and_then(addr::ip).filter(|ip| !ip.is_unspecified());
        let here = listening.or_else(|| addr::own_ip_towards(addr::ip(addr)?)).filter(|_| !relayed);
        let ends = Ends { here, there: addr.clone() };
        let (shared, queues) =
            Shared::new(node, origin, ends, path, gate, self.streams_max, self.tasks.clone());
        let Queues { opens, arrived } = queues;
        let entry = Entry {
            remote: addr.clone(),
            is_inbound: inbound_at.is_some(),
            since: Instant::now(),
            shared: shared.clone(),
            arrived: Some(arrived),
        };
        self.connections.insert(id, entry);
        Ok(Handler::new(shared, opens))
    }

    fn forget(&mut self, id: ConnectionId, why: ClosedWhy) {
        self.handshakes.leave(id);
        self.silent.leave(id);
        if let Some(entry) = self.connections.remove(&id) {
            entry.shared.end(why);
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Arrived;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        match self.handshakes.enter(id, addr::ip(remote)) {
            true => Ok(()),
            false => Err(ConnectionDenied::new(Denied::Handshakes)),
        }
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        self.handshakes.leave(id);
        match self.silent.enter(id, addr::ip(remote)) {
            // The address of one who comes by a circuit names it alone.
            true => self.handler(id, peer, remote, Some(local), addr::is_relayed(local)),
            false => Err(ConnectionDenied::new(Denied::Silent)),
        }
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        addr: &Multiaddr,
        _role: Endpoint,
        _port: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        self.handler(id, peer, addr, None, addr::is_relayed(addr))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, cause, .. }) => {
                self.forget(connection_id, closed_why(cause));
            }
            FromSwarm::ListenFailure(ListenFailure { connection_id, .. })
            | FromSwarm::DialFailure(DialFailure { connection_id, .. }) => {
                self.forget(connection_id, ClosedWhy::Failed("not established".into()));
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer_id: PeerId,
        id: ConnectionId,
        told: THandlerOutEvent<Self>,
    ) {
        self.to_swarm.push_back(match told {
            Told::Arrived => {
                self.silent.leave(id);
                ToSwarm::GenerateEvent(Arrived(id))
            }
            Told::Over => ToSwarm::CloseConnection { peer_id, connection: CloseConnection::One(id) },
        });
    }

    fn poll(&mut self, _cx: &mut Context<'_>) -> Poll<ToSwarm<Arrived, THandlerInEvent<Self>>> {
        // Filled only by the calls above, after which the swarm polls again.
        self.to_swarm.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

fn closed_why(cause: Option<&ConnectionError>) -> ClosedWhy {
    match cause {
        Some(ConnectionError::IO(error)) if is_silence(error) => ClosedWhy::TimedOut,
        Some(error) => ClosedWhy::Failed(error.to_string()),
        None => ClosedWhy::Failed("closed".into()),
    }
}

/// TCP gave up on the peer, or QUIC did.
fn is_silence(error: &io::Error) -> bool {
    let quic = error.get_ref().and_then(|error| error.downcast_ref::<quic::Error>());
    error.kind() == io::ErrorKind::TimedOut || quic.is_some_and(quic::Error::is_silence)
}
