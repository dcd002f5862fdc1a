//! Which of several ways is used: the best, and another one at once when it is gone.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_identity::NodeAddr;
use mesh_transport::{
    Call, Found, LinkEvent, PathFacts, PathKind, Peer, Protocol, Stream, Transport, TransportKind,
    handler_fn,
    memory::{MemoryDriver, Network},
    serve_call,
    testing::{Mesh, TestNode, until},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::broadcast,
    time::Instant,
};

const ECHO: Protocol = Protocol::new("echo/1");
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
struct Ping(u32);

impl Call for Ping {
    const PROTOCOL: Protocol = Protocol::new("ping/1");
    type Reply = u32;
}

/// Two nodes on a first network, with drivers for a second one that is not used yet.
struct Pair {
    mesh: Mesh,
    first: Network,
    second: Network,
    /// Of the second network.
    drivers: [Arc<MemoryDriver>; 2],
}

impl Pair {
    async fn new(first: (TransportKind, PathKind), second: (TransportKind, PathKind)) -> Self {
        let [first, second] = [first, second].map(|(transport, kind)| Network::playing(1, transport, kind));
        let mesh = Mesh::on(first.clone(), 2).await;
        let drivers = [0, 1].map(|at: usize| second.driver(&mesh[at].key));
        for (node, driver) in mesh.nodes().iter().zip(&drivers) {
            serve_call::<Ping, _, _>(&node.transport, |_: Peer, ping| async move { Ok(ping.0 + 1) });
            node.transport.serve(ECHO, handler_fn(|_: Peer, stream| echo(stream)));
            node.transport.add_driver(driver.clone());
        }
        Self { mesh, first, second, drivers }
    }

    async fn ping(&self, from: usize) {
        let (scope, to) = (self.mesh.scope(), self.mesh[1 - from].id());
        let pong = self.mesh[from].transport.call(&scope, &to, &Ping(1), SECOND).await;
        assert_eq!(pong.expect("an answer"), 2);
    }

    async fn open(&self) -> Stream {
        let (scope, to) = (self.mesh.scope(), self.mesh[1].id());
        self.mesh[0].transport.open(&scope, &to, ECHO).await.expect("opens")
    }

    /// The first node hears that the second is on the second network.
    fn find(&self) {
        let direct = vec![SocketAddr::from(([192, 0, 2, 1], 1))];
        let found =
            Found { node: self.mesh[1].id(), addr: NodeAddr { direct, relay: None, ..NodeAddr::default() } };
        self.drivers[0].find(found);
    }

    fn path(&self, at: usize) -> PathFacts {
        path(&self.mesh[at])
    }

    async fn until_both_use(&self, wanted: (TransportKind, PathKind)) {
        until(&format!("both use {wanted:?}"), || async {
            [0, 1].iter().all(|at| {
                let links = self.mesh[*at].transport.links();
                links.first().is_some_and(|link| (link.path.transport, link.path.kind) == wanted)
            })
        })
        .await;
    }

    fn connections(&self) -> [usize; 2] {
        let (a, b) = (self.mesh[0].id(), self.mesh[1].id());
        [self.first.connections(a, b), self.second.connections(a, b)]
    }
}

fn path(node: &TestNode) -> PathFacts {
    node.transport.links()[0].path
}

async fn echo(mut stream: Stream) {
    let mut byte = [0];
    while stream.read_exact(&mut byte).await.is_ok() && stream.write_all(&byte).await.is_ok() {}
    drop(stream.shutdown().await);
}

async fn says_back(stream: &mut Stream) {
    stream.write_all(b"x").await.expect("writes");
    assert_eq!(stream.read_u8().await.expect("reads"), b'x');
}

const RELAYED: (TransportKind, PathKind) = (TransportKind::Internet, PathKind::Relayed);
const LOCAL: (TransportKind, PathKind) = (TransportKind::Lan, PathKind::Direct);
const CIRCUIT: (TransportKind, PathKind) = (TransportKind::Lan, PathKind::Relayed);

#[tokio::test(start_paused = true)]
async fn a_link_moves_to_the_local_network_and_nothing_on_the_old_one_is_cut() {
    let pair = Pair::new(RELAYED, LOCAL).await;
    pair.second.cut(pair.mesh[0].id(), pair.mesh[1].id());
    pair.ping(0).await;
    assert_eq!(pair.path(0).transport, TransportKind::Internet);
    let mut old = pair.open().await;
    says_back(&mut old).await;
    let mut events = [0, 1].map(|at: usize| pair.mesh[at].transport.events());
    pair.second.heal(pair.mesh[0].id(), pair.mesh[1].id());
    pair.find();
    pair.until_both_use(LOCAL).await;
    for events in &mut events {
        let event = events.recv().await.unwrap();
        assert!(
            matches!(&event, LinkEvent::Path { path, .. } if path.transport == TransportKind::Lan),
            "{event:?}"
        );
    }
    pair.ping(1).await;
    tokio::time::sleep(30 * SECOND).await;
    says_back(&mut old).await;
    assert_eq!(pair.connections(), [1, 1], "the stream holds the old one");
    drop(old);
    until("the old one is closed", || async { pair.connections() == [0, 1] }).await;
    pair.ping(0).await;
    pair.mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_circuit_gives_way_to_any_other_way() {
    for better in [LOCAL, (TransportKind::Internet, PathKind::Direct)] {
        let pair = Pair::new(CIRCUIT, better).await;
        pair.second.cut(pair.mesh[0].id(), pair.mesh[1].id());
        pair.ping(0).await;
        assert_eq!(pair.path(0).kind, PathKind::Relayed);
        pair.second.heal(pair.mesh[0].id(), pair.mesh[1].id());
        pair.find();
        pair.until_both_use(better).await;
        until("the circuit is closed", || async { pair.connections() == [0, 1] }).await;
        pair.mesh.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_the_best_already_is_left_alone_and_a_relay_is_no_improvement() {
    for (first, second) in [(LOCAL, RELAYED), (CIRCUIT, RELAYED)] {
        let pair = Pair::new(first, second).await;
        pair.ping(0).await;
        pair.find();
        tokio::time::sleep(300 * SECOND).await;
        assert_eq!(pair.connections(), [1, 0]);
        assert_eq!(pair.path(0).transport, TransportKind::Lan);
        pair.mesh.shutdown().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_way_that_comes_up_unannounced_is_found_within_its_longest_wait() {
    let pair = Pair::new(RELAYED, LOCAL).await;
    pair.second.cut(pair.mesh[0].id(), pair.mesh[1].id());
    pair.find();
    pair.ping(0).await;
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(pair.path(0).transport, TransportKind::Internet);
    pair.second.heal(pair.mesh[0].id(), pair.mesh[1].id());
    // A dial that hangs since before has its own deadline.
    tokio::time::sleep(66 * SECOND).await;
    pair.until_both_use(LOCAL).await;
    pair.mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn when_the_best_one_is_gone_the_other_is_used_without_a_gap() {
    let pair = Pair::new(RELAYED, LOCAL).await;
    pair.second.cut(pair.mesh[0].id(), pair.mesh[1].id());
    pair.ping(0).await;
    let mut old = pair.open().await;
    says_back(&mut old).await;
    pair.second.heal(pair.mesh[0].id(), pair.mesh[1].id());
    pair.find();
    pair.until_both_use(LOCAL).await;
    let mut events = pair.mesh[0].transport.events();
    pair.second.break_connections(pair.mesh[0].id(), pair.mesh[1].id());
    pair.until_both_use(RELAYED).await;
    pair.ping(0).await;
    pair.ping(1).await;
    says_back(&mut old).await;
    let first = events.recv().await.unwrap();
    assert!(matches!(first, LinkEvent::Path { .. }), "the link was never down: {first:?}");
    // And it is taken up again when it is back.
    pair.until_both_use(LOCAL).await;
    pair.mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_network_is_asked_at_once_and_a_late_answer_puts_the_link_back() {
    let pair = Pair::new(RELAYED, LOCAL).await;
    pair.find();
    pair.ping(0).await;
    pair.until_both_use(LOCAL).await;
    let mut old = pair.open().await;
    says_back(&mut old).await;
    let (a, b) = (pair.mesh[0].id(), pair.mesh[1].id());
    let changed = Instant::now();
    pair.second.cut(a, b);
    pair.mesh[0].transport.network_changed();
    // Both: the other node has noticed nothing, and is asked because of the new connection.
    pair.until_both_use(RELAYED).await;
    pair.ping(0).await;
    pair.ping(1).await;
    assert!(changed.elapsed() < 2 * SECOND, "virtual time: {:?}", changed.elapsed());
    pair.second.heal(a, b);
    pair.until_both_use(LOCAL).await;
    says_back(&mut old).await;
    until("one is left", || async { pair.connections() == [0, 1] }).await;
    pair.mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_link_that_was_lost_as_the_network_changed_is_dialed_again_unasked() {
    let pair = Pair::new(RELAYED, LOCAL).await;
    let (a, b) = (pair.mesh[0].id(), pair.mesh[1].id());
    pair.second.cut(a, b);
    pair.ping(0).await;
    let mut events = pair.mesh[0].transport.events();
    pair.first.break_connections(a, b);
    let down = events.recv().await.unwrap();
    assert!(matches!(down, LinkEvent::Down { .. }), "{down:?}");
    tokio::time::sleep(20 * SECOND).await;
    assert!(pair.mesh[0].transport.links().is_empty(), "nobody asked for it");
    pair.mesh[0].transport.network_changed();
    until("linked again", || async { !pair.mesh[0].transport.links().is_empty() }).await;
    pair.mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn two_nodes_with_one_key_are_named_to_everybody() {
    let network = Network::new(1);
    let mesh = Mesh::on(network.clone(), 2).await;
    let (scope, to) = (mesh.scope(), mesh[0].id());
    let copy = Transport::start(
        mesh[1].key.clone(),
        vec![network.driver(&mesh[1].key)],
        mesh[1].admission.clone(),
        mesh_transport::Config::default(),
    );
    let mut events = mesh[0].transport.events();
    let mut told = [mesh[1].transport.events(), copy.events()];
    for _ in 0..4 {
        drop(mesh[1].transport.link(&scope, &to).await);
        drop(copy.link(&scope, &to).await);
        tokio::time::sleep(SECOND).await;
    }
    let twice = async |events: &mut broadcast::Receiver<LinkEvent>| loop {
        if let LinkEvent::KeyInUseTwice { node, told_by, .. } = events.recv().await.unwrap() {
            break (node, told_by);
        }
    };
    assert_eq!(twice(&mut events).await, (mesh[1].id(), None));
    for events in &mut told {
        assert_eq!(twice(events).await, (mesh[1].id(), Some(to)));
    }
    copy.shutdown().await;
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_started_again_and_again_is_no_second_one() {
    let network = Network::new(1);
    let mesh = Mesh::on(network.clone(), 2).await;
    let (scope, to) = (mesh.scope(), mesh[0].id());
    let mut events = mesh[0].transport.events();
    mesh[1].transport.shutdown().await;
    for _ in 0..10 {
        let driver = network.driver(&mesh[1].key);
        let (key, admission) = (mesh[1].key.clone(), mesh[1].admission.clone());
        let again = Transport::start(key, vec![driver], admission, mesh_transport::Config::default());
        again.link(&scope, &to).await.unwrap();
        again.shutdown().await;
    }
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event, LinkEvent::KeyInUseTwice { .. }), "{event:?}");
    }
    mesh.shutdown().await;
}
