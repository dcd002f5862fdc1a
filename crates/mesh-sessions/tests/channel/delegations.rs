//! Delegations: whole, streamed, once, cancelled, and never in a circle.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use mesh_identity::{NodeKey, ScopeId};
use mesh_sessions::chain::{AgentAt, Budget, Hop, SignedChain};
use mesh_sessions::channel::{AskError, Code, Ending, Heard, Limits, MessageRequest, Outgoing, Status};
use mesh_sessions::ids::SessionId;
use serde_json::{Value, json};

use crate::requests::ask;
use crate::support::*;

pub(crate) fn outgoing(agent: &str, key: &str) -> Outgoing {
    let request = MessageRequest {
        from_agent: "opus@ct111".to_owned(),
        to_agent: Some(agent.to_owned()),
        message: "do it".to_owned(),
        ..MessageRequest::default()
    };
    Outgoing { request, chain: None, key: key.to_owned() }
}

#[tokio::test]
async fn an_answer_is_streamed_and_its_connection_kept() {
    let node = Node::start().await;
    let client = node.client("ct111");
    for round in 0..3 {
        let mut order = outgoing("echo", &format!("k{round}"));
        order.request.context = Some(json!(["what came before", "and"]));
        let mut answering = client.delegate(&node.target(), &order).await.unwrap();
        let begun = Heard::Begun { agent: "echo".to_owned(), session: Some("s-1".to_owned()) };
        assert_eq!(answering.next().await.unwrap(), begun);
        let mut text = String::new();
        let done = loop {
            match answering.next().await.unwrap() {
                Heard::Text(piece) => text.push_str(&piece),
                Heard::Done(done) => break done,
                Heard::Begun { .. } => panic!("begun twice"),
            }
        };
        assert_eq!(text, "what came before|anddo it");
        assert_eq!((done.response, done.agent, done.status), (text, "echo".to_owned(), Status::Completed));
    }
    assert_eq!(node.server.stats().handshakes, 1, "one connection was kept");
    assert_eq!(node.server.stats().delegations_ended(Ending::Done), 3);
    assert!(node.log.has("Received mesh delegation peer.cn=ct111 from=opus to=echo"), "{}", node.log.text());
    assert!(!node.log.has("do it"), "what agents say is not logged");
    node.end().await;
}

#[tokio::test]
async fn a_stream_and_a_whole_answer_are_plain_http() {
    let node = Node::start().await;
    let body = json!({"fromAgent": "opus", "toAgent": "echo@ct110", "message": "abcd"}).to_string();
    let accept = "accept: text/event-stream\r\n";
    let heard = say(&mut node.raw("ct111").await, &request("POST", "/api/message", accept, &body)).await;
    for part in [
        "HTTP/1.1 200 OK",
        "content-type: text/event-stream",
        "event: started\ndata: {\"agent\":\"echo\",\"session\":\"s-1\"}\n\n",
        "event: done\ndata: {\"response\":\"abcd\",\"agent\":\"echo\",\"durationMs\":",
    ] {
        assert!(heard.contains(part), "{part} in {heard}");
    }
    let (status, whole) =
        ask(&node, "ct111", "POST", "/api/message", "", &serde_json::from_str(&body).unwrap()).await;
    assert_eq!((status, &whole["response"], &whole["status"]), (200, &json!("abcd"), &json!("completed")));
    node.end().await;
}

#[tokio::test]
async fn nobody_waits_for_what_is_only_accepted() {
    let node = Node::start().await;
    let body = json!({"fromAgent": "opus", "toAgent": "slow", "message": "go", "waitForResponse": false});
    let (status, accepted) = ask(&node, "ct111", "POST", "/api/message", "", &body).await;
    assert_eq!((status, &accepted["status"], &accepted["agent"]), (202, &json!("accepted"), &json!("slow")));
    assert_eq!(node.server.stats().delegations, 1);
    node.agents.let_go.notify_one();
    until("it is done", || node.server.stats().delegations_ended(Ending::Done) == 1).await;
    node.end().await;
}

#[tokio::test]
async fn one_key_is_one_delegation() {
    let node = Node::start().await;
    let client = node.client("ct111");
    let target = node.target();
    let (one, two) = (outgoing("slow", "k"), outgoing("slow", "k"));
    let mut first = client.delegate(&target, &one).await.unwrap();
    assert!(matches!(first.next().await.unwrap(), Heard::Begun { .. }));
    // Sent again while it is under way, by another connection, and once more when it is over.
    let second = client.delegate(&target, &two).await.unwrap();
    node.agents.let_go.notify_one();
    assert_eq!(first.outcome().await.unwrap().response, "at last");
    assert_eq!(second.outcome().await.unwrap().response, "at last");
    let third = client.delegate(&target, &two).await.unwrap();
    assert_eq!(third.outcome().await.unwrap().response, "at last");
    assert_eq!(node.agents.times(), 1);
    // Another request under the key is refused; another caller's key is another key.
    let error = client.delegate(&target, &outgoing("echo", "k")).await.unwrap_err();
    assert!(
        matches!(&error, AskError::Refused { status: 409, fault } if fault.code == Code::Conflict),
        "{error:?}"
    );
    let mut theirs = outgoing("echo", "k");
    theirs.request.from_agent = "opus".to_owned();
    node.client("guest").delegate(&target, &theirs).await.unwrap().outcome().await.unwrap();
    assert_eq!(node.agents.times(), 2);
    node.end().await;
}

#[tokio::test]
async fn who_leaves_cancels_and_who_comes_back_in_time_does_not() {
    let limits = Limits { orphaned: Duration::from_millis(300), ..Limits::default() };
    let node = Node::with(limits, vec![], Default::default()).await;
    let body = json!({"fromAgent": "opus", "toAgent": "slow", "message": "go"}).to_string();
    // Without a key it ends with the connection.
    let mut stream = node.raw("ct111").await;
    tokio::io::AsyncWriteExt::write_all(&mut stream, request("POST", "/api/message", "", &body).as_bytes())
        .await
        .unwrap();
    until("it is under way", || node.agents.times() == 1).await;
    drop(stream);
    until("it was ended", || node.agents.given_up.load(SeqCst) == 1).await;
    // With one it goes on for whoever comes back.
    let client = node.client("ct111");
    let answering = client.delegate(&node.target(), &outgoing("slow", "k")).await.unwrap();
    drop(answering);
    let again = client.delegate(&node.target(), &outgoing("slow", "k")).await.unwrap();
    node.agents.let_go.notify_one();
    assert_eq!(again.outcome().await.unwrap().response, "at last");
    assert_eq!((node.agents.times(), node.agents.given_up.load(SeqCst)), (2, 1));
    // And is ended when nobody does.
    drop(client.delegate(&node.target(), &outgoing("slow", "l")).await.unwrap());
    until("it was ended", || node.agents.given_up.load(SeqCst) == 2).await;
    until("it is over", || node.server.stats().delegations == 0).await;
    let error =
        client.delegate(&node.target(), &outgoing("slow", "l")).await.unwrap().outcome().await.unwrap_err();
    assert!(matches!(&error, AskError::Refused { status: 409, .. }), "{error:?}");
    node.end().await;
}

#[tokio::test]
async fn a_shutdown_ends_what_is_under_way_and_says_so() {
    let limits = Limits { shutdown: Duration::from_millis(100), ..Limits::default() };
    let node = Node::with(limits, vec![], Default::default()).await;
    let answering = node.client("ct111").delegate(&node.target(), &outgoing("slow", "k")).await.unwrap();
    let (outcome, ()) = tokio::join!(answering.outcome(), node.server.shutdown());
    assert!(outcome.is_err(), "{outcome:?}");
    assert_eq!(node.agents.given_up.load(SeqCst), 1);
    node.end().await;
}

#[tokio::test]
async fn there_are_only_so_many_at_a_time() {
    let limits = Limits { delegations_of_one_max: 2, ..Limits::default() };
    let node = Node::with(limits, vec![], Default::default()).await;
    let client = node.client("ct111");
    let _one = client.delegate(&node.target(), &outgoing("slow", "1")).await.unwrap();
    let _two = client.delegate(&node.target(), &outgoing("slow", "2")).await.unwrap();
    let error = client.delegate(&node.target(), &outgoing("slow", "3")).await.unwrap_err();
    assert!(
        matches!(&error, AskError::Refused { status: 429, fault } if fault.code == Code::Busy),
        "{error:?}"
    );
    // Another node is not held up by it.
    let mut theirs = outgoing("echo", "4");
    theirs.request.from_agent = "opus".to_owned();
    node.client("guest").delegate(&node.target(), &theirs).await.unwrap().outcome().await.unwrap();
    drop((_one, _two));
    node.server.shutdown().await;
}

/// A chain of delegations among these agents, each at the node of this seed.
fn chain(scope: &ScopeId, stations: &[(u8, &str)]) -> SignedChain {
    let key = |seed: u8| NodeKey::from_seed([seed; 32]);
    let at = |(seed, agent): (u8, &str)| AgentAt { node: key(seed).node_id(), agent: agent.parse().unwrap() };
    let session = SessionId::from_uuid(uuid::Uuid::now_v7());
    let hop =
        |pair: &[(u8, &str)]| Hop { from: at(pair[0]), session, to: at(pair[1]), budget: Budget::UNBOUNDED };
    let mut pairs = stations.windows(2);
    let first = pairs.next().unwrap();
    let mut signed = SignedChain::begin(&key(first[0].0), scope, hop(first)).unwrap();
    for pair in pairs {
        let now = mesh_identity::UnixTime::now();
        let here = key(pair[0].0).node_id();
        let before = signed.clone();
        let last = stations.iter().position(|station| *station == pair[0]).unwrap();
        let from = key(stations[last - 1].0).node_id();
        let verified = before.verify(scope, &from, &here, now).unwrap();
        signed = verified.extend(&key(pair[0].0), scope, hop(pair)).unwrap();
    }
    signed
}

#[tokio::test]
async fn depth_and_loops_are_read_from_a_signed_header() {
    let node = Node::start().await;
    // The node under test is the one of seed 1; the caller is that of seed 2.
    let mut spec = Spec::of("ct111", 2);
    spec.node = Some(NodeKey::from_seed([2; 32]).node_id());
    let client = node.client_of(&spec);
    let scope = node.agents.scope;
    let ask = async |stations: &[(u8, &str)], scope: &ScopeId, said: Option<u32>, key: &str| {
        let mut order = outgoing("echo", key);
        order.chain = Some(chain(scope, stations));
        order.request.chain_depth = said;
        match client.delegate(&node.target(), &order).await {
            Ok(answering) => answering
                .outcome()
                .await
                .map(|_| node.agents.delivered.lock().unwrap().last().unwrap().clone()),
            Err(error) => Err(error),
        }
    };
    let refused = |outcome: Result<_, AskError>| match outcome {
        Err(AskError::Refused { status, fault }) => (status, fault.message),
        other => panic!("{:?}", other.map(|_: mesh_sessions::channel::Delegation| ())),
    };
    let one = ask(&[(2, "opus"), (1, "echo")], &scope, None, "1").await.unwrap();
    assert_eq!((one.depth, one.chain.map(|chain| chain.depth())), (1, Some(1)));
    // What the body says only ever raises it.
    let raised = ask(&[(2, "opus"), (1, "echo")], &scope, Some(2), "2").await.unwrap();
    assert_eq!(raised.depth, 3);
    let lowered = ask(&[(4, "a"), (3, "b"), (2, "opus"), (1, "echo")], &scope, Some(0), "3").await.unwrap();
    assert_eq!(lowered.depth, 3);
    let (status, why) = refused(ask(&[(2, "opus"), (1, "echo")], &scope, Some(3), "4").await);
    assert_eq!((status, why.as_str()), (508, "delegated 4 deep; at most 3 is allowed"));
    // Of another scope, for another node, or from another one, it is not believed.
    let other = ScopeId::lan(Some(b"another scope"));
    assert_eq!(refused(ask(&[(2, "opus"), (1, "echo")], &other, None, "5").await).0, 403);
    assert_eq!(refused(ask(&[(2, "opus"), (9, "echo")], &scope, None, "6").await).0, 403);
    assert_eq!(refused(ask(&[(3, "opus"), (1, "echo")], &scope, None, "7").await).0, 403);
    assert_eq!(node.agents.times(), 3);
    node.end().await;
}

#[tokio::test]
async fn without_a_node_id_the_body_counts_the_depth() {
    let node = Node::start().await;
    let of = |depth: u32| json!({"fromAgent": "opus", "message": "m", "chainDepth": depth});
    for (depth, status) in [(0, 200), (2, 200), (3, 508), (u32::MAX, 508)] {
        assert_eq!(ask(&node, "ct111", "POST", "/api/message", "", &of(depth)).await.0, status, "{depth}");
    }
    let header = format!("x-mesh-chain: {}\r\n", chain(&node.agents.scope, &[(2, "opus"), (1, "echo")]));
    let (status, body): (u16, Value) = ask(&node, "ct111", "POST", "/api/message", &header, &of(0)).await;
    assert_eq!((status, &body["error"]["code"]), (400, &json!("bad_request")));
    node.end().await;
}
