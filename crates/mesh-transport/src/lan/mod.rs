//! Links by libp2p: on the local network, and beyond it through nodes that both ends know.
//!
//! One swarm serves every scope. A libp2p connection is one connection of ours; streams on it speak
//! `/qmt/stream/1` and nothing else, scopes are named in hello. `docs/protocols/lan.md` says what travels.

mod addr;
mod behaviour;
mod circuits;
mod connection;
mod dial;
mod driver;
mod found;
mod gate;
mod handler;
mod kademlia;
mod muxer;
mod parts;
mod peers;
mod places;
mod quic;
mod record;
mod stream;
mod swarm;
#[cfg(test)]
mod throughput;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use libp2p::Multiaddr;

use self::addr::{Carrier, multiaddr};

pub(crate) use addr::own_ip_towards;
pub use driver::Lan;
#[cfg(feature = "testing")]
pub(crate) use quic::default_configs as default_quic;

/// How nodes are found that nobody named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Discovery {
    /// By multicast DNS on every IPv4 network of this machine: each node announces its id and its addresses there.
    #[default]
    Mdns,
    /// Through the nodes that are known: those of [`Config::peers`], these, and whom they know. Each node tells those it is
    /// connected to where it listens, and those it has met where others are.
    Kademlia {
        /// Where to begin; written as in [`Config::peers`].
        bootstrap: Vec<Multiaddr>,
    },
    /// Not at all.
    None,
}

/// Parameters of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What to listen on: `/ip4/A/tcp/P` and `/ip4/A/udp/P/quic-v1`, the same for `ip6` (both, on all IPv4 interfaces
    /// and any free port). QUIC with port 0 takes the port that TCP got, so that one address serves for both.
    pub listen: Vec<Multiaddr>,
    /// Announced as given, such as a forwarded port (none).
    pub external_addrs: Vec<SocketAddr>,
    /// How nodes are found that nobody named (multicast).
    pub discovery: Discovery,
    /// Peers at known addresses (none): `/ip4/A/tcp/P`, also with `ip6`, `dns`, `dns4`, `dns6`, `udp/P/quic-v1`, and with
    /// `/p2p/ID` behind it. Without an id whoever answers first is taken to be meant, and held to its key from then on;
    /// until somebody answers it is tried for ever.
    pub peers: Vec<Multiaddr>,
    /// Carries circuits between linked nodes that do not reach each other (no). For a node that everybody reaches: it looks
    /// for no such node itself.
    pub serve_circuits: bool,
    /// Inbound handshakes at once (64); more are refused.
    pub handshakes_max: usize,
    /// Of these, from one remote IP address (16).
    pub handshakes_per_address_max: usize,
    /// A handshake's deadline, at either side (5 s).
    pub handshake_timeout: Duration,
    /// How often a peer is asked for a sign of life (1 s); it also measures the round trip.
    pub ping_every: Duration,
    /// Silence after which the connection is lost (5 s): how soon a peer that froze is noticed.
    pub idle: Duration,
    /// Streams that each side of a member's connection may have open at once (512).
    pub streams_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: both([0, 0, 0, 0].into()),
            external_addrs: Vec::new(),
            discovery: Discovery::default(),
            peers: Vec::new(),
            serve_circuits: false,
            handshakes_max: 64,
            handshakes_per_address_max: 16,
            handshake_timeout: Duration::from_secs(5),
            ping_every: Duration::from_secs(1),
            idle: Duration::from_secs(5),
            streams_max: 512,
        }
    }
}

impl Config {
    /// Loopback alone, nobody is looked for: for tests and examples.
    pub fn loopback() -> Self {
        let listen = both([127, 0, 0, 1].into());
        Self { listen, discovery: Discovery::None, ..Self::default() }
    }
}

/// TCP and QUIC on any port.
fn both(ip: IpAddr) -> Vec<Multiaddr> {
    [Carrier::Tcp, Carrier::Quic].map(|carrier| multiaddr((ip, 0).into(), carrier)).into()
}

/// Why the driver does not start. Nothing is left open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another program has the port. Choose another, or port 0.
    #[error("{addr}: the port is taken")]
    PortTaken {
        /// What was to be listened on.
        addr: Multiaddr,
    },
    /// Not an address that this driver listens on. Write `/ip4/A/tcp/P` or `/ip4/A/udp/P/quic-v1`.
    #[error("{addr} is not an address to listen on; write /ip4/0.0.0.0/tcp/0 or /ip4/0.0.0.0/udp/0/quic-v1")]
    Address {
        /// What was given.
        addr: Multiaddr,
    },
    /// Not an address of a peer. Write `/ip4/A/tcp/P` or the like.
    #[error(
        "{addr} is not the address of a peer; write /ip4/192.168.1.2/tcp/9000, with /p2p/ID behind it if you know it"
    )]
    Peer {
        /// What was given.
        addr: Multiaddr,
    },
    /// Anything else that the system or libp2p says.
    #[error("cannot start the local network transport: {0}")]
    Swarm(String),
}
