//! The one task that owns the swarm.

mod multicast;
mod reach;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use futures_util::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::TransportError,
    multiaddr::Protocol,
    ping,
    swarm::{
        self, ConnectionId, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use mesh_identity::{NodeId, NodeKey};
use rustix::io::Errno;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::task::TaskTracker;

use super::{
    BindError, Config,
    addr::{self, Carrier},
    behaviour,
    circuits::Relays,
    connection::LanConnection,
    found::Table,
    gate::Gates,
    parts::{self, Parts, PartsEvent},
};
use crate::{
    connection::{Connection, Found, PathFacts},
    error::{CloseCode, ClosedWhy},
};

/// How long `start` waits for the first own address of each listener.
const FIRST_ADDR: Duration = Duration::from_secs(2);
/// How often silence is looked for while it may last.
const CHECKS: u32 = 8;
/// How long `shutdown` lets connections say goodbye.
const GOODBYES: Duration = Duration::from_secs(2);

/// What the task is asked to do.
pub(super) enum Command {
    /// Connects to one address, where this peer is expected.
    Connect { to: PeerId, addr: Multiaddr, reply: oneshot::Sender<Result<LanConnection, ConnectError>> },
    /// Connects to one address and says who answers there.
    Learn { addr: Multiaddr, reply: oneshot::Sender<Result<PeerId, ConnectError>> },
    /// Says where circuits may begin.
    Circuits { reply: oneshot::Sender<Vec<Multiaddr>> },
    /// The configuration says where this node is.
    Fix { node: NodeId, addrs: Vec<SocketAddr> },
    /// Closes everything and ends.
    Shutdown,
}

/// Who waits for a dial.
enum Waiting {
    Connect(oneshot::Sender<Result<LanConnection, ConnectError>>),
    Learn(oneshot::Sender<Result<PeerId, ConnectError>>),
}

impl Waiting {
    fn fail(self, error: ConnectError) {
        match self {
            Self::Connect(reply) => drop(reply.send(Err(error))),
            Self::Learn(reply) => drop(reply.send(Err(error))),
        }
    }
}

/// Why one address gave no connection.
#[derive(Debug)]
pub(super) enum ConnectError {
    /// Somebody else answers there.
    WrongPeer,
    /// Nobody does.
    Failed(String),
}

/// The socket addresses that the swarm listens on, as it learns them.
pub(super) type Listening = Arc<RwLock<BTreeSet<SocketAddr>>>;

/// The swarm and what waits for it.
pub(super) struct Task {
    swarm: Swarm<Parts>,
    commands: mpsc::Receiver<Command>,
    accepted: mpsc::Sender<LanConnection>,
    listening: Listening,
    dials: HashMap<ConnectionId, Waiting>,
    table: Table,
    found: mpsc::Sender<Found>,
    gates: Gates,
    relays: Relays,
    /// Addresses of this node that others have reached, beside those that it listens on.
    confirmed: Listening,
    /// Whether this node carries circuits for others, and is therefore reached by them.
    serves_circuits: bool,
    idle: Duration,
    /// When silence was last looked for.
    checked: Instant,
}

impl Task {
    /// Opens the listeners and waits for their addresses.
    pub(super) async fn start(
        key: &NodeKey,
        config: &Config,
        commands: mpsc::Receiver<Command>,
        accepted: mpsc::Sender<LanConnection>,
        found: mpsc::Sender<Found>,
        tasks: TaskTracker,
    ) -> Result<Self, BindError> {
        let gates = Gates::default();
        let swarm = parts::swarm(key, config, &gates, tasks)?;
        let mut task = Self {
            swarm,
            commands,
            accepted,
            listening: Listening::default(),
            dials: HashMap::new(),
            table: Table::default(),
            found,
            gates,
            relays: Relays::default(),
            confirmed: Listening::default(),
            serves_circuits: config.serve_circuits,
            idle: config.idle.max(Duration::from_millis(10)),
            checked: Instant::now(),
        };
        for addr in config.external_addrs.iter().filter(|_| config.serve_circuits) {
            for carrier in [Carrier::Tcp, Carrier::Quic] {
                task.swarm.add_external_address(addr::multiaddr(*addr, carrier));
            }
        }
        let is_tcp = |addr: &&Multiaddr| addr.iter().any(|part| matches!(part, Protocol::Tcp(_)));
        for addr in config.listen.iter().filter(is_tcp) {
            task.listen(addr).await?;
        }
        for addr in config.listen.iter().filter(|addr| !is_tcp(addr)) {
            task.listen_beside_tcp(addr).await?;
        }
        Ok(task)
    }

    /// Takes the port that TCP got where any will do and it is free.
    async fn listen_beside_tcp(&mut self, addr: &Multiaddr) -> Result<(), BindError> {
        if let Some((any, carrier)) = addr::socket(addr)
            && any.port() == 0
            && let Some(port) = self.tcp_port(any.is_ipv4())
        {
            let beside = addr::multiaddr((any.ip(), port).into(), carrier);
            match self.listen(&beside).await {
                Err(BindError::PortTaken { .. }) => {}
                listening => return listening,
            }
        }
        self.listen(addr).await
    }

    fn tcp_port(&self, ipv4: bool) -> Option<u16> {
        let listening = self.listening.read().unwrap_or_else(PoisonError::into_inner);
        listening.iter().find(|addr| addr.is_ipv4() == ipv4).map(SocketAddr::port)
    }

    pub(super) fn listening(&self) -> Listening {
        self.listening.clone()
    }

    pub(super) fn confirmed(&self) -> Listening {
        self.confirmed.clone()
    }

    async fn listen(&mut self, addr: &Multiaddr) -> Result<(), BindError> {
        let failed = |error: &io::Error| {
            // libp2p wraps what the system says, and keeps of it only the words.
            let taken = io::Error::from_raw_os_error(Errno::ADDRINUSE.raw_os_error()).to_string();
            let text = error.to_string();
            match text.contains(&taken) {
                true => BindError::PortTaken { addr: addr.clone() },
                false => BindError::Swarm(format!("{addr}: {text}")),
            }
        };
        let listener = self.swarm.listen_on(addr.clone()).map_err(|error| match error {
            TransportError::MultiaddrNotSupported(_) => BindError::Address { addr: addr.clone() },
            TransportError::Other(error) => failed(&error),
        })?;
        let first = async {
            loop {
                let event = self.swarm.select_next_some().await;
                match &event {
                    SwarmEvent::NewListenAddr { listener_id, .. } if *listener_id == listener => {
                        self.handle_event(event);
                        return Ok(());
                    }
                    SwarmEvent::ListenerClosed { listener_id, reason: Err(error), .. }
                        if *listener_id == listener =>
                    {
                        return Err(failed(error));
                    }
                    _ => self.handle_event(event),
                }
            }
        };
        // A machine without any network has no address yet; one that comes later is announced then.
        tokio::time::timeout(FIRST_ADDR, first).await.unwrap_or(Ok(()))
    }

    /// Serves until it is told to shut down or nobody is left to tell.
    pub(super) async fn run(mut self) {
        let mut checks = tokio::time::interval(self.idle / CHECKS);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.checked = Instant::now();
        loop {
            tokio::select! {
                biased;
                _ = checks.tick() => {
                    self.check_silence();
                    self.tend_relays();
                }
                command = self.commands.recv() => match command {
                    Some(Command::Connect { to, addr, reply }) => self.connect(to, addr, reply),
                    Some(Command::Learn { addr, reply }) => self.learn(addr, reply),
                    Some(Command::Circuits { reply }) => {
                        // Whoever asked may have gone.
                        drop(reply.send(self.relays.circuits(|peer| self.gates.is_linked(peer))));
                    }
                    Some(Command::Fix { node, addrs }) => {
                        self.swarm.behaviour_mut().kademlia.begin_at(&node, &addrs);
                        let told = self.table.fix(node, addrs);
                        self.tell(told);
                    }
                    Some(Command::Shutdown) | None => break,
                },
                event = self.swarm.select_next_some() => self.handle_event(event),
            }
        }
        self.dials.clear();
        for (_, shared) in self.swarm.behaviour().carrier.each() {
            shared.end(ClosedWhy::Local(CloseCode::Shutdown));
        }
        let goodbyes = async {
            while !self.swarm.behaviour().carrier.is_empty() {
                let event = self.swarm.select_next_some().await;
                self.handle_event(event);
            }
        };
        drop(tokio::time::timeout(GOODBYES, goodbyes).await);
        for (_, shared) in self.swarm.behaviour().carrier.each() {
            shared.end(ClosedWhy::Local(CloseCode::Shutdown));
        }
    }

    fn connect(
        &mut self,
        to: PeerId,
        addr: Multiaddr,
        reply: oneshot::Sender<Result<LanConnection, ConnectError>>,
    ) {
        let dial = DialOpts::peer_id(to).condition(PeerCondition::Always);
        let own_port = has_own_port(&addr);
        let dial = dial.addresses(vec![addr]);
        let dial = if own_port { dial.allocate_new_port() } else { dial };
        self.dial(dial.build(), Waiting::Connect(reply));
    }

    fn learn(&mut self, addr: Multiaddr, reply: oneshot::Sender<Result<PeerId, ConnectError>>) {
        let own_port = has_own_port(&addr);
        let dial = DialOpts::unknown_peer_id().address(addr);
        let dial = if own_port { dial.allocate_new_port() } else { dial };
        self.dial(dial.build(), Waiting::Learn(reply));
    }

    fn dial(&mut self, dial: DialOpts, waiting: Waiting) {
        let id = dial.connection_id();
        match self.swarm.dial(dial) {
            Ok(()) => drop(self.dials.insert(id, waiting)),
            Err(error) => waiting.fail(connect_error(&error)),
        }
    }

    fn handle_event(&mut self, event: SwarmEvent<PartsEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished { connection_id, peer_id, endpoint, .. } => {
                self.relays.connected(connection_id, endpoint.get_remote_address());
                self.established(connection_id, peer_id);
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                self.relays.gone(connection_id, Instant::now());
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.relays.gone(connection_id, Instant::now());
                if let Some(waiting) = self.dials.remove(&connection_id) {
                    waiting.fail(connect_error(&error));
                }
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(from = %send_back_addr, error = &error as &dyn std::error::Error, "handshake failed");
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                if let Some((socket, _)) = addr::socket(&address) {
                    self.listening.write().unwrap_or_else(PoisonError::into_inner).insert(socket);
                    if self.serves_circuits {
                        // What others are told to reach it at with a reservation.
                        self.swarm.add_external_address(address);
                    }
                }
            }
            SwarmEvent::ListenerClosed { listener_id, .. } => {
                if let Some(anchor) = self.relays.refused(listener_id) {
                    self.swarm.close_connection(anchor);
                }
            }
            SwarmEvent::ExternalAddrConfirmed { address } => self.confirm(&address, true),
            SwarmEvent::ExternalAddrExpired { address } => self.confirm(&address, false),
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                if let Some((socket, _)) = addr::socket(&address) {
                    self.listening.write().unwrap_or_else(PoisonError::into_inner).remove(&socket);
                    self.swarm.remove_external_address(&address);
                }
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot accept on the local network"
                );
            }
            SwarmEvent::Behaviour(PartsEvent::Carrier(behaviour::Arrived(id))) => self.arrived(id),
            SwarmEvent::Behaviour(PartsEvent::Ping(event)) => self.pinged(event),
            SwarmEvent::Behaviour(PartsEvent::Mdns(event)) => self.heard(event),
            SwarmEvent::Behaviour(PartsEvent::Kademlia(event)) => {
                for (node, addr) in self.swarm.behaviour_mut().kademlia.learn(event) {
                    let told = self.table.seen(node, addr);
                    self.tell(told);
                }
            }
            SwarmEvent::Behaviour(PartsEvent::Circuits(event)) => self.handle_circuits(event),
            _ => {}
        }
    }

    fn established(&mut self, id: ConnectionId, peer: PeerId) {
        match self.dials.remove(&id) {
            Some(Waiting::Connect(reply)) => {
                if let Some(conn) = self.swarm.behaviour_mut().carrier.take(id) {
                    // Whoever asked may have gone; the connection is then dropped, which closes it.
                    drop(reply.send(Ok(conn)));
                }
            }
            Some(Waiting::Learn(reply)) => {
                drop(reply.send(Ok(peer)));
                self.swarm.close_connection(id);
            }
            None => {}
        }
    }

    fn arrived(&mut self, id: ConnectionId) {
        let Some(conn) = self.swarm.behaviour_mut().carrier.take(id) else { return };
        if let Err(full) = self.accepted.try_send(conn) {
            full.into_inner().close(CloseCode::Busy, "at the limit, try later");
        }
    }

    fn pinged(&mut self, event: ping::Event) {
        // A ping that failed says nothing yet: the peer may be busy, or only the ping was lost.
        if let (Some(shared), Ok(rtt)) =
            (self.swarm.behaviour().carrier.shared(event.connection), event.result)
        {
            shared.hear();
            shared.set_path(PathFacts { rtt: Some(rtt), ..shared.path() });
        }
    }

    /// Ends connections whose peer has been silent for too long.
    fn check_silence(&mut self) {
        let paused = self.checked.elapsed() > self.idle / 2;
        self.checked = Instant::now();
        let mut lost = Vec::new();
        for (id, shared) in self.swarm.behaviour().carrier.each() {
            if paused {
                // This node stood still itself, and could hear nobody.
                shared.hear();
            } else if shared.silent_for() > self.idle && shared.end(ClosedWhy::TimedOut) {
                tracing::debug!(peer = %shared.peer.short(), "no sign of life");
                lost.push(id);
            }
        }
        for id in lost {
            self.swarm.close_connection(id);
        }
    }

    fn tell(&self, told: impl IntoIterator<Item = Found>) {
        for found in told {
            if self.found.try_send(found).is_err() {
                tracing::debug!("nobody hears of nodes that are found");
            }
        }
    }
}

/// TCP takes a port of its own for each connection: two of them between the same two listeners' ports cannot be. QUIC and
/// circuits have the port that others know.
fn has_own_port(addr: &Multiaddr) -> bool {
    addr::socket(addr).is_some_and(|(_, carrier)| carrier == Carrier::Tcp)
}

fn connect_error(error: &swarm::DialError) -> ConnectError {
    match error {
        swarm::DialError::WrongPeerId { .. } | swarm::DialError::LocalPeerId { .. } => {
            ConnectError::WrongPeer
        }
        swarm::DialError::Transport(tried) => {
            let tried = tried.iter().map(|(addr, error)| format!("{addr}: {}", innermost(error)));
            ConnectError::Failed(tried.collect::<Vec<_>>().join(", "))
        }
        other => ConnectError::Failed(other.to_string()),
    }
}

/// The text of the cause at the end of the chain: the layers of libp2p above it repeat each other.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
