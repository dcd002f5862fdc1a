//! Two nodes and an invite: they see each other, and the second uses what the first serves.

use mesh_control::{InviteRequest, NodeState, RouteTarget};

use crate::support::stub::{PIECES, Stub};
use crate::support::{Host, Place, http, stop_both};

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_by_an_invite_is_seen_and_sees() {
    let (first, second) = tokio::join!(Host::new("first"), Host::new("second"));
    let invite = first.invite().await;
    let joined = second.join(&invite.token).await;
    assert_eq!((&joined.scope, &joined.name), (&invite.scope, &invite.scope_name));
    assert_eq!(joined.issuer, first.id());
    let (seen, sees) =
        tokio::join!(first.sees(&second, NodeState::Alive), second.sees(&first, NodeState::Alive));
    assert_eq!((seen.name.as_str(), sees.name.as_str()), ("second", "first"));
    for host in [&first, &second] {
        let status = host.client.status().await.unwrap();
        assert_eq!(status.scopes.len(), 1);
        assert_eq!((status.scopes[0].id.as_str(), status.scopes[0].members_alive), (&*invite.scope, 2));
    }
    let used = first.client.invites().await.unwrap();
    assert_eq!((used[0].uses, &used[0].holders), (1, &vec![second.id()]));
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_node_answers_with_the_firsts_model_byte_for_byte() {
    let stub = Stub::start(&["talks"]).await;
    let place = Place::new("first");
    let first = place.start_with(|config| config.providers = vec![stub.provider()]).await;
    let second = Host::new("second").await;
    let gateway = second.gateway().await;
    assert!(http::models(gateway).await.is_empty());
    // Joined while both run: neither is restarted.
    second.join(&first.invite().await.url).await;
    second.offers("talks").await;
    let route = &second.client.routes(Some("talks")).await.unwrap()[0];
    assert!(matches!(&route.target, RouteTarget::Peer { node, .. } if *node == first.id()), "{route:?}");
    let asked = http::chat("talks");
    let answer = http::post(gateway, "/v1/chat/completions", asked.clone()).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["content-type"]),
        (200, &"text/event-stream".parse().unwrap())
    );
    assert_eq!(answer.body, PIECES.concat());
    assert_eq!(stub.bodies(), [asked]);
    stub.wait_open(0).await;
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn joining_again_takes_no_second_use() {
    let (first, second) = tokio::join!(Host::new("first"), Host::new("second"));
    let two = InviteRequest { uses: Some(2), ..InviteRequest::default() };
    let invite = first.client.invite(&two).await.unwrap();
    let joined = second.join(&invite.token).await;
    assert_eq!(second.join(&invite.token).await, joined);
    assert_eq!(first.client.invites().await.unwrap()[0].uses, 1);
    assert_eq!(second.client.status().await.unwrap().scopes.len(), 1);
    stop_both(first, second).await;
}
