//! What only the driver of the local network does: sockets, addresses, liveness, its limits.

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use mesh_identity::{NodeAddr, NodeKey, ScopeId};
use mesh_transport::{
    CloseCode, ClosedWhy, Connection, DialError, DialVia, Driver, PathKind, TransportKind,
    lan::{BindError, Config, Lan},
    testing::until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed([seed; 32])
}

fn scope() -> ScopeId {
    ScopeId::lan(None)
}

async fn bind(seed: u8) -> Arc<Lan> {
    Lan::bind(&key(seed), Config::loopback()).await.unwrap()
}

fn tcp(addr: SocketAddr) -> String {
    format!("/ip4/{}/tcp/{}", addr.ip(), addr.port())
}

fn listening_on(addr: &str) -> Config {
    Config { listen: vec![addr.parse().unwrap()], ..Config::default() }
}

/// A connection from `a` to `b`: both ends. The acceptor has it with the first stream.
async fn connected(a: &Lan, b: &Lan, b_seed: u8) -> (Arc<dyn Connection>, Arc<dyn Connection>) {
    let addr = b.local_addr(&scope());
    let ours = a.dial(&scope(), key(b_seed).node_id(), &addr, DialVia::default()).await.unwrap();
    let (stream, theirs) = tokio::join!(ours.open(), b.accept());
    drop(stream.unwrap());
    (ours, theirs.unwrap())
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp(taken.local_addr().unwrap());
    let error = Lan::bind(&key(1), listening_on(&addr)).await.err().unwrap();
    assert!(matches!(&error, BindError::PortTaken { addr: named } if named.to_string() == addr), "{error:?}");
}

#[tokio::test]
async fn what_cannot_be_listened_on_is_named() {
    let error = Lan::bind(&key(1), listening_on("/dns4/example.org/tcp/9")).await.err().unwrap();
    assert!(matches!(error, BindError::Address { .. }), "{error:?}");
}

#[tokio::test]
async fn a_port_is_free_again_after_shutdown() {
    let first = bind(1).await;
    let addr = tcp(first.listening()[0]);
    first.shutdown().await;
    first.shutdown().await;
    assert!(first.accept().await.is_none());
    let second = Lan::bind(&key(2), listening_on(&addr)).await.unwrap();
    second.shutdown().await;
}

#[tokio::test]
async fn one_port_does_for_tcp_and_quic_and_each_does_alone() {
    let (a, b) = (bind(1).await, bind(2).await);
    assert_eq!(b.listening().len(), 1, "one socket address for both: {:?}", b.listening());
    let only_quic = format!("/ip4/127.0.0.1/udp/{}/quic-v1", b.listening()[0].port());
    let taken = Lan::bind(&key(3), listening_on(&only_quic)).await.err().unwrap();
    assert!(matches!(taken, BindError::PortTaken { .. }), "{taken:?}");
    let (ours, theirs) = connected(&a, &b, 2).await;
    assert_eq!((ours.peer(), theirs.peer()), (key(2).node_id(), key(1).node_id()));
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test]
async fn all_interfaces_have_addresses_from_the_start() {
    let node = Lan::bind(&key(1), Config::default()).await.unwrap();
    let addr = node.local_addr(&scope());
    assert!(!addr.lan.is_empty());
    assert!(addr.lan.iter().all(|addr| !addr.ip().is_unspecified() && addr.port() != 0));
    node.shutdown().await;
}

#[tokio::test]
async fn another_key_behind_the_address_is_told() {
    let (a, b) = (bind(1).await, bind(2).await);
    let addr = b.local_addr(&scope());
    let error = a.dial(&scope(), key(3).node_id(), &addr, DialVia::default()).await.err().unwrap();
    assert!(matches!(error, DialError::WrongIdentity(node) if node == key(3).node_id()), "{error:?}");
    let error =
        a.dial(&scope(), key(3).node_id(), &NodeAddr::default(), DialVia::default()).await.err().unwrap();
    assert!(matches!(error, DialError::NoAddress(_)), "{error:?}");
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test]
async fn an_address_that_somebody_else_took_over_hides_no_other() {
    let impatient = Config { handshake_timeout: Duration::from_millis(500), ..Config::loopback() };
    let a = Lan::bind(&key(1), impatient).await.unwrap();
    let (b, squatter) = (bind(2).await, bind(3).await);
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let direct = vec![squatter.listening()[0], gone, b.listening()[0]];
    let conn = a
        .dial(
            &scope(),
            key(2).node_id(),
            &NodeAddr { lan: direct, ..NodeAddr::default() },
            DialVia::default(),
        )
        .await
        .unwrap();
    assert_eq!(conn.peer(), key(2).node_id());
    let direct = vec![gone];
    let error = a
        .dial(
            &scope(),
            key(2).node_id(),
            &NodeAddr { lan: direct, ..NodeAddr::default() },
            DialVia::default(),
        )
        .await
        .err()
        .unwrap();
    let DialError::Unreachable { detail, .. } = &error else { panic!("{error:?}") };
    assert!(detail.contains(&gone.port().to_string()) && detail.contains("refused"), "{detail}");
    for node in [a, b, squatter] {
        node.shutdown().await;
    }
}

#[tokio::test]
async fn the_cause_of_a_close_reaches_the_peer() {
    let (a, b) = (bind(1).await, bind(2).await);
    let (ours, theirs) = connected(&a, &b, 2).await;
    ours.close(CloseCode::Revoked, &"é".repeat(200));
    ours.close(CloseCode::Done, "later");
    let ClosedWhy::Peer { code, reason } = theirs.closed().await else { panic!("the peer closed it") };
    assert_eq!((code, reason), (CloseCode::Revoked, "é".repeat(128)));
    assert_eq!(ours.closed().await, ClosedWhy::Local(CloseCode::Revoked));
    let (ours, theirs) = connected(&a, &b, 2).await;
    drop(ours);
    assert!(matches!(theirs.closed().await, ClosedWhy::Peer { code: CloseCode::Done, .. }));
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test]
async fn the_path_is_direct_and_its_round_trip_is_measured() {
    let config = Config { ping_every: Duration::from_millis(20), ..Config::loopback() };
    let (a, b) = (Lan::bind(&key(1), config).await.unwrap(), bind(2).await);
    let (ours, _theirs) = connected(&a, &b, 2).await;
    assert_eq!((ours.path().kind, ours.path().transport), (PathKind::Direct, TransportKind::Lan));
    until("the round trip is known", || async { ours.path().rtt.is_some() }).await;
    a.shutdown().await;
    b.shutdown().await;
}

/// One thread that serves a node until it is told to stand still.
struct Frozen {
    freeze: mpsc::Sender<()>,
    thaw: mpsc::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

fn node_that_can_freeze(seed: u8, bound: mpsc::Sender<Arc<Lan>>) -> Frozen {
    let (freeze, frozen) = mpsc::channel();
    let (thaw, thawed) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let node = bind(seed).await;
            bound.send(node.clone()).unwrap();
            let _conn = node.accept().await.unwrap();
            while frozen.try_recv().is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // As by SIGSTOP: nothing of the node runs, and its sockets stay open.
            thawed.recv().unwrap();
        });
    });
    Frozen { freeze, thaw, thread }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_peer_that_froze_is_noticed() {
    let (bound, node) = mpsc::channel();
    let frozen = node_that_can_freeze(2, bound);
    let b = tokio::task::spawn_blocking(move || node.recv().unwrap()).await.unwrap();
    let (ping_every, idle) = (Duration::from_millis(50), Duration::from_millis(800));
    let a = Lan::bind(&key(1), Config { ping_every, idle, ..Config::loopback() }).await.unwrap();
    let conn = a.dial(&scope(), key(2).node_id(), &b.local_addr(&scope()), DialVia::default()).await.unwrap();
    let _stream = conn.open().await.unwrap();
    until("the peer answers", || async { conn.path().rtt.is_some() }).await;
    frozen.freeze.send(()).unwrap();
    let why = tokio::time::timeout(Duration::from_secs(10), conn.closed()).await.unwrap();
    assert_eq!(why, ClosedWhy::TimedOut);
    frozen.thaw.send(()).unwrap();
    a.shutdown().await;
    tokio::task::spawn_blocking(move || frozen.thread.join().unwrap()).await.unwrap();
}

/// Whether the other end has let go of the socket.
async fn is_let_go(socket: &mut TcpStream) -> bool {
    let end = socket.read_to_end(&mut Vec::new()).await;
    end.is_ok() || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn silent_handshakes_are_few_at_once() {
    let config = Config { handshakes_per_address_max: 2, ..Config::loopback() };
    let config = Config { handshake_timeout: Duration::from_secs(60), ..config };
    let node = Lan::bind(&key(1), config).await.unwrap();
    let other = bind(2).await;
    let addr = node.local_addr(&scope());
    let mut silent = FuturesUnordered::new();
    for _ in 0..5 {
        let mut socket = TcpStream::connect(addr.lan[0]).await.unwrap();
        silent.push(async move { is_let_go(&mut socket).await });
    }
    for _ in 0..3 {
        let refused = tokio::time::timeout(Duration::from_secs(10), silent.next()).await.unwrap();
        assert_eq!(refused, Some(true));
    }
    let error = other.dial(&scope(), key(1).node_id(), &addr, DialVia::default()).await.err().unwrap();
    assert!(matches!(error, DialError::Unreachable { .. }), "{error:?}");
    drop(silent);
    until("there is room again", || async {
        other.dial(&scope(), key(1).node_id(), &addr, DialVia::default()).await.is_ok()
    })
    .await;
    other.shutdown().await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_silent_handshake_ends_by_itself() {
    let config = Config { handshake_timeout: Duration::from_millis(200), ..Config::loopback() };
    let node = Lan::bind(&key(1), config).await.unwrap();
    let mut silent = TcpStream::connect(node.listening()[0]).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(10), is_let_go(&mut silent)).await.unwrap());
    node.shutdown().await;
}

#[tokio::test]
async fn bytes_that_are_no_libp2p_end_the_handshake() {
    let config = Config { handshake_timeout: Duration::from_millis(500), ..Config::loopback() };
    let node = Lan::bind(&key(1), config).await.unwrap();
    let mut socket = TcpStream::connect(node.listening()[0]).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(10), is_let_go(&mut socket)).await.unwrap());
    node.shutdown().await;
}
