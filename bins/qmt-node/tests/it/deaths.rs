//! Processes that are killed.

use mesh_control::JoinRequest;
use mesh_identity::NodeId;
use mesh_transport::{ClosedWhy, LinkEvent};

use crate::support::process::Folder;
use crate::support::{Host, PATIENCE, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_gone_and_not_merely_silent() {
    let (here, folder) = (Host::new("here").await, Folder::new());
    let mut dying = folder.start(&["--port", "0", "--node-name", "dying"]).await;
    let token = here.invite().await.token;
    dying.client.join(&JoinRequest { token }).await.unwrap();
    let id: NodeId = dying.client.status().await.unwrap().node_id.parse().unwrap();
    let transport = here.node.transport();
    until("its pulse is felt", || async { (transport.metrics().pulses_made >= 1).then_some(()) }).await;
    let mut events = transport.events();
    dying.kill();
    let gone = async {
        loop {
            if let Ok(LinkEvent::Down { peer, why }) = events.recv().await {
                break (peer.id, why);
            }
        }
    };
    let gone = tokio::time::timeout(PATIENCE, gone).await.unwrap();
    assert_eq!(gone, (id, ClosedWhy::Gone));
    here.stop().await;
}
