//! Answers that outlive their caller's connection, and the gateway that gave them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mesh_identity::Permissions;
use mesh_inference::gateway::GatewayConfig;
use mesh_transport::memory::Network;
use mesh_transport::testing::{Mesh, until};

use crate::fake_llama::*;
use crate::gateway_mesh::Node;
use crate::gateway_support::*;

const CHAT: &str = r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hi"}]}"#;
/// Events of the whole answer: the role, the tokens, the end, the counts and the mark.
const EVENTS: usize = TOKENS.len() + 4;

fn resumable(body: &str) -> Vec<u8> {
    with_headers("POST", "/v1/chat/completions", &[("x-mesh-resumable", "1")], body)
}

fn resume(id: &str, seen: usize) -> Vec<u8> {
    format!("GET /v1/resume/{id} HTTP/1.1\r\nhost: localhost\r\nlast-event-id: {seen}\r\n\r\n").into_bytes()
}

/// The first stream stops after so many events; later ones are whole.
async fn stopping(events: usize) -> Stub {
    let first = AtomicBool::new(true);
    Stub::start(move |seen| {
        let request = Request::of(seen);
        let answer = request.answer();
        if !request.streams() || !first.swap(false, Ordering::SeqCst) {
            return Act::Raw(answer);
        }
        let ends =
            answer.windows(4).enumerate().filter(|(_, four)| *four == b"\n\n\r\n").map(|(at, _)| at + 4);
        Act::RawThenHang(answer[..ends.take(events).last().unwrap()].to_vec())
    })
    .await
}

/// Reads a resumable answer until it has so many events; returns them and its response id.
async fn begin(caller: &mut Caller, events: usize) -> (String, String) {
    caller.send(&resumable(CHAT)).await;
    caller.until(&format!("id: {events}\n")).await;
    caller.until("\n\n\r\n").await;
    let text = caller.seen_body();
    let id = caller.seen_header("x-mesh-response-id").expect("a response id");
    let end = text.find(&format!("id: {events}\n")).unwrap();
    let end = end + text[end..].find("\n\n").unwrap() + 2;
    (text[..end].to_owned(), id)
}

/// The parts that a caller got, one behind the other, are the whole answer with each event once.
fn check(parts: &[&str]) {
    let heard = Heard::of(&parts.concat());
    assert_eq!(heard.text, TOKENS.concat(), "{parts:?}");
    assert_eq!(heard.usage.as_ref().unwrap()["completion_tokens"], TOKENS.len(), "{parts:?}");
    assert!((1..=EVENTS as u64).eq(heard.ids.iter().copied()), "{parts:?}");
}

#[tokio::test]
async fn an_answer_is_resumed_from_every_event() {
    let stub = Stub::start(well).await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    let mut caller = front.caller().await;
    caller.send(&resumable(CHAT)).await;
    let answer = caller.answer().await;
    let whole = answer.text();
    check(&[&whole]);
    let id = answer.header("x-mesh-response-id").unwrap().to_owned();
    let events: Vec<&str> = whole.split_inclusive("\n\n").filter(|event| event.starts_with("id: ")).collect();
    for seen in 0..=EVENTS {
        caller.send(&resume(&id, seen)).await;
        let rest = caller.answer().await;
        assert_eq!((rest.status, rest.header("x-mesh-response-id")), (200, Some(&*id)));
        assert_eq!(rest.text(), events[seen..].concat(), "from {seen}");
    }
    assert_eq!(stub.count(), 1, "nothing was made again");
    for (id, seen, status) in
        [(&*id, "99", 400), (&id, "x", 400), ("00", "0", 404), (&"0".repeat(32), "0", 404)]
    {
        let get = format!("GET /v1/resume/{id} HTTP/1.1\r\nhost: localhost\r\nlast-event-id: {seen}\r\n\r\n");
        caller.send(get.as_bytes()).await;
        assert_eq!(caller.answer().await.status, status, "{id} from {seen}");
    }
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn a_caller_that_lost_its_connection_gets_the_rest_at_every_event() {
    for events in 1..EVENTS {
        let stub = stopping(events).await;
        let (_state, backend) = backend("m", stub.addr);
        let front = Front::start(vec![backend]).await;
        let mut caller = front.caller().await;
        let (part, id) = begin(&mut caller, events).await;
        drop(caller);
        let mut caller = front.caller().await;
        caller.send(&resume(&id, events)).await;
        check(&[&part, &caller.answer().await.text()]);
        assert_eq!(front.gateway.stats().resumed_total, 1);
        front.gateway.shutdown().await;
    }
}

#[tokio::test]
async fn data_lines_are_those_of_the_backend() {
    let stub = Stub::start(well).await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    let mut caller = front.caller().await;
    caller.send(&resumable(CHAT)).await;
    let text = caller.answer().await.text();
    assert!(text.starts_with("id: 1\ndata: {\"choices\":[{\"delta\":{\"content\":null"), "{text}");
    // A request that asks for less than `1`, or whose answer nobody could go on with, is answered as ever.
    let grammar = CHAT.replace("\"stream\":true", "\"stream\":true,\"grammar\":\"x\"");
    for (headers, body) in
        [(&[("x-mesh-resumable", "0")][..], CHAT), (&[("x-mesh-resumable", "1")], &grammar)]
    {
        caller.send(&with_headers("POST", "/v1/chat/completions", headers, body)).await;
        let answer = caller.answer().await;
        assert!(
            answer.header("x-mesh-response-id").is_none() && !answer.text().contains("id: 1"),
            "{answer:?}"
        );
    }
    front.gateway.shutdown().await;
}

/// A caller's gateway (0), the model's host (1), a member that keeps copies (2), another gateway (3), a client (4).
struct Four {
    network: Network,
    mesh: Mesh,
    nodes: Vec<Node>,
    _state: tokio::sync::watch::Sender<mesh_inference::backend::BackendState>,
}

impl Four {
    async fn start(stub: &Stub) -> Self {
        Self::with_holders(stub, &[2]).await
    }

    async fn with_holders(stub: &Stub, holders: &[usize]) -> Self {
        let network = Network::new(7);
        let mut mesh = Mesh::on(network.clone(), 4).await;
        mesh.add(Permissions::CLIENT).await;
        let (state, backend) = backend("m", stub.addr);
        let mut nodes = Vec::new();
        for at in 0..5 {
            let mut config: GatewayConfig = config();
            config.replicas.accept = holders.contains(&at);
            let list = if at == 1 { vec![backend.clone()] } else { Vec::new() };
            nodes.push(Node::start(&mesh[at], mesh.scope(), config, list).await);
        }
        for gateway in [0, 2, 3, 4] {
            nodes[gateway].hears_of(&mesh, 1, "m");
        }
        for (gateway, holder) in [(0, 2), (3, 2), (0, 3)] {
            mesh[gateway].transport.link(&mesh.scope(), &mesh[holder].id()).await.unwrap();
        }
        Self { network, mesh, nodes, _state: state }
    }

    async fn caller(&self, at: usize) -> Caller {
        Caller::to(self.nodes[at].gateway.local_addr()).await
    }

    async fn shutdown(self) {
        for node in &self.nodes {
            node.gateway.shutdown().await;
        }
        self.mesh.shutdown().await;
    }
}

#[tokio::test]
async fn when_the_gateway_dies_another_one_gives_the_rest_from_every_event() {
    for events in 1..EVENTS {
        let stub = stopping(events).await;
        let four = Four::start(&stub).await;
        let mut caller = four.caller(0).await;
        let (part, id) = begin(&mut caller, events).await;
        assert!(id.ends_with(&four.mesh[2].id().to_string()), "{id}");
        four.network.isolate(four.mesh[0].id());
        for peer in 1..4 {
            four.network.break_connections(four.mesh[0].id(), four.mesh[peer].id());
        }
        drop(caller);
        // Not every event that was sent reached the caller.
        for seen in [events, events - 1] {
            let mut caller = four.caller(3).await;
            caller.send(&resume(&id, seen)).await;
            let answer = caller.answer().await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let had: String = part.split_inclusive("\n\n").take(seen).collect();
            check(&[&had, &answer.text()]);
        }
        four.shutdown().await;
    }
}

#[tokio::test]
async fn a_third_gateway_goes_on_when_the_second_one_dies_too() {
    let stub = stopping(3).await;
    let four = Four::start(&stub).await;
    let mut caller = four.caller(0).await;
    let (part, id) = begin(&mut caller, 3).await;
    drop(caller);
    let mut caller = four.caller(3).await;
    caller.send(&resume(&id, 3)).await;
    check(&[&part, &caller.answer().await.text()]);
    // What the second one made stands in the copy, so that the first one need not make it again.
    let asked = stub.count();
    let mut caller = four.caller(0).await;
    caller.send(&resume(&id, 3)).await;
    check(&[&part, &caller.answer().await.text()]);
    assert_eq!(stub.count(), asked);
    // The holder itself is a gateway as good as any.
    let mut caller = four.caller(2).await;
    caller.send(&resume(&id, 3)).await;
    check(&[&part, &caller.answer().await.text()]);
    four.shutdown().await;
}

#[tokio::test]
async fn copies_are_for_members_and_answers_for_their_holder() {
    let stub = stopping(3).await;
    let four = Four::start(&stub).await;
    let mut caller = four.caller(0).await;
    let (_, id) = begin(&mut caller, 3).await;
    let mut client = four.caller(4).await;
    client.send(&resume(&id, 0)).await;
    let refused = client.answer().await;
    assert_eq!((refused.status, refused.code().as_str()), (404, "response_not_found"));
    // Another id at the right holder, and the right id without its holder.
    let (answer, holder) = id.split_once('.').unwrap();
    for id in [format!("{}.{holder}", "0".repeat(32)), answer.to_owned()] {
        let mut other = four.caller(3).await;
        other.send(&resume(&id, 0)).await;
        assert_eq!(other.answer().await.status, 404);
    }
    let stats = four.nodes[2].gateway.stats();
    assert_eq!((stats.kept_answers, stats.resumed_total), (1, 0));
    drop(caller);
    four.shutdown().await;
}

#[tokio::test]
async fn an_answer_outlives_the_member_that_keeps_its_copy() {
    let go_on = Arc::new(AtomicBool::new(false));
    let gate = go_on.clone();
    let stub = Stub::start(move |seen| {
        let answer = Request::of(seen).answer();
        if gate.load(Ordering::SeqCst) { Act::Raw(answer) } else { Act::RawThenHang(answer[..700].to_vec()) }
    })
    .await;
    let four = Four::start(&stub).await;
    let mut caller = four.caller(0).await;
    caller.send(&resumable(CHAT)).await;
    caller.until("id: 2\n").await;
    let stats = four.nodes[0].gateway.stats();
    assert!(stats.replicated_total >= 2 && stats.resumable_total == 1, "{stats:?}");
    four.network.isolate(four.mesh[2].id());
    four.network.break_connections(four.mesh[0].id(), four.mesh[2].id());
    go_on.store(true, Ordering::SeqCst);
    four.network.break_connections(four.mesh[0].id(), four.mesh[1].id());
    check(&[&caller.answer().await.text()]);
    assert_eq!(four.nodes[0].gateway.stats().replicas_lost_total, 1);
    four.shutdown().await;
}

#[tokio::test]
async fn a_lost_copy_is_made_anew_at_another_member() {
    // The host is released event by event.
    let (release, released) = tokio::sync::watch::channel(3);
    let stub = Stub::start(move |seen| {
        let request = Request::of(seen);
        let answer = request.answer();
        if request.streams() { Act::EventsAsReleased(answer, released.clone()) } else { Act::Raw(answer) }
    })
    .await;
    let five = Four::with_holders(&stub, &[2, 3]).await;
    let mut caller = five.caller(0).await;
    let (_, id) = begin(&mut caller, 3).await;
    let named = |number: usize| five.mesh[number].id().to_string();
    let (first, second) = if id.ends_with(&named(2)) { (2, 3) } else { (3, 2) };
    five.network.isolate(five.mesh[first].id());
    five.network.break_connections(five.mesh[0].id(), five.mesh[first].id());
    release.send_replace(5);
    // From now on the numbers of events say who has the copy.
    caller.until("id: 5.").await;
    caller.until("\n\n\r\n").await;
    let text = caller.seen_body();
    let part: String = text.split_inclusive("\n\n").take(5).collect();
    let line = part.lines().find(|line| line.starts_with("id: 5.")).unwrap();
    assert!(line.ends_with(&named(second)), "{line}");
    let stats = five.nodes[0].gateway.stats();
    assert_eq!((stats.replicas_lost_total, stats.replicas_replaced_total), (1, 1));
    // The first gateway dies, too.
    five.network.isolate(five.mesh[0].id());
    five.network.break_connections(five.mesh[0].id(), five.mesh[second].id());
    drop(caller);
    release.send_replace(usize::MAX);
    let mut caller = five.caller(second).await;
    let last = line.strip_prefix("id: ").unwrap();
    let get = format!("GET /v1/resume/{id} HTTP/1.1\r\nhost: localhost\r\nlast-event-id: {last}\r\n\r\n");
    caller.send(get.as_bytes()).await;
    let rest = caller.answer().await;
    assert_eq!(rest.status, 200, "{}", rest.text());
    check(&[&part, &rest.text()]);
    five.shutdown().await;
}

#[tokio::test]
async fn a_copy_is_forgotten_after_its_time() {
    let stub = Stub::start(well).await;
    let (_state, backend) = backend("m", stub.addr);
    let mut hasty = config();
    hasty.replicas.ttl = std::time::Duration::from_millis(1);
    let front = Front::with(hasty, vec![backend], Arc::new(mesh_inference::gateway::NoPeers)).await;
    let mut caller = front.caller().await;
    caller.send(&resumable(CHAT)).await;
    let id = caller.answer().await.header("x-mesh-response-id").unwrap().to_owned();
    until("nothing is kept", || async { front.gateway.stats().kept_answers == 0 }).await;
    caller.send(&resume(&id, 0)).await;
    assert_eq!(caller.answer().await.status, 404);
    front.gateway.shutdown().await;
}
