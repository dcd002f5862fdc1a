use futures_util::future::BoxFuture;
use mesh_identity::NodeKey;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::{
    Config, Driver,
    internet::{self, Internet},
    testing::{Mesh, Site, until},
    transport::LinkEvent,
};

#[test]
fn the_messages_are_golden() {
    assert_eq!(crate::frame::encode(&Ask {}).expect("encodes"), [0; 0]);
    let place = Place { port: 300, token: [1; 16], answer: [2; 16] };
    let golden = [&[0xac, 0x02][..], &[1; 16], &[2; 16]].concat();
    assert_eq!(crate::frame::encode(&place).expect("encodes"), golden);
    assert_eq!(crate::frame::decode::<Place>(&golden).expect("decodes"), place);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_good_once_and_for_some_seconds() {
    let pulses = Pulses::new(100);
    for (seed, token) in [(1, 10), (2, 20)] {
        let until = Instant::now() + TOKEN_LIVES;
        let offer = Offer { token: [token; 16], answer: [token + 1; 16], until };
        let watched = Watched {
            instance: 1,
            unlinked: CancellationToken::new(),
            changed: Notify::new(),
            state: Mutex::new(State { offer: Some(offer), ..State::default() }),
        };
        pulses.lock().insert(NodeKey::from_seed([seed; 32]).node_id(), Arc::new(watched));
    }
    assert!(pulses.redeem(&[11; 16]).is_none(), "nobody was given that");
    assert_eq!(pulses.redeem(&[10; 16]).map(|(_, answer)| answer), Some([11; 16]));
    assert!(pulses.redeem(&[10; 16]).is_none(), "a second time");
    tokio::time::advance(TOKEN_LIVES).await;
    assert!(pulses.redeem(&[20; 16]).is_none(), "late");
}

/// iroh on loopback.
struct Loopback;

impl Site for Loopback {
    fn driver<'a>(&'a self, key: &'a NodeKey) -> BoxFuture<'a, Arc<dyn Driver>> {
        Box::pin(async {
            let driver: Arc<dyn Driver> =
                Internet::bind(key, internet::Config::loopback()).await.expect("binds");
            driver
        })
    }
}

/// Two linked nodes, each with a pulse to the other.
async fn pair() -> Mesh {
    let mesh = Mesh::start(Arc::new(Loopback), 2, Config::default()).await;
    mesh[0].transport.link(&mesh.scope(), &mesh[1].id()).await.expect("links");
    until("each holds the other's pulse", || async { mesh.nodes().iter().all(is_watched) }).await;
    mesh
}

fn is_watched(node: &crate::testing::TestNode) -> bool {
    let peers = node.transport.inner.pulses.lock();
    peers.values().any(|watched| {
        let state = watched.lock();
        state.place.is_some() && state.held.is_some()
    })
}

fn made(mesh: &Mesh) -> u64 {
    mesh[0].transport.metrics().pulses_made
}

#[tokio::test]
async fn a_pulse_that_is_cut_is_renewed_and_no_link_ends() {
    let mesh = pair().await;
    let mut events = mesh[0].transport.events();
    for _ in 0..CUTS_SEEN {
        let before = made(&mesh);
        let held = mesh[1].transport.inner.pulses.lock().values().find_map(|one| one.lock().held.take());
        held.expect("is held").cancel();
        until("there is another", || async { made(&mesh) > before && is_watched(&mesh[1]) }).await;
    }
    assert!(events.try_recv().is_err(), "nothing happened to the link");
    assert_eq!(mesh[0].transport.metrics().processes_gone, 0);
    mesh.shutdown().await;
}

/// As many as are renewed without a wait.
const CUTS_SEEN: usize = 3;

#[tokio::test]
async fn a_port_that_refuses_ends_every_link_to_the_process() {
    let mut mesh = pair().await;
    mesh.add(mesh_identity::Permissions::MEMBER).await;
    let [dying, other] = [mesh[1].id(), mesh[2].id()];
    mesh[0].transport.link(&mesh.scope(), &other).await.expect("links");
    let mut events = mesh[0].transport.events();
    // What its kernel does for a process that is killed; the QUIC connection is not touched.
    mesh[1].transport.inner.pulses.close();
    let down = async {
        loop {
            if let LinkEvent::Down { peer, why } = events.recv().await.expect("comes") {
                break (peer.id, why);
            }
        }
    };
    let down = tokio::time::timeout(Duration::from_secs(10), down).await.expect("in time");
    assert_eq!(down, (dying, crate::ClosedWhy::Gone));
    let links: Vec<_> = mesh[0].transport.links().into_iter().map(|link| link.peer.id).collect();
    assert_eq!(links, [other]);
    mesh.shutdown().await;
}

#[tokio::test]
async fn a_shutdown_is_no_death() {
    let mesh = pair().await;
    let mut events = mesh[0].transport.events();
    mesh[1].transport.shutdown().await;
    let down = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("in time");
    let Ok(LinkEvent::Down { why, .. }) = down else { panic!("{down:?}") };
    assert!(matches!(why, crate::ClosedWhy::Peer { code: CloseCode::Shutdown, .. }), "{why:?}");
    assert_eq!(mesh[0].transport.metrics().processes_gone, 0);
    mesh.shutdown().await;
}

#[tokio::test]
async fn strangers_at_the_port_get_nothing() {
    let mesh = pair().await;
    let listeners = mesh[1].transport.inner.pulses.listeners.lock().expect("nobody panicked").clone();
    let [(at, port)] = listeners.into_iter().collect::<Vec<_>>()[..] else { panic!("one listener") };
    assert!(at.is_loopback(), "nodes of one machine open no port to others");
    let connect = || TcpStream::connect((at, port));
    let answer = |mut socket: TcpStream| async move {
        let mut answer = Vec::new();
        let read = socket.read_to_end(&mut answer);
        drop(tokio::time::timeout(Duration::from_secs(10), read).await.expect("it is closed"));
        answer
    };
    let mut wrong = connect().await.expect("connects");
    wrong.write_all(&[7; TOKEN_BYTES]).await.expect("writes");
    assert!(answer(wrong).await.is_empty());
    let mut half = connect().await.expect("connects");
    half.write_all(&[7; TOKEN_BYTES - 1]).await.expect("writes");
    assert!(answer(half).await.is_empty(), "after a time");
    let many = futures_util::future::join_all((0..2 * UNPROVED_PER_ADDRESS_MAX).map(|_| connect())).await;
    let many = many.into_iter().map(|socket| answer(socket.expect("connects")));
    assert!(futures_util::future::join_all(many).await.iter().all(Vec::is_empty));
    assert!(is_watched(&mesh[0]) && is_watched(&mesh[1]), "what stands is not touched");
    mesh.shutdown().await;
}

#[tokio::test]
async fn a_byte_behind_the_token_ends_it() {
    let mesh = pair().await;
    let links = mesh[1].transport.inner.links.matching(|_| true);
    let place = offer(&mesh[1].transport.inner, &links[0]).expect("is near");
    let mut socket = TcpStream::connect(("127.0.0.1", place.port)).await.expect("connects");
    socket.write_all(&place.token).await.expect("writes");
    let mut answer = [0; TOKEN_BYTES];
    socket.read_exact(&mut answer).await.expect("is let in");
    assert_eq!(answer, place.answer);
    socket.write_all(b"!").await.expect("writes");
    let ended = tokio::time::timeout(Duration::from_secs(10), socket.read_u8()).await;
    assert!(ended.expect("in time").is_err());
    mesh.shutdown().await;
}
