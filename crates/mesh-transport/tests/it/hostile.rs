//! Peers that do not play by the rules.

use std::{sync::Arc, time::Duration};

use mesh_identity::{NodeAddr, NodeKey, NodeName, Permissions, Revoked, ScopeId, UnixTime};
use mesh_transport::{
    CloseCode, ClosedWhy, Config, Connection, DialError, DialVia, Driver, Peer, Protocol, Refusal,
    StreamFault, handler_fn,
    memory::Network,
    testing::{Mesh, Site, until},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::sites::{LanLoopback, Loopback};

/// Every driver that has sockets.
fn sites() -> [Arc<dyn Site>; 3] {
    [Arc::new(Loopback), Arc::new(LanLoopback::Tcp), Arc::new(LanLoopback::Quic)]
}

/// A member's node on loopback, and a raw connection to it from somebody who has passed nothing but the handshake.
async fn victim_and_stranger(site: Arc<dyn Site>) -> (Mesh, Arc<dyn Driver>, Arc<dyn Connection>) {
    let mesh = Mesh::start(site.clone(), 1, Config::default()).await;
    let stranger = site.driver(&NodeKey::from_seed([9; 32])).await;
    let addr = mesh[0].transport.local_addr(&mesh.scope());
    let conn = stranger.dial(&mesh.scope(), mesh[0].id(), &addr, DialVia::default()).await.unwrap();
    (mesh, stranger, conn)
}

fn closed_by_peer(why: &ClosedWhy) -> Option<CloseCode> {
    match why {
        ClosedWhy::Peer { code, .. } => Some(*code),
        _ => None,
    }
}

async fn closes_after(bytes: &[u8], end: bool) {
    for site in sites() {
        let (mesh, stranger, conn) = victim_and_stranger(site).await;
        let mut stream = conn.open().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        if end {
            stream.shutdown().await.unwrap();
        }
        assert_eq!(closed_by_peer(&conn.closed().await), Some(CloseCode::Malformed));
        assert_eq!(mesh[0].transport.metrics().hellos_faulty, 1);
        stranger.shutdown().await;
        mesh.shutdown().await;
    }
}

#[tokio::test]
async fn a_prefix_of_four_gigabytes_ends_the_connection() {
    closes_after(&[0xff; 4], false).await;
}

#[tokio::test]
async fn a_hello_that_is_too_long_ends_the_connection() {
    closes_after(&[0, 0, 0x40, 1], false).await;
}

#[tokio::test]
async fn half_a_frame_ends_the_connection() {
    closes_after(&[0, 0, 0, 100, b'q', b'm', b't'], true).await;
}

#[tokio::test]
async fn bytes_that_are_no_hello_end_the_connection() {
    closes_after(b"\0\0\0\x10GET / HTTP/1.1\r\n", false).await;
}

#[tokio::test]
async fn before_hello_there_is_room_for_one_stream_and_it_is_served_by_nobody() {
    for site in sites() {
        let (mesh, stranger, conn) = victim_and_stranger(site).await;
        mesh[0]
            .transport
            .serve(Protocol::new("echo/1"), handler_fn(|_: Peer, _| async { panic!("served a stranger") }));
        // Not held back by its own side.
        conn.admitted();
        let mut first = conn.open().await.unwrap();
        first.write_all(b"\x06echo/1").await.unwrap();
        let second = async {
            let mut second = conn.open().await.ok()?;
            second.write_all(b"\x06echo/1").await.ok()?;
            second.read_u8().await.ok()
        };
        let answered = tokio::time::timeout(Duration::from_millis(300), second).await;
        assert!(!matches!(answered, Ok(Some(_))), "a second stream was served");
        conn.close(CloseCode::Done, "enough");
        until("the connection is done with", || async { mesh[0].transport.metrics().hellos_faulty == 1 })
            .await;
        assert_eq!(mesh[0].transport.metrics().streams_served, 0);
        stranger.shutdown().await;
        mesh.shutdown().await;
    }
}

#[tokio::test]
async fn a_stranger_with_many_streams_over_tcp_loses_its_connection() {
    let (mesh, stranger, conn) = victim_and_stranger(Arc::new(LanLoopback::Tcp)).await;
    conn.admitted();
    let opens = async {
        let mut held = Vec::new();
        for _ in 0..100 {
            held.push(conn.open().await);
        }
        assert!(held.iter().filter(|opened| opened.is_ok()).count() < 100, "a hundred streams were let in");
    };
    tokio::time::timeout(Duration::from_secs(10), opens).await.expect("what is too much ends");
    conn.closed().await;
    assert_eq!(mesh[0].transport.metrics().streams_served, 0);
    stranger.shutdown().await;
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn thousands_of_silent_connections_are_capped_and_members_get_in_afterwards() {
    let network = Network::new(3);
    let mesh = Mesh::on(network.clone(), 2).await;
    let victim = mesh[0].id();
    let mut silent = Vec::new();
    let mut drivers = Vec::new();
    for number in 0..2000u32 {
        let mut seed = [0xaa; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        let driver = network.driver(&NodeKey::from_seed(seed));
        // The backlog is bounded too; let the victim's accept loop run now and then.
        if let Ok(conn) = driver.dial(&mesh.scope(), victim, &NodeAddr::default(), DialVia::default()).await {
            silent.push(conn);
        }
        drivers.push(driver);
        tokio::task::yield_now().await;
    }
    until("what is too many has been refused", || async {
        mesh[0].transport.metrics().connections_refused >= silent.len() as u64 - 64
    })
    .await;
    for conn in &silent {
        let code = closed_by_peer(&conn.closed().await).unwrap();
        assert!(matches!(code, CloseCode::Busy | CloseCode::HelloTimeout), "{code}");
    }
    let metrics = mesh[0].transport.metrics();
    assert_eq!(metrics.hellos_silent + metrics.connections_refused, silent.len() as u64);
    assert!(metrics.hellos_silent <= 64);
    mesh[1].transport.link(&mesh.scope(), &victim).await.unwrap();
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn connections_beyond_the_cap_are_told_to_come_later() {
    let mesh =
        Mesh::start(Arc::new(Network::new(1)), 4, Config { connections_max: Some(2), ..Config::default() })
            .await;
    let to = mesh[0].id();
    mesh[1].transport.link(&mesh.scope(), &to).await.unwrap();
    mesh[2].transport.link(&mesh.scope(), &to).await.unwrap();
    let refused = mesh[3].transport.link(&mesh.scope(), &to).await.unwrap_err();
    assert!(matches!(&refused, DialError::Refused { refusal: Refusal::Busy, .. }), "{refused:?}");
    assert!(refused.is_transient());
    let own = mesh[0].transport.link(&mesh.scope(), &mesh[3].id()).await.unwrap_err();
    assert!(matches!(own, DialError::Limit(2)), "{own:?}");
    mesh[1].transport.shutdown().await;
    until("there is room again", || async { mesh[3].transport.link(&mesh.scope(), &to).await.is_ok() }).await;
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn former_members_are_told_what_ended_their_membership() {
    let mesh = Mesh::memory(3).await;
    let (scope, to) = (mesh.scope(), mesh[0].id());
    let refusal = |error| match error {
        DialError::Refused { refusal, .. } => refusal,
        other => panic!("{other:?}"),
    };
    let long_ago = UnixTime(UnixTime::now().0 - 365 * 86_400);
    let name = NodeName::new("node-1").unwrap();
    let old = mesh.authority().sign_grant(mesh[1].id(), name, Permissions::MEMBER, None, long_ago).unwrap();
    mesh[1].admission.join(old);
    assert_eq!(refusal(mesh[1].transport.link(&scope, &to).await.unwrap_err()), Refusal::GrantExpired);
    let revocation = mesh.authority().revoke(Revoked::Node(mesh[2].id()), UnixTime::now()).unwrap();
    mesh[0].admission.revoke(&scope, &revocation);
    assert_eq!(refusal(mesh[2].transport.link(&scope, &to).await.unwrap_err()), Refusal::GrantRevoked);
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_costs_its_stream_and_nothing_else() {
    let mesh = Mesh::memory(2).await;
    let bad = Protocol::new("bad/1");
    mesh[1].transport.serve(bad, handler_fn(|_: Peer, _| async { panic!("on purpose") }));
    let mut stream = mesh[0].transport.open(&mesh.scope(), &mesh[1].id(), bad).await.unwrap();
    let error = stream.read_u8().await.unwrap_err();
    assert!(matches!(StreamFault::of(&error), Some(StreamFault::Reset(_))));
    until("it was counted", || async { mesh[1].transport.metrics().handler_panics == 1 }).await;
    assert_eq!(mesh[1].transport.links().len(), 1);
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_dials_neither_itself_nor_without_a_grant() {
    let mesh = Mesh::memory(2).await;
    let oneself = mesh[0].transport.link(&mesh.scope(), &mesh[0].id()).await.unwrap_err();
    assert!(matches!(oneself, DialError::Oneself));
    let elsewhere = mesh[0].transport.link(&ScopeId::lan(None), &mesh[1].id()).await.unwrap_err();
    assert!(matches!(elsewhere, DialError::NoCredential(_)));
    mesh.shutdown().await;
}
