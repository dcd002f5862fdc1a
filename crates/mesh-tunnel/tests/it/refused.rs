//! Who is refused, with what words, and what hostile bytes do.

use std::num::NonZeroUsize;
use std::time::Duration;

use mesh_transport::testing::until;
use mesh_transport::{Member, Stream, handler_fn};
use mesh_tunnel::{Config, OfferError, OpenError, PROTOCOL, RefusalCode, ServiceName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{World, ask, copy, echo, reverse};

fn code(error: &OpenError) -> Option<RefusalCode> {
    match error {
        OpenError::Refused { code, .. } => Some(*code),
        _ => None,
    }
}

#[tokio::test]
async fn a_client_is_refused_and_does_not_learn_what_is_offered() {
    let world = World::with_client().await;
    let _offered = world.serve(reverse).await;
    for service in ["echo", "nothing"] {
        let remote = world.remote(ServiceName::new(service).unwrap());
        let refused = world.near.open(&remote).await.unwrap_err();
        assert_eq!(code(&refused), Some(RefusalCode::NotAllowed), "{refused:?}");
        assert_eq!(refused.to_string(), "refused by the peer: only members open tunnels");
    }
    assert_eq!(world.far.stats().opened, 0);
    world.end().await;
}

#[tokio::test]
async fn an_unknown_service_resets_the_local_connection_and_says_why_to_the_listener() {
    let world = World::new(Config::default()).await;
    let listener = world.listen();
    assert!(ask(listener.addr(), b"x").await.is_err());
    let why = listener.last_error().expect("an error");
    assert_eq!(code(&why), Some(RefusalCode::UnknownService));
    assert_eq!((listener.stats().refused, listener.is_closed()), (1, false));
    world.end().await;
}

#[tokio::test]
async fn a_service_that_is_gone_is_unreachable() {
    let world = World::new(Config::default()).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let _offered = world.far.offer(echo(), gone).unwrap();
    let refused = world.near.open(&world.remote(echo())).await.unwrap_err();
    assert_eq!(code(&refused), Some(RefusalCode::Unreachable));
    world.end().await;
}

#[tokio::test]
async fn only_loopback_is_offered_and_a_name_once() {
    let world = World::new(Config::default()).await;
    let outside = "192.0.2.1:80".parse().unwrap();
    assert_eq!(world.far.offer(echo(), outside).unwrap_err(), OfferError::NotLoopback(outside));
    let _offered = world.serve(copy).await;
    let taken = world.far.offer(echo(), "127.0.0.1:1".parse().unwrap()).unwrap_err();
    assert_eq!(taken, OfferError::Taken);
    world.end().await;
}

#[tokio::test]
async fn a_full_exit_says_how_many_it_carries_and_takes_more_when_one_ends() {
    let cap = NonZeroUsize::new(2).unwrap().get();
    let world = World::new(Config { connections_max: cap, ..Config::default() }).await;
    let _offered = world.serve(copy).await;
    let mut held = Vec::new();
    for _ in 0..cap {
        held.push(world.near.open(&world.remote(echo())).await.unwrap());
    }
    let refused = world.near.open(&world.remote(echo())).await.unwrap_err();
    assert_eq!(code(&refused), Some(RefusalCode::Full));
    assert!(refused.to_string().ends_with("this node carries 2 tunnel connections already"), "{refused}");
    held.pop();
    until("there is room again", || async { world.near.open(&world.remote(echo())).await.is_ok() }).await;
    drop(held);
    world.end().await;
}

#[tokio::test]
async fn a_full_entry_resets_and_says_why() {
    let world = World::new(Config { connections_max: 1, ..Config::default() }).await;
    let _offered = world.serve(copy).await;
    let listener = world.listen();
    let mut first = TcpStream::connect(listener.addr()).await.unwrap();
    first.write_all(b"x").await.unwrap();
    first.read_exact(&mut [0]).await.unwrap();
    assert!(ask(listener.addr(), b"x").await.is_err());
    assert!(matches!(*listener.last_error().unwrap(), OpenError::Full(1)));
    assert_eq!(Config::default().connections_max, 1000);
    world.end().await;
}

#[tokio::test]
async fn hostile_questions_are_refused_and_harm_nobody() {
    let world = World::new(Config::default()).await;
    let _offered = world.serve(reverse).await;
    let upper = b"\x00\x00\x00\x05\x04ECHO".as_slice();
    let questions = [
        b"\xff\xff\xff\xff".as_slice(),
        b"\x00\x00\x00\x05\xff\xff\xff\xff\xff",
        b"\x00\x00\x00\x06\x04echoX",
        b"\x00\x00\x00\x05\x04ec",
        b"\x00\x00\x00\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
        upper,
    ];
    let remote = world.remote(echo());
    for question in questions {
        let mut stream = world.mesh[0].transport.open(&remote.scope, &remote.peer, PROTOCOL).await.unwrap();
        let _ = stream.write_all(question).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert_eq!(answer.get(4), Some(&1), "refused: {question:?}");
    }
    assert_eq!((world.far.stats().opened, world.far.stats().refused), (0, 8));
    assert_eq!(ask(world.listen().addr(), b"ab").await.unwrap(), b"ba", "others are served as before");
    world.end().await;
}

#[tokio::test]
async fn a_silent_opener_is_cut_off_at_the_deadline() {
    let config = Config { handshake_timeout: Duration::from_millis(20), ..Config::default() };
    let world = World::new(config).await;
    let remote = world.remote(echo());
    let mut stream = world.mesh[0].transport.open(&remote.scope, &remote.peer, PROTOCOL).await.unwrap();
    stream.write_all(b"\x00").await.unwrap();
    assert!(stream.read_to_end(&mut Vec::new()).await.is_err());
    world.end().await;
}

#[tokio::test]
async fn a_hostile_answer_is_an_error_at_the_entry() {
    let world = World::new(Config::default()).await;
    for answer in [b"\xff\xff\xff\xff".as_slice(), b"\x00\x00\x00\x01\x07", b"\x00\x00\x00\x09\x01", b""] {
        let served = handler_fn(move |_: Member, mut stream: Stream| async move {
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        world.mesh[1].transport.serve(PROTOCOL, served);
        let refused = world.near.open(&world.remote(echo())).await.unwrap_err();
        assert!(matches!(refused, OpenError::Handshake(_) | OpenError::HungUp), "{refused:?}");
    }
    world.end().await;
}

#[tokio::test]
async fn a_peer_without_tunnels_is_an_error_not_a_wait() {
    let mesh = mesh_transport::testing::Mesh::memory(2).await;
    let near = mesh_tunnel::Tunnels::start(mesh[0].transport.clone(), Config::default());
    let remote = mesh_tunnel::Remote { scope: mesh.scope(), peer: mesh[1].id(), service: echo() };
    assert!(near.open(&remote).await.is_err());
    near.shutdown().await;
    mesh.shutdown().await;
}
