//! Nodes that end and come back find each other by themselves.

use mesh_control::NodeState;

use crate::support::stub::{PIECES, Stub};
use crate::support::{Host, Place, http, stop_both};

/// Two places whose nodes are in one scope; the first one's node passes on the stub's model.
struct Two {
    stub: Stub,
    first: Place,
    second: Place,
}

impl Two {
    async fn joined() -> (Self, Host, Host) {
        let stub = Stub::start(&["talks"]).await;
        let two = Self { stub, first: Place::new("first"), second: Place::new("second") };
        let (first, second) = tokio::join!(two.start_first(), two.second.start());
        second.join(&first.invite().await.token).await;
        second.offers("talks").await;
        (two, first, second)
    }

    async fn start_first(&self) -> Host {
        self.first.start_with(|config| config.providers = vec![self.stub.provider()]).await
    }

    /// They see each other, and the second one's callers get the first one's model.
    async fn assert_together(&self, first: &Host, second: &Host) {
        tokio::join!(first.sees(second, NodeState::Alive), second.sees(first, NodeState::Alive));
        second.offers("talks").await;
        let answer = http::post(second.gateway().await, "/v1/chat/completions", http::chat("talks")).await;
        assert_eq!((answer.status.as_u16(), answer.body), (200, PIECES.concat().into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_node_is_found_again_after_its_restart() {
    let (two, first, second) = Two::joined().await;
    let id = first.id();
    first.stop().await;
    let first = two.start_first().await;
    assert_eq!(first.id(), id);
    two.assert_together(&first, &second).await;
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_node_rejoins_after_its_restart() {
    let (two, first, second) = Two::joined().await;
    second.stop().await;
    let second = two.second.start().await;
    two.assert_together(&first, &second).await;
    // It came back by its membership: the invite, good for one use, is used up.
    assert_eq!(first.client.invites().await.unwrap()[0].uses, 1);
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_nodes_find_each_other_after_both_restarted() {
    let (two, first, second) = Two::joined().await;
    stop_both(first, second).await;
    let (first, second) = tokio::join!(two.start_first(), two.second.start());
    two.assert_together(&first, &second).await;
    stop_both(first, second).await;
}
