//! What is carried, and when it ends.

use std::sync::Arc;

use mesh_identity::{Revoked, UnixTime};
use mesh_transport::CloseCode;
use mesh_transport::testing::until;
use mesh_tunnel::{Config, ListenError, OpenError, RefusalCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{World, ask, copy, echo, reverse};

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    let world = World::new(Config::default()).await;
    let _offered = world.serve(reverse).await;
    let listener = world.listen();
    assert!(world.mesh[0].transport.links().is_empty(), "nothing is dialed before the first connection");
    assert_eq!(ask(listener.addr(), b"abc").await.unwrap(), b"cba");
    until("both ends have closed", || async { world.near.stats().open + world.far.stats().open == 0 }).await;
    assert_eq!((listener.stats().to_peers_bytes, listener.stats().from_peers_bytes), (3, 3));
    assert_eq!((world.far.stats().to_peers_bytes, world.far.stats().broken), (3, 0));
    world.end().await;
}

#[tokio::test]
async fn many_bytes_arrive_whole_over_many_connections_at_once() {
    let world = World::new(Config::default()).await;
    let _offered = world.serve(reverse).await;
    let listener = world.listen();
    let asked = (0..20_u8).map(|number| {
        let at = listener.addr();
        tokio::spawn(async move {
            let question: Vec<u8> = (0..300_000_u32).map(|at| at.to_le_bytes()[0] ^ number).collect();
            let mut answer = ask(at, &question).await.unwrap();
            answer.reverse();
            assert!(answer == question);
        })
    });
    for one in asked.collect::<Vec<_>>() {
        one.await.unwrap();
    }
    assert_eq!(listener.stats().to_peers_bytes, 20 * 300_000);
    world.end().await;
}

#[tokio::test]
async fn a_service_that_resets_is_no_clean_end_for_the_user() {
    let world = World::new(Config::default()).await;
    let _offered = world
        .serve(|mut socket| async move {
            let mut byte = [0];
            socket.read_exact(&mut byte).await.unwrap();
            socket.set_zero_linger().unwrap();
        })
        .await;
    let listener = world.listen();
    let mut socket = TcpStream::connect(listener.addr()).await.unwrap();
    socket.write_all(b"x").await.unwrap();
    assert!(socket.read_to_end(&mut Vec::new()).await.is_err());
    world.end().await;
}

#[tokio::test]
async fn a_peer_that_goes_resets_its_connections_and_closes_its_listener() {
    let world = World::new(Config::default()).await;
    let _offered = world.serve(copy).await;
    let listener = world.listen();
    let mut socket = TcpStream::connect(listener.addr()).await.unwrap();
    socket.write_all(b"x").await.unwrap();
    let mut byte = [0];
    socket.read_exact(&mut byte).await.unwrap();
    let (near, far) = (world.mesh[0].id(), world.mesh[1].id());
    world.mesh[1].transport.disconnect(&world.mesh.scope(), &near, CloseCode::Shutdown);
    assert!(socket.read_to_end(&mut Vec::new()).await.is_err(), "cut off, not ended");
    listener.closed().await;
    assert!(TcpStream::connect(listener.addr()).await.is_err());
    assert!(world.near.listeners().is_empty());
    let again = world.listen();
    assert_ne!(Arc::as_ptr(&again), Arc::as_ptr(&listener), "a peer that is back gets a new one");
    assert_eq!(again.remote().peer, far);
    world.end().await;
}

#[tokio::test]
async fn a_peer_that_is_cut_off_in_mid_stream_resets_the_user() {
    let world = World::new(Config::default()).await;
    let _offered = world.serve(copy).await;
    let listener = world.listen();
    let mut socket = TcpStream::connect(listener.addr()).await.unwrap();
    socket.write_all(b"x").await.unwrap();
    socket.read_exact(&mut [0]).await.unwrap();
    world.network.break_connections(world.mesh[0].id(), world.mesh[1].id());
    assert!(socket.read_to_end(&mut Vec::new()).await.is_err());
    until("the other end notices", || async { world.far.stats().open == 0 }).await;
    world.end().await;
}

#[tokio::test]
async fn one_listener_stands_for_a_service_until_its_last_handle_is_dropped() {
    let world = World::new(Config::default()).await;
    let _offered = world.serve(reverse).await;
    let (listener, same) = (world.listen(), world.listen());
    assert_eq!(listener.addr(), same.addr());
    let at = listener.addr();
    drop(listener);
    assert_eq!(ask(at, b"ab").await.unwrap(), b"ba");
    drop(same);
    until("the port is closed", || async { TcpStream::connect(at).await.is_err() }).await;
    world.end().await;
}

#[tokio::test]
async fn shutdown_resets_what_is_open_and_refuses_what_comes() {
    let world = World::new(Config::default()).await;
    let _offered = world.serve(copy).await;
    let listener = world.listen();
    let mut socket = TcpStream::connect(listener.addr()).await.unwrap();
    socket.write_all(b"x").await.unwrap();
    socket.read_exact(&mut [0]).await.unwrap();
    world.near.shutdown().await;
    assert!(socket.read_to_end(&mut Vec::new()).await.is_err());
    assert!(matches!(world.near.listen(world.remote(echo())), Err(ListenError::Closed)));
    assert!(matches!(world.near.open(&world.remote(echo())).await, Err(OpenError::Closed)));
    world.near.shutdown().await;
    world.end().await;
}

#[tokio::test]
async fn an_offer_ends_when_it_is_dropped() {
    let world = World::new(Config::default()).await;
    let offered = world.serve(reverse).await;
    assert_eq!((offered.name(), world.far.offered()), (&echo(), vec![echo()]));
    let mut stream = world.near.open(&world.remote(echo())).await.unwrap();
    drop(offered);
    let refused = world.near.open(&world.remote(echo())).await.unwrap_err();
    assert!(matches!(refused, OpenError::Refused { code: RefusalCode::UnknownService, .. }), "{refused:?}");
    stream.write_all(b"ab").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"ba", "what is open stays open");
    world.end().await;
}

#[tokio::test]
async fn who_is_revoked_is_cut_off_in_mid_transfer_at_the_entry_and_at_the_exit() {
    for subject_uses in [false, true] {
        let world = World::new(Config::default()).await;
        let _offered = world
            .serve(|mut socket| async move { while socket.write_all(&[7; 8192]).await.is_ok() {} })
            .await;
        let listener = world.listen();
        let mut socket = TcpStream::connect(listener.addr()).await.unwrap();
        let mut first = [0; 8192];
        socket.read_exact(&mut first).await.unwrap();
        // Nobody reads on: every buffer fills, and nothing moves.
        let mut before = 0;
        until("the transfer is held back", || {
            let now = world.far.stats().to_peers_bytes;
            let stands = now > 0 && now == std::mem::replace(&mut before, now);
            async move {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                stands
            }
        })
        .await;
        // The holder is the one that offers, or the one that uses.
        let (subject, holder) = if subject_uses { (0, 1) } else { (1, 0) };
        let subject = world.mesh[subject].id();
        let revocation = world.mesh.authority().revoke(Revoked::Node(subject), UnixTime::now()).unwrap();
        world.mesh[holder].admission.revoke(&world.mesh.scope(), &revocation);
        world.mesh[holder].transport.recheck(&world.mesh.scope());
        let at_holder = || if subject_uses { world.far.stats() } else { world.near.stats() };
        until("the holder has closed its end", || async { at_holder().open == 0 }).await;
        assert_eq!(at_holder().broken, 1, "by a reset, and not as if it were whole");
        assert!(tokio::io::copy(&mut socket, &mut tokio::io::sink()).await.is_err());
        world.end().await;
    }
}
