//! Circuits between nodes that reach a third one and not each other.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use mesh_identity::{NodeKey, Permissions, ScopeId};
use mesh_transport::{
    Config as TransportConfig, DialError, Driver, LinkFacts, PathKind, Peer, Protocol, Transport,
    TransportKind, handler_fn,
    lan::{Config, Lan},
    testing::{Mesh, Site, TestAdmission, until},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ECHO: Protocol = Protocol::new("echo/1");
/// More than a circuit of libp2p's own defaults carries.
const BYTES: usize = 1 << 20;

/// Nodes that know no address but those of their configuration.
struct Third(bool);

impl Site for Third {
    fn driver<'a>(&'a self, key: &'a NodeKey) -> BoxFuture<'a, Arc<dyn Driver>> {
        let config = Config { serve_circuits: self.0, ..Config::loopback() };
        Box::pin(async {
            let driver: Arc<dyn Driver> = Lan::bind(key, config).await.unwrap();
            driver
        })
    }
}

struct Node {
    key: NodeKey,
    transport: Transport,
}

/// A member that has the third node as its static peer; it is linked there.
async fn member(mesh: &Mesh, seed: u8) -> Node {
    let third = &mesh[0];
    let at = third.transport.local_addr(&mesh.scope()).lan[0];
    let peers = vec![format!("/ip4/{}/tcp/{}", at.ip(), at.port()).parse().unwrap()];
    let key = NodeKey::from_seed([seed; 32]);
    let driver = Lan::bind(&key, Config { peers, ..Config::loopback() }).await.unwrap();
    let admission = Arc::new(TestAdmission::default());
    admission.join(mesh.grant(key.node_id(), &format!("n{seed}"), Permissions::MEMBER));
    let transport = Transport::start(key.clone(), vec![driver], admission, TransportConfig::default());
    until("the third node is found", || async {
        transport.book().found().borrow().contains_key(&third.id())
    })
    .await;
    transport.link(&mesh.scope(), &third.id()).await.unwrap();
    Node { key, transport }
}

impl Node {
    fn link_to(&self, other: &Node) -> Option<LinkFacts> {
        self.transport.links().into_iter().find(|link| link.peer.id == other.key.node_id())
    }

    async fn is_linked(&self, scope: &ScopeId, other: &Node) -> bool {
        self.transport.link(scope, &other.key.node_id()).await.is_ok()
    }
}

#[tokio::test]
async fn a_link_goes_over_a_circuit_for_as_long_as_the_third_node_is_there() {
    let mesh = Mesh::start(Arc::new(Third(true)), 1, TransportConfig::default()).await;
    let (a, b) = (member(&mesh, 1).await, member(&mesh, 2).await);
    let scope = mesh.scope();
    b.transport.serve(
        ECHO,
        handler_fn(|_peer: Peer, stream| async move {
            let (mut read, mut write) = tokio::io::split(stream);
            if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                drop(write.shutdown().await);
            }
        }),
    );
    until("a reaches b", || a.is_linked(&scope, &b)).await;
    until("b knows of it", || async { b.link_to(&a).is_some() }).await;
    for facts in [a.link_to(&b).unwrap(), b.link_to(&a).unwrap()] {
        assert_eq!((facts.path.kind, facts.path.transport), (PathKind::Relayed, TransportKind::Lan));
    }
    let stream = a.transport.open(&scope, &b.key.node_id(), ECHO).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let (sent, mut heard) = (vec![7; BYTES], Vec::new());
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    tokio::join!(writing, async { read.read_to_end(&mut heard).await.unwrap() });
    assert!(heard == sent, "{} bytes came back", heard.len());
    mesh.shutdown().await;
    until("the link ends with its circuit", || async { a.link_to(&b).is_none() && b.link_to(&a).is_none() })
        .await;
    let error = a.transport.link(&scope, &b.key.node_id()).await.unwrap_err();
    assert!(matches!(error, DialError::NoAddress(_) | DialError::Unreachable { .. }), "{error:?}");
    a.transport.shutdown().await;
    b.transport.shutdown().await;
}

#[tokio::test]
async fn a_node_that_was_not_asked_to_carries_nobody() {
    let mesh = Mesh::start(Arc::new(Third(false)), 1, TransportConfig::default()).await;
    let (a, b) = (member(&mesh, 1).await, member(&mesh, 2).await);
    let error = a.transport.link(&mesh.scope(), &b.key.node_id()).await.err().unwrap();
    assert!(matches!(error, DialError::NoAddress(_)), "{error:?}");
    for node in [a, b] {
        node.transport.shutdown().await;
    }
    mesh.shutdown().await;
}
