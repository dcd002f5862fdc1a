//! Circuits: connections through a node that both ends reach, and the holes that are punched over them.
//!
//! A node that serves circuits is found by what it says of itself (identify) on a connection that has passed hello.
//! `docs/protocols/lan.md` says who may use one, and for how long.

mod client;
mod observed;
mod relays;

use std::{num::NonZeroU32, time::Duration};

use libp2p::{
    PeerId, autonat, dcutr, identify,
    identity::PublicKey,
    relay,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};

pub(super) use self::relays::{Relays, Step};
use self::{client::Client, observed::Identify};
use super::{Config, Discovery, gate::Gates};

/// Reservations that others may have here, all together.
const RESERVATIONS_MAX: usize = 512;
/// Of these, of one node. libp2p counts one more.
const RESERVATIONS_PER_PEER_MAX: usize = 1;
/// Circuits through this node at once; each costs two buffers of 8 KiB.
const CIRCUITS_MAX: usize = 512;
/// Of these, from one node.
const CIRCUITS_PER_PEER_MAX: usize = 64;
/// Circuits that one node may ask for in a row; after that one each second.
const CIRCUITS_BURST: NonZeroU32 = NonZeroU32::new(128).expect("not zero");
const CIRCUITS_EVERY: Duration = Duration::from_secs(1);
/// A reservation holds as long as its connection, and a circuit as long as both of its: neither is cut for its age. libp2p
/// wants numbers; this is a year. It also keeps its timer for old reservations from ever running: a node that delays the
/// answer to its renewal beyond that moment would end this process.
const AS_LONG_AS_IT_LASTS: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What makes and takes circuits, and what both need to know of this node's addresses.
#[derive(NetworkBehaviour)]
pub(super) struct Circuits {
    pub(super) identify: Identify,
    pub(super) client: Client,
    server: Toggle<relay::Behaviour>,
    punch: dcutr::Behaviour,
    reach: autonat::v2::client::Behaviour,
    reach_server: Toggle<autonat::v2::server::Behaviour>,
}

impl Circuits {
    /// Also the transport that dials and accepts over circuits.
    pub(super) fn new(key: PublicKey, config: &Config, gates: &Gates) -> (relay::client::Transport, Self) {
        let me = key.to_peer_id();
        let (transport, client) = relay::client::new(me);
        let is_shy = !matches!(config.discovery, Discovery::Kademlia { .. });
        let identity = identify::Config::new("/qmt/1".into(), key)
            .with_agent_version("qmt".into())
            .with_hide_listen_addrs(is_shy)
            .with_cache_size(0);
        let server = config.serve_circuits.then(|| server(me, gates.clone()));
        let reach_server = config.serve_circuits.then(autonat::v2::server::Behaviour::default);
        let circuits = Self {
            identify: Identify::new(identify::Behaviour::new(identity)),
            client: Client::new(client),
            server: server.into(),
            punch: dcutr::Behaviour::new(me),
            reach: autonat::v2::client::Behaviour::default(),
            reach_server: reach_server.into(),
        };
        (transport, circuits)
    }
}

/// Serves whoever has passed hello and is still linked here: nobody else learns more than that circuits are served.
fn server(me: PeerId, gates: Gates) -> relay::Behaviour {
    let for_circuits = gates.clone();
    let config = relay::Config {
        max_reservations: RESERVATIONS_MAX,
        max_reservations_per_peer: RESERVATIONS_PER_PEER_MAX,
        reservation_duration: AS_LONG_AS_IT_LASTS,
        reservation_rate_limiters: vec![Box::new(move |peer, _: &_, _| gates.is_linked(&peer))],
        max_circuits: CIRCUITS_MAX,
        max_circuits_per_peer: CIRCUITS_PER_PEER_MAX,
        max_circuit_duration: AS_LONG_AS_IT_LASTS,
        // Zero: any number.
        max_circuit_bytes: 0,
        circuit_src_rate_limiters: vec![Box::new(move |peer, _: &_, _| for_circuits.is_linked(&peer))],
    };
    let mut server = relay::Behaviour::new(me, config.circuit_src_per_peer(CIRCUITS_BURST, CIRCUITS_EVERY));
    server.set_status(Some(relay::Status::Enable));
    server
}
