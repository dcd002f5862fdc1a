//! What a client may call: every protocol of a running node, tried by one.

use mesh_control::{InviteRequest, NodeState, Role};
use mesh_transport::{Callers, ResetCode, StreamFault};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Host, PATIENCE, stop_both};

/// Calls that a client may make. Whoever adds one says here that its handler keeps to what is shared with clients.
/// `session/1` shows a client the agents that are open to clients and the sessions that are shared with it, and its prompts get no
/// tools but those that their owner names for clients.
const FOR_EVERYONE: [&str; 5] = ["gateway/1", "gossip/2", "ping/1", "renew/1", "session/1"];

#[tokio::test(flavor = "multi_thread")]
async fn a_client_reaches_no_protocol_that_is_for_members() {
    let (host, client) = tokio::join!(Host::new("host"), Host::new("client"));
    let for_clients = InviteRequest { role: Some(Role::Client), ..InviteRequest::default() };
    let token = host.client.invite(&for_clients).await.unwrap().token;
    let scope = client.join(&token).await.scope.parse().unwrap();
    tokio::join!(host.sees(&client, NodeState::Alive), client.sees(&host, NodeState::Alive));
    let served = host.node.transport().served();
    let names = |who| {
        let served = served.iter().filter(move |(_, callers)| *callers == who);
        served.map(|(protocol, _)| protocol.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(names(Callers::Everyone), FOR_EVERYONE);
    assert!(names(Callers::Members).contains(&"drop/1"));
    for (protocol, callers) in &served {
        let mut stream = client.node.transport().open(&scope, &host.node.id(), *protocol).await.unwrap();
        // Asked nothing, each handler ends in its own way.
        drop(stream.shutdown().await);
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.unwrap();
        let fault = ended.err().and_then(|error| StreamFault::of(&error).cloned());
        let refused = fault == Some(StreamFault::Reset(ResetCode::NOT_ALLOWED));
        assert_eq!(refused, *callers == Callers::Members, "{protocol}");
    }
    stop_both(host, client).await;
}
