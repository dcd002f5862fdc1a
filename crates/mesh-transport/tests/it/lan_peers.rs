//! How nodes of the local network find each other: by address from the configuration, and by multicast.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use mesh_identity::{NodeId, NodeKey, Permissions, ScopeId};
use mesh_transport::{
    Config as TransportConfig, DialVia, Driver, Found, Transport,
    lan::{BindError, Config, Discovery, Lan},
    testing::{Mesh, TestAdmission, until},
};
use tokio::net::UdpSocket;

use crate::{
    network::{is_in_a_network_of_its_own, runs_in_a_network_of_its_own},
    sites::LanLoopback,
};

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed([seed; 32])
}

fn scope() -> ScopeId {
    ScopeId::lan(None)
}

/// On loopback, with one peer named.
fn with_peer(addr: &str) -> Config {
    Config { peers: vec![addr.parse().unwrap()], ..Config::loopback() }
}

async fn next_found(node: &Lan) -> Found {
    tokio::time::timeout(Duration::from_secs(20), node.found())
        .await
        .expect("finds in time")
        .expect("goes on")
}

#[tokio::test]
async fn a_peer_known_by_address_is_tried_until_it_is_there_and_shows_its_id() {
    let before = Lan::bind(&key(2), Config::loopback()).await.unwrap();
    let at = before.listening()[0];
    before.shutdown().await;
    let named = with_peer(&format!("/ip4/127.0.0.1/tcp/{}", at.port()));
    let impatient = Config { handshake_timeout: Duration::from_millis(300), ..named };
    let node = Lan::bind(&key(1), impatient).await.unwrap();
    // It has been refused at least once by then, as its first try starts with it.
    node.dial(&scope(), key(2).node_id(), &at_addr(at), DialVia::default())
        .await
        .err()
        .expect("nobody is there");
    let listen = ["tcp/", "udp/"].map(|part| format!("/ip4/127.0.0.1/{part}{}", at.port()));
    let listen = vec![listen[0].parse().unwrap(), format!("{}/quic-v1", listen[1]).parse().unwrap()];
    let peer = Lan::bind(&key(3), Config { listen, ..Config::loopback() }).await.unwrap();
    let found = next_found(&node).await;
    assert_eq!((found.node, found.addr), (key(3).node_id(), at_addr(at)));
    node.shutdown().await;
    peer.shutdown().await;
}

fn at_addr(at: std::net::SocketAddr) -> mesh_identity::NodeAddr {
    mesh_identity::NodeAddr { lan: vec![at], ..Default::default() }
}

#[tokio::test]
async fn a_peer_whose_id_is_known_is_told_without_asking() {
    let id = key(2).node_id();
    let node = Lan::bind(&key(1), with_peer(&format!("/ip4/192.0.2.1/tcp/9/p2p/{id}"))).await.unwrap();
    let found = next_found(&node).await;
    assert_eq!((found.node, found.addr), (id, at_addr("192.0.2.1:9".parse().unwrap())));
    node.shutdown().await;
    assert!(node.found().await.is_none());
}

#[tokio::test]
async fn an_address_that_is_no_peers_is_named() {
    let error = Lan::bind(&key(1), with_peer("/ip4/192.0.2.1/udp/9")).await.err().unwrap();
    assert!(
        matches!(&error, BindError::Peer { addr } if addr.to_string() == "/ip4/192.0.2.1/udp/9"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_node_ends_though_its_peer_was_never_there() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let peer = format!("/ip4/127.0.0.1/tcp/{}", nobody.port());
    let node = Lan::bind(&key(1), with_peer(&peer)).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), node.shutdown()).await.expect("ends in time");
}

#[tokio::test]
async fn what_a_driver_finds_is_dialed_in_every_scope_without_any_other_address() {
    let mesh = Mesh::start(Arc::new(LanLoopback::Tcp), 1, TransportConfig::default()).await;
    let at = mesh[0].transport.local_addr(&mesh.scope()).lan[0];
    let peer = format!("/ip4/127.0.0.1/tcp/{}", at.port());
    let driver = Lan::bind(&key(7), with_peer(&peer)).await.unwrap();
    let admission = Arc::new(TestAdmission::default());
    admission.join(mesh.grant(key(7).node_id(), "seven", Permissions::MEMBER));
    let node = Transport::start(key(7), vec![driver], admission, TransportConfig::default());
    until("the peer is found", || async { node.book().found().borrow().contains_key(&mesh[0].id()) }).await;
    assert!(node.book().get(&mesh.scope(), &mesh[0].id()).is_none());
    let link = node.link(&mesh.scope(), &mesh[0].id()).await.unwrap();
    assert_eq!(link.peer().id, mesh[0].id());
    // Learning the id was no hello: nothing but the link was judged.
    until("the link is counted", || async { mesh[0].transport.metrics().hellos_welcomed == 1 }).await;
    assert_eq!(mesh[0].transport.metrics().hellos_silent, 0);
    node.shutdown().await;
    mesh.shutdown().await;
}

async fn finds(node: &Lan, others: &[NodeId]) -> Vec<Found> {
    let (mut missing, mut all) = (others.iter().copied().collect::<BTreeSet<_>>(), Vec::new());
    while !missing.is_empty() {
        let found = next_found(node).await;
        missing.remove(&found.node);
        all.push(found);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_one_network_find_each_other_through_noise() {
    if !is_in_a_network_of_its_own() {
        runs_in_a_network_of_its_own("lan_peers::nodes_of_one_network_find_each_other_through_noise").await;
        return;
    }
    let noise = UdpSocket::bind("10.77.0.1:0").await.unwrap();
    let garbage: [&[u8]; 4] = [b"", b"\0", b"\0\0\x84\0\0\0\xff\xff\0\0\0\0\xc0\x0c", &[0xff; 1400]];
    for round in 0..50 {
        noise.send_to(garbage[round % garbage.len()], "224.0.0.251:5353").await.unwrap();
    }
    let config = Config { discovery: Discovery::Mdns, ..Config::default() };
    let first = Lan::bind(&key(1), config.clone()).await.unwrap();
    let second = Lan::bind(&key(2), config.clone()).await.unwrap();
    let ids = [key(1).node_id(), key(2).node_id()];
    for round in 0..50 {
        noise.send_to(garbage[round % garbage.len()], "224.0.0.251:5353").await.unwrap();
    }
    let (by_first, by_second) = tokio::join!(finds(&first, &ids[1..]), finds(&second, &ids[..1]));
    let told = by_second.last().unwrap();
    assert!(told.addr.lan.iter().all(|addr| addr.ip().to_string() == "10.77.0.1"), "{told:?}");
    assert!(by_first.iter().all(|found| found.node == ids[1]), "{by_first:?}");
    let conn = second.dial(&scope(), ids[0], &told.addr, DialVia::default()).await.unwrap();
    assert_eq!(conn.peer(), ids[0]);
    // Whoever is not to be found is not announced either.
    let hidden = Lan::bind(&key(3), Config { discovery: Discovery::None, ..config.clone() }).await.unwrap();
    let third = Lan::bind(&key(4), config).await.unwrap();
    let by_third = finds(&third, &ids).await;
    assert!(by_third.iter().all(|found| found.node != key(3).node_id()), "{by_third:?}");
    for node in [first, second, hidden, third] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_know_one_node_find_each_other_through_it() {
    if !is_in_a_network_of_its_own() {
        runs_in_a_network_of_its_own("lan_peers::nodes_that_know_one_node_find_each_other_through_it").await;
        return;
    }
    let beginning_at = |bootstrap: Vec<String>| {
        let bootstrap = bootstrap.iter().map(|addr| addr.parse().unwrap()).collect();
        Config { discovery: Discovery::Kademlia { bootstrap }, ..Config::default() }
    };
    let first = Lan::bind(&key(1), beginning_at(Vec::new())).await.unwrap();
    let at = first.local_addr(&scope()).lan[0];
    let begin = beginning_at(vec![format!("/ip4/{}/tcp/{}", at.ip(), at.port())]);
    let second = Lan::bind(&key(2), begin.clone()).await.unwrap();
    let third = Lan::bind(&key(3), begin).await.unwrap();
    let ids = [1, 2, 3].map(|seed| key(seed).node_id());
    let for_second = [ids[0], ids[2]];
    let (_, by_second, by_third) =
        tokio::join!(finds(&first, &ids[1..]), finds(&second, &for_second), finds(&third, &ids[..2]));
    let told = by_second.iter().rev().find(|found| found.node == ids[2]).unwrap();
    let conn = second.dial(&scope(), ids[2], &told.addr, DialVia::default()).await.unwrap();
    assert_eq!(conn.peer(), ids[2]);
    assert!(by_third.iter().all(|found| found.addr.lan.iter().all(|addr| !addr.ip().is_loopback())));
    for node in [first, second, third] {
        node.shutdown().await;
    }
}
