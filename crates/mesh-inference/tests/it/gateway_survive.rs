//! Answers that go on when their backend dies: at every byte, at another host or at the same one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_inference::backend::{Backend, BackendKind, BackendState, Backends, Loading};
use mesh_inference::gateway::{Gateway, ModelFacts, NoPeers, NoTarget, PeerRoutes};
use mesh_routing::{InFlight, Target};
use mesh_transport::memory::Network;
use mesh_transport::testing::{Mesh, until};
use serde_json::json;

use crate::fake_llama::*;
use crate::gateway_mesh::Node;
use crate::gateway_support::*;

/// One kind of request, and what a caller must hear.
struct Case {
    path: &'static str,
    body: &'static str,
    heard: Heard,
}

fn heard(text: &str, thoughts: &str, reason: &str, tokens: Option<u64>) -> Heard {
    let usage = tokens.map(|tokens| {
        json!({ "prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": PROMPT_TOKENS + tokens })
    });
    Heard {
        text: text.into(),
        thoughts: thoughts.into(),
        reason: Some(reason.into()),
        usage,
        ..Heard::default()
    }
}

const CHAT: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;

fn cases() -> Vec<Case> {
    let whole = TOKENS.concat();
    vec![
        Case { path: "/v1/chat/completions", body: CHAT, heard: heard(&whole, "", "stop", None) },
        Case {
            path: "/v1/chat/completions",
            body: r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"max_tokens":8,"messages":[{"role":"user","content":"think"}]}"#,
            heard: heard(&TOKENS[..5].concat(), &THOUGHTS.concat(), "length", Some(8)),
        },
        Case {
            path: "/v1/chat/completions",
            body: r#"{"model":"m","stream":true,"max_tokens":3,"messages":[{"role":"user","content":"hi"}]}"#,
            heard: heard(&TOKENS[..3].concat(), "", "length", None),
        },
        Case {
            path: "/v1/completions",
            body: r#"{"model":"m","stream":true,"prompt":"PROMPT:"}"#,
            heard: heard(&whole, "", "stop", Some(TOKENS.len() as u64)),
        },
        Case {
            path: "/v1/completions",
            body: r#"{"model":"m","stream":true,"prompt":"PROMPT:","max_tokens":2}"#,
            heard: heard(&TOKENS[..2].concat(), "", "length", Some(2)),
        },
    ]
}

/// A server that dies in its first stream after so many bytes, and whose port stays closed to the rest when it is not to
/// come back.
async fn dying(cut: Arc<AtomicUsize>, comes_back: bool) -> Stub {
    Stub::start(move |seen| {
        let request = Request::of(seen);
        match cut.swap(usize::MAX, Ordering::SeqCst) {
            usize::MAX if comes_back => Act::Raw(request.answer()),
            usize::MAX => Act::RawThenClose(Vec::new()),
            cut => {
                let answer = request.answer();
                Act::RawThenClose(answer[..cut.min(answer.len())].to_vec())
            }
        }
    })
    .await
}

/// Bytes of the answer to a case. The number of an answer may grow by a digit meanwhile, which the loops allow for.
fn answer_bytes(case: &Case) -> usize {
    let line = format!("POST {} HTTP/1.1", case.path);
    let body = case.body.as_bytes().to_vec();
    Request::of(&Seen { line, headers: Vec::new(), body, connection: 0 }).answer().len() + 40
}

async fn at_every_cut(comes_back: bool) {
    let cut = Arc::new(AtomicUsize::new(usize::MAX));
    let first = dying(cut.clone(), comes_back).await;
    let second = Stub::start(well).await;
    let (_first, one) = backend("m", first.addr);
    let (_second, two) = backend("m", second.addr);
    let front = Front::start(if comes_back { vec![one] } else { vec![one, two] }).await;
    let mut continued = 0;
    for case in cases() {
        for at in 0..answer_bytes(&case) {
            cut.store(at, Ordering::SeqCst);
            let mut caller = front.caller().await;
            // A conversation of its own, since one that was gone on with stays where that was.
            let own = [
                ("PROMPT:", format!("PROMPT{at}:")),
                ("hi\"", format!("hi{at}\"")),
                ("think\"", format!("think{at}\"")),
            ];
            let body = own.iter().fold(case.body.to_owned(), |body, (from, to)| body.replace(from, to));
            caller.send(&post(case.path, &body)).await;
            let answer = caller.answer().await;
            assert!(answer.status == 200 && answer.complete, "cut at {at}: {answer:?}");
            assert_eq!(Heard::of(&answer.text()), case.heard, "cut at {at}: {}", answer.text());
        }
        let stats = front.gateway.stats();
        assert!(stats.continued_total > continued, "{stats:?}");
        assert_eq!(stats.lost_total, 0);
        continued = stats.continued_total;
    }
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn another_host_goes_on_wherever_the_first_one_died() {
    at_every_cut(false).await;
}

#[tokio::test]
async fn the_same_host_goes_on_wherever_it_died() {
    at_every_cut(true).await;
}

#[tokio::test]
async fn what_came_before_the_failure_is_byte_exact_and_comments_come_only_after_it() {
    let cut = Arc::new(AtomicUsize::new(usize::MAX));
    let first = dying(cut.clone(), false).await;
    let second = Stub::start(well).await;
    let (_first, one) = backend("m", first.addr);
    let (_second, two) = backend("m", second.addr);
    let front = Front::start(vec![one, two]).await;
    cut.store(800, Ordering::SeqCst);
    let text = front.chat(CHAT).await.text();
    let (before, after) = text.split_once(": the answer goes on soon\n\n").unwrap();
    assert!(before.ends_with("}\n\n") && !before.contains("\n:"), "{text}");
    let events: Vec<_> = before.trim_end().split("\n\n").collect();
    assert!(
        events.len() >= 3 && events.iter().all(|event| event.starts_with("data: {\"choices\":")),
        "{text}"
    );
    assert!(!after.contains("role"), "{text}");
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn an_answer_survives_one_host_after_another() {
    // Each dies after one more token of its own.
    let hosts = Stub::start(|seen| {
        let request = Request::of(seen);
        let answer = request.answer();
        if !request.streams() {
            return Act::Raw(answer);
        }
        let text = String::from_utf8(answer.clone()).unwrap();
        let events: Vec<usize> = text.match_indices("data: ").map(|(at, _)| at).collect();
        // Role, one token, and half of the next event.
        if events.len() > 4 { Act::RawThenClose(answer[..events[2] + 9].to_vec()) } else { Act::Raw(answer) }
    })
    .await;
    let (_state, backend) = backend("m", hosts.addr);
    let front = Front::start(vec![backend]).await;
    let body = CHAT.replace("\"stream\":true", "\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    let answer = front.chat(&body).await;
    assert_eq!(Heard::of(&answer.text()), heard(&TOKENS.concat(), "", "stop", Some(TOKENS.len() as u64)));
    assert!(front.gateway.stats().continued_total >= 5);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn a_host_that_sends_half_a_token_and_stops_is_replaced() {
    let first = Stub::start(|seen| {
        let answer = Request::of(seen).answer();
        Act::RawThenHang(answer[..answer.len() / 2].to_vec())
    })
    .await;
    let second = Stub::start(well).await;
    let (_first, one) = backend("m", first.addr);
    let (_second, two) = backend("m", second.addr);
    let mut hasty = config();
    hasty.silence_max = Duration::from_millis(50);
    let front = Front::with(hasty, vec![one, two], Arc::new(NoPeers)).await;
    let answer = front.chat(CHAT).await;
    assert_eq!(Heard::of(&answer.text()), heard(&TOKENS.concat(), "", "stop", None));
    assert_eq!((first.count(), second.count()), (1, 1), "the one that hangs still says that it is ready");
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn the_answer_waits_for_a_relaunch() {
    let cut = Arc::new(AtomicUsize::new(700));
    let first = dying(cut, false).await;
    let (state, one) = backend("m", first.addr);
    let backends = Backends::new();
    let id = backends.insert(one);
    let gateway = Gateway::start(config(), backends.clone(), Arc::new(NoPeers), None).await.unwrap();
    let mut caller = Caller::to(gateway.local_addr()).await;
    caller.send(&post("/v1/chat/completions", CHAT)).await;
    caller.until(": the answer goes on soon").await;
    state.send_replace(BackendState::Loading(Loading::default()));
    // It comes back at another port, as llama-server does.
    let second = Stub::start(well).await;
    let (_state, two) = backend("m", second.addr);
    assert!(backends.replace(id, two));
    assert_eq!(Heard::of(&caller.answer().await.text()), heard(&TOKENS.concat(), "", "stop", None));
    gateway.shutdown().await;
}

/// A server that stops in the middle of its answer and does not close, as one that was asked to end.
async fn ending(head: bool) -> Stub {
    Stub::start(move |seen| {
        let answer = Request::of(seen).answer();
        Act::RawThenHang(if head { answer[..answer.len() / 2].to_vec() } else { Vec::new() })
    })
    .await
}

#[tokio::test]
async fn an_answer_does_not_wait_for_a_server_that_was_asked_to_end() {
    for (streams, body) in [(true, CHAT.to_owned()), (false, CHAT.replace("\"stream\":true,", ""))] {
        let mut first = ending(streams).await;
        let (state, one) = backend("m", first.addr);
        let backends = Backends::new();
        let id = backends.insert(one);
        let gateway = Gateway::start(config(), backends.clone(), Arc::new(NoPeers), None).await.unwrap();
        let mut caller = Caller::to(gateway.local_addr()).await;
        caller.send(&post("/v1/chat/completions", &body)).await;
        if streams {
            caller.until(TOKENS[0]).await;
        } else {
            until("it is asked", async || first.count() == 1).await;
        }
        let second = Stub::start(well).await;
        let (_state, two) = backend("m", second.addr);
        backends.insert(two);
        state.send_replace(BackendState::Stopped);
        let answer = caller.answer().await;
        assert_eq!((answer.status, second.count()), (200, 1), "{}", answer.text());
        if streams {
            assert_eq!(Heard::of(&answer.text()), heard(&TOKENS.concat(), "", "stop", None));
        }
        // It ends only once nobody waits for it.
        first.wait_left(1).await;
        backends.remove(id);
        gateway.shutdown().await;
    }
}

#[tokio::test]
async fn a_request_waits_for_its_host_that_is_lost_before_the_first_byte() {
    let first = Stub::start(|_| Act::RawThenClose(Vec::new())).await;
    let (state, one) = backend("m", first.addr);
    let backends = Backends::new();
    let id = backends.insert(one);
    let gateway = Gateway::start(config(), backends.clone(), Arc::new(NoPeers), None).await.unwrap();
    let mut caller = Caller::to(gateway.local_addr()).await;
    let body = CHAT.replace("\"stream\":true,", "");
    caller.send(&post("/v1/chat/completions", &body)).await;
    until("it is asked", async || first.count() > 0).await;
    state.send_replace(BackendState::Loading(Loading::default()));
    let second = Stub::start(well).await;
    let (_state, two) = backend("m", second.addr);
    assert!(backends.replace(id, two));
    let answer = caller.answer().await;
    assert_eq!((answer.status, second.count()), (200, 1), "{}", answer.text());
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_request_that_ends_each_of_its_hosts_is_not_asked_for_ever() {
    let dying = Stub::start(|_| Act::RawThenClose(Vec::new())).await;
    let (_state, only) = backend("m", dying.addr);
    let front = Front::start(vec![only]).await;
    let answer = front.chat(CHAT).await;
    assert_eq!((answer.status, answer.code().as_str(), dying.count()), (503, "upstream_failed", 3));
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn when_nobody_comes_back_the_answer_ends_in_one_declared_error() {
    let cut = Arc::new(AtomicUsize::new(700));
    let first = dying(cut, false).await;
    let (_state, one) = backend("m", first.addr);
    let mut hasty = config();
    hasty.continue_timeout = Duration::from_millis(300);
    let front = Front::with(hasty, vec![one], Arc::new(NoPeers)).await;
    let answer = front.chat(CHAT).await;
    let text = answer.text();
    let heard = Heard::of(&text);
    assert!(answer.complete && TOKENS.concat().starts_with(&heard.text) && !heard.text.is_empty(), "{text}");
    assert_eq!(heard.error.as_deref(), Some("upstream_lost"));
    assert!(text.contains("nobody went on with it within 300ms"), "{text}");
    assert_eq!(front.gateway.stats().lost_total, 1);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_continued_ends_in_one_declared_error() {
    let tool_call = b"data: {\"id\":\"a\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0}]}}]}\n\n";
    let with = |field: &str| CHAT.replace("\"stream\":true", &format!("\"stream\":true,{field}"));
    for (body, why) in [
        (with("\"grammar\":\"root ::= x\""), "it has a grammar"),
        (with("\"n\":2"), "it has several answers"),
        (with("\"response_format\":{\"type\":\"json_object\"}"), "it has a format"),
        (with("\"tools\":[]"), "it has a call of a tool"),
    ] {
        let tools = body.contains("tools");
        let stub = Stub::start(move |seen| {
            if tools {
                return Act::RawThenClose([sse_head(), chunk(tool_call)].concat());
            }
            let answer = Request::of(seen).answer();
            Act::RawThenClose(answer[..700].to_vec())
        })
        .await;
        let (_state, one) = backend("m", stub.addr);
        let front = Front::start(vec![one]).await;
        let text = front.chat(&body).await.text();
        assert_eq!(Heard::of(&text).error.as_deref(), Some("upstream_lost"), "{text}");
        assert!(text.contains(why), "{text}");
        assert_eq!(stub.count(), 1, "nothing was asked twice");
        front.gateway.shutdown().await;
    }
}

#[tokio::test]
async fn a_foreign_provider_neither_is_continued_nor_continues() {
    let cut = Arc::new(AtomicUsize::new(700));
    let foreign = |backend: Backend| Backend { kind: BackendKind::Provider, ..backend };
    let mut hasty = config();
    hasty.continue_timeout = Duration::from_millis(300);
    // Its own answer passes as it is, the half event too.
    let first = dying(cut.clone(), false).await;
    let second = Stub::start(well).await;
    let ((_a, one), (_b, two)) = (backend("m", first.addr), backend("m", second.addr));
    let front = Front::with(hasty.clone(), vec![foreign(one.clone()), two.clone()], Arc::new(NoPeers)).await;
    let text = front.chat(CHAT).await.text();
    assert!(text.contains("upstream_lost") && !text.contains("goes on"), "{text}");
    assert_eq!(second.count(), 0);
    front.gateway.shutdown().await;
    // And it is not asked to go on with another's.
    cut.store(700, Ordering::SeqCst);
    let front = Front::with(hasty, vec![one, foreign(two)], Arc::new(NoPeers)).await;
    let text = front.chat(CHAT).await.text();
    assert_eq!(Heard::of(&text).error.as_deref(), Some("upstream_lost"), "{text}");
    assert_eq!(second.count(), 0);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn a_refusal_to_go_on_is_told_at_once() {
    let cut = Arc::new(AtomicUsize::new(700));
    let first = dying(cut, false).await;
    let second =
        Stub::start(|_| Act::Raw(answer(400, "application/json", "{\"error\":\"context full\"}"))).await;
    let ((_a, one), (_b, two)) = (backend("m", first.addr), backend("m", second.addr));
    let front = Front::start(vec![one, two]).await;
    let text = front.chat(CHAT).await.text();
    assert!(text.contains("context full") && Heard::of(&text).error.is_some(), "{text}");
    assert_eq!(second.count(), 1);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn a_caller_that_leaves_ends_the_search() {
    let cut = Arc::new(AtomicUsize::new(700));
    let first = dying(cut, false).await;
    let (_state, one) = backend("m", first.addr);
    let front = Front::start(vec![one]).await;
    let mut caller = front.caller().await;
    caller.send(&post("/v1/chat/completions", CHAT)).await;
    caller.until(": the answer goes on soon").await;
    drop(caller);
    until("the connection is closed", || async { front.gateway.stats().connections == 0 }).await;
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn another_node_goes_on_when_the_one_that_answers_is_lost() {
    let network = Network::new(7);
    let stub = Stub::start(|seen| {
        let answer = Request::of(seen).answer();
        Act::RawThenHang(answer[..answer.len() / 2].to_vec())
    })
    .await;
    let healthy = Stub::start(well).await;
    let mesh = Mesh::on(network.clone(), 3).await;
    let near = Node::start(&mesh[0], mesh.scope(), config(), Vec::new()).await;
    let (_first, one) = backend("m", stub.addr);
    let (_second, two) = backend("m", healthy.addr);
    let first = Node::start(&mesh[1], mesh.scope(), config(), vec![one]).await;
    let second = Node::start(&mesh[2], mesh.scope(), config(), vec![two]).await;
    near.hears_of(&mesh, 1, "m");
    let mut caller = Caller::to(near.gateway.local_addr()).await;
    caller.send(&post("/v1/chat/completions", CHAT)).await;
    caller.until("\"content\":\" war\"").await;
    near.hears_of(&mesh, 2, "m");
    network.isolate(mesh[1].id());
    network.break_connections(mesh[0].id(), mesh[1].id());
    assert_eq!(Heard::of(&caller.answer().await.text()), heard(&TOKENS.concat(), "", "stop", None));
    // What tells gateways that an answer can be gone on with ends at the first one.
    caller.send(&post("/v1/chat/completions", CHAT)).await;
    assert_eq!(caller.answer().await.header("x-mesh-continues"), None);
    for node in [&near, &first, &second] {
        node.gateway.shutdown().await;
    }
    mesh.shutdown().await;
}

/// Its node lives, so the link to it does not break: the gateway there must not end the answer by a word of its own.
#[tokio::test]
async fn another_node_goes_on_when_the_server_of_the_one_that_answers_dies() {
    for at in [1, 400, 700, 1100] {
        let network = Network::new(7);
        let dying = dying(Arc::new(AtomicUsize::new(at)), false).await;
        let healthy = Stub::start(well).await;
        let mesh = Mesh::on(network, 3).await;
        let near = Node::start(&mesh[0], mesh.scope(), config(), Vec::new()).await;
        let (_first, one) = backend("m", dying.addr);
        let (_second, two) = backend("m", healthy.addr);
        let first = Node::start(&mesh[1], mesh.scope(), config(), vec![one]).await;
        let second = Node::start(&mesh[2], mesh.scope(), config(), vec![two]).await;
        near.hears_of(&mesh, 1, "m");
        near.hears_of(&mesh, 2, "m");
        let mut caller = Caller::to(near.gateway.local_addr()).await;
        // Until it met the one whose server dies.
        for number in 0.. {
            // A conversation stays where it was answered.
            caller.send(&post("/v1/chat/completions", &CHAT.replace("hi", &format!("hi {number}")))).await;
            let text = caller.answer().await.text();
            assert_eq!(Heard::of(&text), heard(&TOKENS.concat(), "", "stop", None), "cut at {at}: {text}");
            if dying.count() > 0 {
                break;
            }
        }
        for node in [&near, &first, &second] {
            node.gateway.shutdown().await;
        }
        mesh.shutdown().await;
    }
}

/// Routing of a model that was dropped everywhere.
struct Dropped;

impl PeerRoutes for Dropped {
    fn route(&self, _: &str, _: u64) -> Result<Vec<Target>, NoTarget> {
        Err(NoTarget::Unknown)
    }

    fn is_dropped(&self, model: &str) -> bool {
        model == "m"
    }

    fn route_to(&self, _: mesh_identity::NodeId, model: &str, draw: u64) -> Result<Vec<Target>, NoTarget> {
        self.route(model, draw)
    }

    fn models(&self) -> Vec<ModelFacts> {
        Vec::new()
    }

    fn begin(&self, _: &Target, _: &str) -> Option<InFlight> {
        None
    }
}

#[tokio::test]
async fn nobody_waits_for_a_model_that_was_dropped() {
    let cut = Arc::new(AtomicUsize::new(700));
    let first = dying(cut, false).await;
    let (_state, only) = backend("m", first.addr);
    let backends = Backends::new();
    let id = backends.insert(only);
    let gateway = Gateway::start(config(), backends.clone(), Arc::new(Dropped), None).await.unwrap();
    let mut caller = Caller::to(gateway.local_addr()).await;
    caller.send(&post("/v1/chat/completions", CHAT)).await;
    caller.until(": the answer goes on soon").await;
    backends.remove(id);
    let text = caller.answer().await.text();
    assert_eq!(Heard::of(&text).error.as_deref(), Some("upstream_lost"), "{text}");
    assert!(text.contains("the model was dropped"), "{text}");
    gateway.shutdown().await;
}
