//! Networks and peers that lie: they cost bounded memory, and nobody else is lost by it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::StreamExt;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, identify, identity,
    kad::{self, store::MemoryStore},
    noise, relay,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use mesh_identity::{DIRECT_ADDRS_MAX, NodeAddr, NodeId, NodeKey, Permissions};
use mesh_transport::{
    Config as TransportConfig, DialVia, Driver, Transport,
    lan::{Config, Discovery, Lan},
    testing::{Mesh, TestAdmission, TestNode, until},
};
use tokio::{net::UdpSocket, task::AbortHandle};

use crate::{
    network::{is_in_a_network_of_its_own, runs_in_a_network_of_its_own},
    sites::LanLoopback,
};

/// What a driver keeps of nodes that it has heard of, and no more.
const FOUND_MAX: usize = 1024;
/// Nodes that nobody ever ran.
const INVENTED: u32 = 3000;

fn invented(number: u32) -> NodeId {
    let mut seed = [9; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    NodeKey::from_seed(seed).node_id()
}

fn peer_id(node: NodeId) -> PeerId {
    node.to_string().parse().unwrap()
}

/// A member of the mesh with a LAN driver of its own.
async fn member(mesh: &Mesh, seed: u8, config: Config) -> (Arc<Lan>, TestNode) {
    let key = NodeKey::from_seed([seed; 32]);
    let driver = Lan::bind(&key, config).await.unwrap();
    let admission = Arc::new(TestAdmission::default());
    admission.join(mesh.grant(key.node_id(), &format!("n{seed}"), Permissions::MEMBER));
    let drivers: Vec<Arc<dyn Driver>> = vec![driver.clone()];
    let transport = Transport::start(key.clone(), drivers, admission.clone(), TransportConfig::default());
    (driver, TestNode { key, admission, transport })
}

fn found_by(node: &TestNode) -> Vec<(NodeId, NodeAddr)> {
    node.transport.book().found().borrow().iter().map(|(node, addr)| (*node, addr.clone())).collect()
}

async fn reaches(node: &TestNode, mesh: &Mesh, other: &TestNode) {
    until("a real peer is found and linked", || async {
        found_by(node).iter().any(|(found, _)| *found == other.id())
            && node.transport.link(&mesh.scope(), &other.id()).await.is_ok()
    })
    .await;
}

/// An announcement of one node at these addresses, as libp2p writes it.
fn announcement(node: NodeId, addrs: &[Multiaddr], name: u32) -> Vec<u8> {
    let label = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let service = [label("_p2p"), label("_udp"), label("local"), vec![0]].concat();
    let own = [label(&format!("n{name}")), vec![0]].concat();
    let record = |name: &[u8], kind: u16, data: &[u8]| {
        let length = u16::try_from(data.len()).unwrap();
        let ttl = 3600u32.to_be_bytes();
        [name, &kind.to_be_bytes(), &1u16.to_be_bytes(), &ttl, &length.to_be_bytes(), data].concat()
    };
    let mut packet = [0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0].to_vec();
    packet.extend(u16::try_from(addrs.len()).unwrap().to_be_bytes());
    packet.extend(record(&service, 12, &own));
    for addr in addrs {
        packet.extend(record(&own, 16, &label(&format!("dnsaddr={addr}/p2p/{node}"))));
    }
    packet
}

/// What no DNS speaker would send.
fn garbage(round: u32) -> Vec<u8> {
    let real = announcement(invented(0), &["/ip4/10.77.0.1/tcp/9".parse().unwrap()], 0);
    match round % 6 {
        0 => Vec::new(),
        1 => real[..real.len() / 2].to_vec(),
        // A name that leads to itself.
        2 => b"\0\0\x84\0\0\0\xff\xff\0\0\0\0\xc0\x0c".to_vec(),
        // A record longer than the packet, and one as long as a packet may be.
        3 => [&real[..real.len() - 90], &[0xff; 2]].concat(),
        4 => vec![0xff; 8000],
        _ => (0..1400u32).map(|at| u8::try_from((at * 31 + round * 17) % 251).unwrap()).collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invented_announcements_and_garbage_hide_nobody() {
    if !is_in_a_network_of_its_own() {
        runs_in_a_network_of_its_own("lan_hostile::invented_announcements_and_garbage_hide_nobody").await;
        return;
    }
    let mesh = Mesh::start(Arc::new(LanLoopback::Tcp), 1, TransportConfig::default()).await;
    let config = Config { discovery: Discovery::Mdns, ..Config::default() };
    let (_, node) = member(&mesh, 1, config.clone()).await;
    let speaker = UdpSocket::bind("10.77.0.1:0").await.unwrap();
    let flood = tokio::spawn(async move {
        for round in 0.. {
            let number = round % INVENTED;
            // Where nobody is, and more addresses than anybody needs.
            let addrs: Vec<Multiaddr> = (0..12)
                .map(|at| format!("/ip4/10.77.0.1/tcp/{}", 20_000 + (number + at) % 20_000).parse().unwrap())
                .collect();
            for packet in [announcement(invented(number), &addrs, number), garbage(round)] {
                // A full buffer is a packet less.
                drop(speaker.send_to(&packet, "224.0.0.251:5353").await);
            }
            if round % 16 == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    });
    until("the flood is heard", || async { found_by(&node).len() > FOUND_MAX / 2 }).await;
    let (_, other) = member(&mesh, 2, config).await;
    reaches(&node, &mesh, &other).await;
    reaches(&other, &mesh, &node).await;
    let found = found_by(&node);
    assert!(found.len() <= FOUND_MAX, "{} nodes are kept", found.len());
    assert!(found.iter().all(|(_, addr)| addr.lan.len() <= DIRECT_ADDRS_MAX));
    flood.abort();
    for node in [node, other] {
        node.transport.shutdown().await;
    }
    mesh.shutdown().await;
}

/// A node of libp2p's own, that says what it likes.
#[derive(NetworkBehaviour)]
struct Liar {
    identify: identify::Behaviour,
    kad: kad::Behaviour<MemoryStore>,
    relay: relay::client::Behaviour,
}

fn liar() -> Swarm<Liar> {
    let keys = identity::Keypair::ed25519_from_bytes([0xbb; 32]).unwrap();
    SwarmBuilder::with_existing_identity(keys)
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|keys, relay| {
            let me = keys.public().to_peer_id();
            let config = kad::Config::new(StreamProtocol::new("/qmt/kad/1"));
            let mut kad = kad::Behaviour::with_config(me, MemoryStore::new(me), config);
            kad.set_mode(Some(kad::Mode::Server));
            let identify = identify::Behaviour::new(identify::Config::new("/qmt/1".into(), keys.public()));
            Liar { identify, kad, relay }
        })
        .unwrap()
        .build()
}

/// Where it listens; it runs until it is aborted.
async fn run(mut liar: Swarm<Liar>, at: &str) -> (Multiaddr, AbortHandle) {
    liar.listen_on(at.parse().unwrap()).unwrap();
    let addr = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = liar.select_next_some().await {
            break address;
        }
    };
    let running = tokio::spawn(async move {
        loop {
            liar.select_next_some().await;
        }
    });
    (addr, running.abort_handle())
}

fn tcp_at(addr: SocketAddr) -> Multiaddr {
    format!("/ip4/{}/tcp/{}", addr.ip(), addr.port()).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_names_invented_nodes_and_wrong_addresses_hides_nobody() {
    if !is_in_a_network_of_its_own() {
        let test = "lan_hostile::a_node_that_names_invented_nodes_and_wrong_addresses_hides_nobody";
        runs_in_a_network_of_its_own(test).await;
        return;
    }
    let mesh = Mesh::start(Arc::new(LanLoopback::Tcp), 1, TransportConfig::default()).await;
    let beginning_at = |bootstrap: Vec<Multiaddr>| Config {
        discovery: Discovery::Kademlia { bootstrap },
        ..Config::default()
    };
    let (honest, honest_node) = member(&mesh, 1, beginning_at(Vec::new())).await;
    let honest_at = honest.listening()[0];
    let (_, other) = member(&mesh, 2, beginning_at(vec![tcp_at(honest_at)])).await;
    reaches(&other, &mesh, &honest_node).await;
    let mut liar = liar();
    for number in 0..INVENTED {
        for port in 0..20 {
            let lie = format!("/ip4/10.77.0.{}/tcp/{}", 1 + number % 250, 30_000 + port).parse().unwrap();
            liar.behaviour_mut().kad.add_address(&peer_id(invented(number)), lie);
        }
    }
    // It says that it is where the honest node is, and in places where no other machine can be.
    for lie in [tcp_at(honest_at), "/ip4/127.0.0.1/tcp/9".parse().unwrap()] {
        liar.add_external_address(lie);
    }
    for port in 1..60 {
        liar.add_external_address(format!("/ip4/10.77.0.1/tcp/{port}").parse().unwrap());
    }
    let liar_id = *liar.local_peer_id();
    let (liar_at, running) = run(liar, "/ip4/10.77.0.1/tcp/0").await;
    let (victim, node) = member(&mesh, 3, beginning_at(vec![liar_at, tcp_at(honest_at)])).await;
    until("the liar is met", || async {
        found_by(&node).iter().any(|(found, _)| peer_id(*found) == liar_id)
    })
    .await;
    reaches(&node, &mesh, &honest_node).await;
    reaches(&node, &mesh, &other).await;
    let found = found_by(&node);
    assert!(found.len() <= FOUND_MAX, "{} nodes are kept", found.len());
    for (_, addr) in &found {
        assert!(addr.lan.len() <= DIRECT_ADDRS_MAX, "{addr:?}");
        assert!(addr.lan.iter().all(|addr| !addr.ip().is_loopback()), "{addr:?}");
    }
    // Where the liar says that it is, the honest node answers: the link is refused, and that node's own is not touched.
    let claimed = NodeAddr { lan: vec![honest_at], ..NodeAddr::default() };
    let liar_node = found.iter().map(|(node, _)| *node).find(|node| peer_id(*node) == liar_id).unwrap();
    let error = victim.dial(&mesh.scope(), liar_node, &claimed, DialVia::default()).await.err().unwrap();
    assert!(matches!(error, mesh_transport::DialError::WrongIdentity(_)), "{error:?}");
    assert!(node.transport.linked(&mesh.scope(), &honest_node.id()).is_some());
    running.abort();
    for node in [node, other, honest_node] {
        node.transport.shutdown().await;
    }
    mesh.shutdown().await;
}

#[tokio::test]
async fn a_stranger_gets_no_reservation() {
    let serving = Config { serve_circuits: true, ..Config::loopback() };
    let node = Lan::bind(&NodeKey::from_seed([1; 32]), serving).await.unwrap();
    let at = tcp_at(node.listening()[0]);
    let mut stranger = liar();
    let circuit = format!("{at}/p2p/{}/p2p-circuit", NodeKey::from_seed([1; 32]).node_id());
    let listener = stranger.listen_on(circuit.parse().unwrap()).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            match stranger.select_next_some().await {
                SwarmEvent::ListenerClosed { listener_id, reason, .. } if listener_id == listener => {
                    break reason;
                }
                SwarmEvent::NewListenAddr { address, .. } => panic!("it is reached at {address}"),
                _ => {}
            }
        }
    });
    let refused = ended.await.expect("it is told").unwrap_err();
    assert!(format!("{refused:?}").contains("ResourceLimitExceeded"), "{refused:?}");
    node.shutdown().await;
}
