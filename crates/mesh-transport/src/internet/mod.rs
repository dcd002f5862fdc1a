//! Links over the internet: QUIC by iroh, direct or through relays.
//!
//! One endpoint serves one set of relays ([`Internet`]); scopes with the same relays share it ([`Endpoints`]). With
//! relays disabled it works on direct addresses alone. n0's public relays are used only with [`Relays::Public`], and no
//! other service of n0 ever.

mod addr;
mod connection;
mod driver;
mod endpoints;
mod home;
mod loss;
mod quic;
mod trust;

use std::{net::SocketAddr, time::Duration};

pub(crate) use addr::best_first;
pub use addr::compact;
pub use driver::Internet;
pub use endpoints::{Endpoints, EndpointsError};
pub use home::LEARNED_MAX;
pub use trust::RelayTrust;

/// The one ALPN; scopes are named in hello, never here.
pub(crate) const ALPN: &[u8] = b"qmt-mesh/1";

/// Which relays an endpoint uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Relays {
    /// None: direct addresses only.
    #[default]
    Disabled,
    /// These, and those that invites name and members run. An empty list is for a node that knows none yet.
    Custom(Vec<Relay>),
    /// The public relays that n0 runs, seen by a third party. Only on the user's wish.
    Public,
}

/// One relay server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Relay {
    /// `https://host[:port]` or, for tests and closed networks, `http://host:port`.
    pub url: String,
    /// UDP port of its address discovery, without which nodes behind NAT cannot punch. `None` for none.
    pub quic_port: Option<u16>,
    /// Shown to a relay that knows this node by a token only: a joiner's, from [`mesh_identity::Invite::relay_token`].
    pub token: Option<String>,
}

impl Relay {
    /// A relay by its URL; an `https` one is taken to do address discovery on the usual port (7842).
    pub fn new(url: impl Into<String>) -> Self {
        let url = url.into();
        let quic_port = url.starts_with("https://").then_some(crate::relay::QUIC_PORT);
        Self { url, quic_port, token: None }
    }
}

/// What two URLs of one relay have in common.
fn same_url(url: &str) -> String {
    url.trim_end_matches('/').to_lowercase()
}

/// How an endpoint stands with its home relay, the one that others reach it through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeRelay {
    /// Its URL.
    pub url: String,
    /// Whether it has taken this endpoint in.
    pub connected: bool,
    /// What it says when it refuses this node.
    pub refused: Option<String>,
    /// Why it was last lost or not reached.
    pub error: Option<String>,
}

/// Which sockets an endpoint opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// All interfaces, IPv4 and, where there is any, IPv6. Port 0: any free one.
    Any {
        /// The UDP port.
        port: u16,
    },
    /// All interfaces; this UDP port if it is free, else any: for a port that worked last time.
    Prefer {
        /// The UDP port.
        port: u16,
    },
    /// This address alone, such as `127.0.0.1:0` in tests.
    Addr(SocketAddr),
    /// No socket: only through relays. For tests.
    RelayOnly,
}

/// Parameters of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The sockets (all interfaces, any port).
    pub bind: Bind,
    /// The relays (disabled).
    pub relays: Relays,
    /// Whether to ask the router for an open port by UPnP, PCP or NAT-PMP (no). Sends multicast. Takes the feature
    /// `portmapper`; without it the endpoint opens, warns, and asks nobody.
    pub portmapper: bool,
    /// Announced as given, such as a forwarded port (none).
    pub external_addrs: Vec<SocketAddr>,
    /// Root certificates, DER, trusted for `https` relays in place of the usual ones (none).
    pub relay_roots: Vec<Vec<u8>>,
    /// Nodes whose relays are believed by their own key (none but this node).
    pub relay_trust: RelayTrust,
    /// Handshakes at once (64); beyond half of it dialers must first prove their address.
    pub handshakes_max: usize,
    /// Of these, from one remote IP address (16).
    pub handshakes_per_address_max: usize,
    /// A handshake's deadline (5 s).
    pub handshake_timeout: Duration,
    /// Silence after which a path is given up for another one (1.5 s).
    pub path_idle: Duration,
    /// How often a silent path is asked for a sign of life (700 ms): twice before it is given up, and never on a path that
    /// gossip pings.
    pub path_keep_alive: Duration,
    /// Silence on every path after which the connection is lost (5 s): how soon a killed peer is noticed.
    pub idle: Duration,
    /// Streams that a member may have open towards us at once (1024).
    pub streams_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bind: Bind::Any { port: 0 },
            relays: Relays::Disabled,
            portmapper: false,
            external_addrs: Vec::new(),
            relay_roots: Vec::new(),
            relay_trust: RelayTrust::default(),
            handshakes_max: 64,
            handshakes_per_address_max: 16,
            handshake_timeout: Duration::from_secs(5),
            path_idle: Duration::from_millis(1500),
            path_keep_alive: Duration::from_millis(700),
            idle: Duration::from_secs(5),
            streams_max: 1024,
        }
    }
}

impl Config {
    /// Loopback alone, relays disabled: for tests and examples.
    pub fn loopback() -> Self {
        Self { bind: Bind::Addr(SocketAddr::from(([127, 0, 0, 1], 0))), ..Self::default() }
    }
}

/// Why an endpoint does not start. Nothing is left open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another program has the port. Choose another, or port 0.
    #[error("UDP port {port} is taken")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// Not the URL of a relay.
    #[error("{url:?} is not a relay's URL")]
    RelayUrl {
        /// What was given.
        url: String,
    },
    /// Anything else that the system or iroh says.
    #[error("cannot start the internet transport: {0}")]
    Endpoint(String),
}
