//! What the swarm is made of: transports below, behaviours on top.

use std::{io, time::Duration};

use futures_util::{AsyncRead, AsyncWrite, future::Either};
use libp2p::{
    PeerId, Swarm, Transport,
    core::{
        ConnectedPoint,
        muxing::StreamMuxerBox,
        transport::{Boxed, OrTransport},
        upgrade::Version,
    },
    identity::Keypair,
    mdns, noise, ping,
    swarm::{self, NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, yamux,
};
use mesh_identity::NodeKey;
use tokio_util::task::TaskTracker;

use super::{
    BindError, Config, Discovery, behaviour::Behaviour, circuits::Circuits, gate::Gates, kademlia::Kademlia,
    muxer::Gated, quic::Quic,
};
use crate::convert;

/// Inbound streams whose protocol is not yet agreed upon, of one connection; more wait in the peer.
const NEGOTIATING_MAX: usize = 64;
/// Streams beyond ours that one connection may have: pings, identification, discovery, circuits, goodbyes.
const OTHER_STREAMS: usize = 128;
/// How long a connection may be there for libp2p's own protocols alone.
const UNUSED: Duration = Duration::from_secs(10);
/// How long an announcement of ours holds.
const HEARD_FOR: Duration = Duration::from_secs(60);
/// How often a quiet network is asked who is there; a node that starts asks at once.
const ASK_EVERY: Duration = Duration::from_secs(20);

/// The parts of the swarm.
#[derive(NetworkBehaviour)]
pub(super) struct Parts {
    pub(super) carrier: Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) kademlia: Kademlia,
    pub(super) circuits: Circuits,
}

type Secured = Boxed<(PeerId, StreamMuxerBox)>;

/// A swarm that listens on nothing yet.
pub(super) fn swarm(
    key: &NodeKey,
    config: &Config,
    gates: &Gates,
    tasks: TaskTracker,
) -> Result<Swarm<Parts>, BindError> {
    let keypair = convert::libp2p_key(key);
    let failed = |error: &dyn std::error::Error| BindError::Swarm(error.to_string());
    let (over_circuits, circuits) = Circuits::new(keypair.public(), config, gates);
    let quic = Quic::new(key, config, gates.clone()).map_err(|error| failed(&error))?;
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    let secure = |error| failed(&error);
    let tcp = secured(tcp, &keypair, config, gates).map_err(secure)?;
    let over_circuits = secured(over_circuits, &keypair, config, gates).map_err(secure)?;
    let transport = OrTransport::new(quic, OrTransport::new(over_circuits, tcp));
    let transport = transport.map(|connection, _| match connection {
        Either::Left((peer, muxer)) => (peer, StreamMuxerBox::new(muxer)),
        Either::Right(Either::Left(secured) | Either::Right(secured)) => secured,
    });
    let ping = ping::Config::new().with_interval(config.ping_every).with_timeout(config.idle);
    let me = keypair.public().to_peer_id();
    let mdns = match config.discovery {
        Discovery::Mdns => Some(multicast(me).map_err(|error| failed(&error))?),
        Discovery::Kademlia { .. } | Discovery::None => None,
    };
    let kademlia = match config.discovery {
        Discovery::Kademlia { .. } => Kademlia::new(me),
        Discovery::Mdns | Discovery::None => Kademlia::off(),
    };
    let carrier = Behaviour::new(config, gates.clone(), tasks);
    let parts = Parts { carrier, ping: ping::Behaviour::new(ping), mdns: mdns.into(), kademlia, circuits };
    let settings = swarm::Config::with_tokio_executor()
        .with_max_negotiating_inbound_streams(NEGOTIATING_MAX)
        .with_idle_connection_timeout(UNUSED);
    Ok(Swarm::new(transport.boxed(), parts, me, settings))
}

/// The listener for multicast.
pub(super) fn multicast(me: PeerId) -> io::Result<mdns::tokio::Behaviour> {
    let config = mdns::Config { ttl: HEARD_FOR, query_interval: ASK_EVERY, enable_ipv6: false };
    mdns::tokio::Behaviour::new(config, me)
}

/// Noise and yamux over a stream of bytes.
fn secured<T>(transport: T, key: &Keypair, config: &Config, gates: &Gates) -> Result<Secured, noise::Error>
where
    T: Transport + Send + Unpin + 'static,
    T::Output: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    T::Dial: Send,
    T::ListenerUpgrade: Send,
    T::Error: Send + Sync + 'static,
{
    let mut yamux = yamux::Config::default();
    // Beyond its limit yamux ends the connection, so it lies above what both sides open by their own limits.
    yamux.set_max_num_streams(2 * config.streams_max + OTHER_STREAMS);
    let gates = gates.clone();
    let secured = transport
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(key)?)
        .multiplex(yamux)
        .timeout(config.handshake_timeout)
        .map(move |(peer, muxer), point| match point {
            // Whom we dial we trust with a little memory until its hello.
            ConnectedPoint::Dialer { .. } => (peer, StreamMuxerBox::new(muxer)),
            ConnectedPoint::Listener { .. } => (peer, StreamMuxerBox::new(Gated::new(muxer, gates.of(peer)))),
        });
    Ok(secured.boxed())
}
