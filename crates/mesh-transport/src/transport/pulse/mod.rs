//! The pulse: an idle TCP connection to a peer nearby, whose end says that the peer's process may have ended.
//!
//! A connection by QUIC shows the death of a process only by silence. A kernel closes the TCP sockets of a process that
//! ends, whatever ended it, and refuses connections to the port on which it listened. Each end of a link holds a pulse
//! of its own, since only who has been let in at a port may believe its refusal. `docs/protocols/pulse.md` says more.

mod listen;
mod watch;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use mesh_identity::NodeId;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{Inner, gate::HelloGate, links::LinkConn};
use crate::{
    call::{self, Call, CallFault},
    connection::PathKind,
    error::CloseCode,
    lan::own_ip_towards,
    peer::{Peer, Protocol},
    stream::Stream,
};

pub(super) const PULSE: Protocol = Protocol::new("pulse/1");

/// Peers with a pulse at most; the others' processes are missed by silence. A quarter of the connections where that is
/// less, since a pulse takes two sockets.
const PEERS_MAX: usize = 256;
/// How long a token admits: far longer than the round trip between asking and connecting.
const TOKEN_LIVES: Duration = Duration::from_secs(5);
/// Connections at once that have not shown their token.
const UNPROVED_MAX: usize = 256;
/// The same from one address: on loopback all nodes of a machine have one.
const UNPROVED_PER_ADDRESS_MAX: usize = 64;

/// What a token is made of.
const TOKEN_BYTES: usize = 16;

type Token = [u8; TOKEN_BYTES];

/// Asks for a place to connect to.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ask {}

impl Call for Ask {
    const PROTOCOL: Protocol = PULSE;
    type Reply = Place;
}

/// Where the pulse is, and what is said there.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// At the address at which the asker sees the answerer.
    port: u16,
    /// Shown by who connects; good once.
    token: Token,
    /// Shown by who listens: another process may have that port.
    answer: Token,
}

/// Every pulse of a transport.
pub(super) struct Pulses {
    peers: Mutex<BTreeMap<NodeId, Arc<Watched>>>,
    peers_max: usize,
    /// The port of the listener at each address: those of this machine for peers on it, the unspecified one for others.
    listeners: Mutex<BTreeMap<IpAddr, u16>>,
    gate: Arc<HelloGate>,
    /// Cancelled when every link has said goodbye: a pulse that ended before would be taken for a death.
    over: CancellationToken,
}

/// One run of a peer that is linked nearby.
struct Watched {
    instance: u64,
    /// Cancelled when the last link to it has ended.
    unlinked: CancellationToken,
    /// Its links, or their paths, are others.
    changed: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Where it has let us in.
    place: Option<SocketAddr>,
    /// What it may show here.
    offer: Option<Offer>,
    /// Ends the connection by which it watches us.
    held: Option<CancellationToken>,
}

struct Offer {
    token: Token,
    answer: Token,
    until: Instant,
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pulses {
    pub(super) fn new(connections_max: usize) -> Self {
        Self {
            peers: Mutex::default(),
            peers_max: (connections_max / 4).clamp(1, PEERS_MAX),
            listeners: Mutex::default(),
            gate: HelloGate::for_addresses(UNPROVED_MAX, UNPROVED_PER_ADDRESS_MAX),
            over: CancellationToken::new(),
        }
    }

    /// Every goodbye has been said: the sockets may close.
    pub(super) fn close(&self) {
        self.over.cancel();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Watched>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer that was given the token, and what it is answered. A token is good once.
    fn redeem(&self, token: &Token) -> Option<(Arc<Watched>, Token)> {
        let now = Instant::now();
        self.lock().values().find_map(|watched| {
            let offer = watched.lock().offer.take_if(|offer| offer.token == *token)?;
            (now < offer.until).then(|| (watched.clone(), offer.answer))
        })
    }
}

/// A link came up, or goes another way now: if its peer is near, it gets a pulse.
pub(super) fn linked(inner: &Arc<Inner>, conn: &LinkConn) {
    let (node, instance) = (conn.peer.id, conn.instance);
    let mut peers = inner.pulses.lock();
    if let Some(known) = peers.get(&node).filter(|known| known.instance == instance) {
        return known.changed.notify_one();
    }
    if near(conn).is_none() || inner.is_closing() {
        return;
    }
    if peers.len() >= inner.pulses.peers_max && !peers.contains_key(&node) {
        return;
    }
    let watched = Arc::new(Watched {
        instance,
        unlinked: CancellationToken::new(),
        changed: Notify::new(),
        state: Mutex::default(),
    });
    if let Some(before) = peers.insert(node, watched.clone()) {
        before.unlinked.cancel();
    }
    drop(peers);
    let span = tracing::debug_span!("transport.pulse", peer = %node.short());
    inner.tasks.spawn(watch::run(inner.clone(), node, watched).instrument(span));
}

/// A link has ended and was taken out: with the last one of a run its pulse ends.
pub(super) fn unlinked(inner: &Inner, conn: &LinkConn) {
    let (node, instance) = (conn.peer.id, conn.instance);
    let mut peers = inner.pulses.lock();
    let Some(known) = peers.get(&node).filter(|known| known.instance == instance) else { return };
    if inner.links.matching(|link| link.peer.id == node && link.instance == instance).is_empty() {
        known.unlinked.cancel();
        peers.remove(&node);
    } else {
        known.changed.notify_one();
    }
}

/// Answers a peer that asks where to connect.
pub(super) async fn answer(inner: &Arc<Inner>, conn: &LinkConn, stream: Stream) {
    let offered = |_: Peer, Ask {}: Ask| std::future::ready(offer(inner, conn));
    call::serve_one(conn.peer.clone(), stream, inner.config.call_bytes_max, &offered).await;
}

fn offer(inner: &Arc<Inner>, conn: &LinkConn) -> Result<Place, CallFault> {
    let far = || CallFault::new(1, "no pulse to an address that is not near");
    let remote = near(conn).ok_or_else(far)?;
    let known = inner.pulses.lock().get(&conn.peer.id).cloned();
    let known = known.filter(|known| known.instance == conn.instance);
    let known = known.ok_or_else(|| CallFault::new(2, "no pulse: at the limit"))?;
    let port = listen::port_for(inner, remote.ip()).map_err(|error| {
        tracing::debug!(error = &error as &dyn std::error::Error, "no port for pulses");
        CallFault::new(3, "no port for pulses")
    })?;
    let (token, answer) = (rand::random(), rand::random());
    known.lock().offer = Some(Offer { token, answer, until: Instant::now() + TOKEN_LIVES });
    Ok(Place { port, token, answer })
}

/// Whether the machine of a peer whose connection failed says that the process has ended.
pub(super) async fn is_gone(inner: &Inner, conn: &LinkConn) -> bool {
    let known = inner.pulses.lock().get(&conn.peer.id).cloned();
    let Some(known) = known.filter(|known| known.instance == conn.instance) else { return false };
    let place = known.lock().place;
    match place {
        Some(place) => watch::is_refused(place).await,
        None => false,
    }
}

/// Ends every link to a run of a peer that is no more.
fn bury(inner: &Inner, node: NodeId, instance: u64) {
    inner.metrics.processes_gone.add();
    for conn in inner.links.matching(|conn| conn.peer.id == node && conn.instance == instance) {
        conn.close(CloseCode::Gone, "its process has ended");
    }
}

/// The peer's address, where its machine is so near that what it says of a port is its own word.
fn near(conn: &LinkConn) -> Option<SocketAddr> {
    let addr = conn.conn.remote_addr()?;
    let ip = addr.ip().to_canonical();
    let is_near = conn.path().kind == PathKind::Direct && (super::improve::is_near(ip) || is_own(ip));
    // A link-local address keeps the interface that it is for.
    is_near.then(|| if ip.is_ipv4() { SocketAddr::new(ip, addr.port()) } else { addr })
}

/// Whether the address is one of this machine: the other process is here, too.
fn is_own(ip: IpAddr) -> bool {
    own_ip_towards(ip) == Some(ip)
}

/// Resolves when the transport has ended, and what was to be said on its links was said.
async fn over(inner: &Inner) {
    let given_up = async {
        inner.cancel.cancelled().await;
        // Without a shutdown nobody says goodbye, and one that was given up is not waited for without end.
        if inner.closing.load(Ordering::SeqCst) {
            tokio::time::sleep(GOODBYES).await;
        }
    };
    tokio::select! {
        () = inner.pulses.over.cancelled() => {}
        () = given_up => {}
    }
}

/// Longer than any driver takes to say goodbye.
const GOODBYES: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
