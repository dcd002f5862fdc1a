//! What peers learn of a process that ends without a word, over every driver with sockets.

use std::{sync::Arc, time::Duration};

use mesh_identity::{NodeKey, Permissions};
use mesh_transport::{
    ClosedWhy, Config, LinkEvent,
    testing::{Mesh, Site, TestNode, until},
};
use tokio::runtime::Runtime;

use crate::sites::{LanLoopback, Loopback};

/// A node in a runtime of its own. Dropped, the runtime closes its sockets in any order and says nothing, as a kernel
/// does for a process that is killed.
fn doomed(site: Arc<dyn Site>, seed: u8) -> (Runtime, TestNode) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let key = NodeKey::from_seed([seed; 32]);
    let node = runtime.block_on(TestNode::start(key, &*site, Config::default()));
    (runtime, node)
}

async fn dies_without_a_word(site: Arc<dyn Site>) {
    let mesh = Mesh::start(site.clone(), 2, Config::default()).await;
    let (runtime, dying) = tokio::task::spawn_blocking(move || doomed(site, 0x77)).await.unwrap();
    let (scope, node) = (mesh.scope(), dying.id());
    dying.admission.join(mesh.grant(node, "dying", Permissions::MEMBER));
    for member in mesh.nodes() {
        member.transport.book().insert(scope, node, dying.transport.local_addr(&scope));
        member.transport.link(&scope, &node).await.unwrap();
    }
    until("everybody has its pulse", || async {
        mesh.nodes().iter().all(|member| member.transport.metrics().pulses_made >= 1)
            && dying.transport.metrics().pulses_made >= 2
    })
    .await;
    let mut events: Vec<_> = mesh.nodes().iter().map(|member| member.transport.events()).collect();
    runtime.shutdown_background();
    for events in &mut events {
        let down = tokio::time::timeout(Duration::from_secs(10), events.recv()).await.unwrap();
        let Ok(LinkEvent::Down { peer, why }) = down else { panic!("{down:?}") };
        assert_eq!((peer.id, why), (node, ClosedWhy::Gone));
    }
    drop(dying);
    mesh.shutdown().await;
}

#[tokio::test]
async fn over_iroh() {
    dies_without_a_word(Arc::new(Loopback)).await;
}

#[tokio::test]
async fn over_the_local_network_by_quic() {
    dies_without_a_word(Arc::new(LanLoopback::Quic)).await;
}

#[tokio::test]
async fn over_the_local_network_by_tcp() {
    dies_without_a_word(Arc::new(LanLoopback::Tcp)).await;
}
