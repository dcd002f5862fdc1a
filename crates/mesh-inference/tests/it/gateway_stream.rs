//! Streams, failures and leaving: what passes, what is told, what is freed.

use std::sync::Arc;
use std::time::Duration;

use mesh_inference::backend::{Backend, BackendKind, BackendState, Loading};
use mesh_inference::gateway::NoPeers;
use mesh_transport::testing::until;

use crate::gateway_support::*;

const CHAT: &str = "{\"model\":\"m\",\"stream\":true}";

#[tokio::test]
async fn streams_pass_byte_exact_however_they_are_cut() {
    let text =
        "data: {\"a\":\"ü\u{1F600}\"}\r\n\r\n: comment\n\nevent: x\ndata: 1\ndata: 2\n\ndata: [DONE]\n\n";
    let stub = Stub::start(move |_| {
        let mut pieces = vec![sse_head()];
        // Odd cuts, through characters, lines and chunks alike.
        for piece in text.as_bytes().chunks(3) {
            let whole = chunk(piece);
            let (front, back) = whole.split_at(whole.len() / 2);
            pieces.extend([front.to_vec(), back.to_vec()]);
        }
        pieces.push(LAST_CHUNK.to_vec());
        Act::Pieces(pieces)
    })
    .await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    let mut caller = front.caller().await;
    for _ in 0..2 {
        caller.send(&post("/v1/chat/completions", CHAT)).await;
        let answer = caller.answer().await;
        assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, text, true));
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    }
    assert_eq!(stub.last().connection, 1);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn each_piece_is_passed_at_once() {
    let stub = Stub::start(|_| Act::RawThenHang([sse_head(), chunk(b"data: 1\n\n")].concat())).await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    let mut caller = front.caller().await;
    caller.send(&post("/v1/chat/completions", CHAT)).await;
    // The backend sends nothing more, so this would wait for ever behind any buffer.
    caller.until("data: 1\n\n").await;
    drop(caller);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn a_caller_that_leaves_frees_the_backend() {
    let mut stub = Stub::start(|seen| match seen.line.as_str() {
        // Before the head of the answer.
        "POST /v1/completions HTTP/1.1" => Act::RawThenHang(Vec::new()),
        // After the head, before the body.
        "POST /v1/responses HTTP/1.1" => Act::RawThenHang(sse_head()),
        // In the middle.
        _ => Act::RawThenHang([sse_head(), chunk(b"data: 1\n\n")].concat()),
    })
    .await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    for (count, path) in ["/v1/completions", "/v1/responses", "/v1/chat/completions"].iter().enumerate() {
        let mut caller = front.caller().await;
        caller.send(&post(path, CHAT)).await;
        until("the backend has it", || async { stub.count() == count + 1 }).await;
        if *path == "/v1/chat/completions" {
            caller.until("data: 1").await;
        }
        drop(caller);
        stub.wait_left(count + 1).await;
    }
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn a_stream_cut_in_the_middle_ends_in_one_declared_error() {
    for (sent, gap) in [("data: 1\n\n", ""), ("data: 1\n", "\n"), ("data: {\"par", "\n\n")] {
        let stub =
            Stub::start(move |_| Act::RawThenClose([sse_head(), chunk(sent.as_bytes())].concat())).await;
        let (_state, backend) = backend("m", stub.addr);
        let backend = Backend { kind: BackendKind::Provider, ..backend };
        let front = Front::start(vec![backend]).await;
        let answer = front.chat(CHAT).await;
        assert!(answer.complete, "{answer:?}");
        let text = answer.text();
        let error = text
            .strip_prefix(sent)
            .and_then(|rest| rest.strip_prefix(gap))
            .and_then(|rest| rest.strip_prefix("data: "));
        let error: serde_json::Value =
            serde_json::from_str(error.unwrap_or_else(|| panic!("{text:?}"))).unwrap();
        assert_eq!(error["error"]["code"], "upstream_lost");
        assert!(!text.contains("[DONE]"));
        assert_eq!(stub.count(), 1);
        front.gateway.shutdown().await;
    }
}

#[tokio::test]
async fn a_responses_stream_fails_in_its_own_form() {
    let stub =
        Stub::start(|_| Act::RawThenClose([sse_head(), chunk(b"event: a\ndata: {}\n\n")].concat())).await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    let mut caller = front.caller().await;
    caller.send(&post("/v1/responses", CHAT)).await;
    let text = caller.answer().await.text();
    assert!(text.starts_with("event: a\ndata: {}\n\nevent: error\ndata: {"), "{text}");
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn a_stream_that_was_complete_is_not_called_broken() {
    let stub =
        Stub::start(|_| Act::RawThenClose([sse_head(), chunk(b"data: 1\n\ndata: [DONE]\n\n")].concat()))
            .await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    assert_eq!(front.chat(CHAT).await.text(), "data: 1\n\ndata: [DONE]\n\n");
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn an_answer_cut_in_its_announced_length_is_cut_for_the_caller_too() {
    let stub =
        Stub::start(|_| Act::RawThenClose(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"half".to_vec()))
            .await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    let answer = front.chat("{\"model\":\"m\"}").await;
    assert!(!answer.complete, "{answer:?}");
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn a_silent_backend_is_given_up() {
    let mut stub = Stub::start(|_| Act::RawThenHang([sse_head(), chunk(b"data: 1\n\n")].concat())).await;
    let (_state, backend) = backend("m", stub.addr);
    let mut hasty = config();
    hasty.silence_max = Duration::from_millis(50);
    let front = Front::with(hasty, vec![backend], Arc::new(NoPeers)).await;
    let answer = front.chat(CHAT).await;
    assert!(answer.text().contains("upstream_lost"), "{answer:?}");
    stub.wait_left(1).await;
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn the_next_backend_takes_over_before_the_first_byte() {
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dying = Stub::start(|_| Act::RawThenClose(Vec::new())).await;
    let headed = Stub::start(|_| Act::RawThenClose(sse_head())).await;
    let loading = Stub::start(|_| Act::Raw(answer(503, "application/json", "{}"))).await;
    let full = Stub::start(|_| Act::Raw(answer(429, "application/json", "{}"))).await;
    let well = Stub::start(|_| json("\"well\"")).await;
    let list: Vec<_> = [refusing, dying.addr, headed.addr, loading.addr, full.addr, well.addr]
        .map(|addr| backend("m", addr))
        .into();
    let front = Front::start(list.iter().map(|(_, backend)| backend.clone()).collect()).await;
    assert_eq!(front.chat(CHAT).await.text(), "\"well\"");
    for stub in [&dying, &headed, &loading, &full, &well] {
        assert_eq!(stub.count(), 1);
    }
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn when_nobody_answers_the_error_lists_what_was_tried() {
    let dying = Stub::start(|_| Act::RawThenClose(Vec::new())).await;
    let (_state, backend) = backend("m", dying.addr);
    let front = Front::start(vec![backend]).await;
    let answer = front.chat(CHAT).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "upstream_failed"));
    assert!(
        answer.text().contains("this node: it closed the connection without an answer"),
        "{}",
        answer.text()
    );
    assert!(answer.header("retry-after").is_some());
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn a_backend_that_loads_answers_503_with_the_reason() {
    let stub = Stub::start(|_| json("1")).await;
    let (state, backend) = backend("m", stub.addr);
    state.send_replace(BackendState::Loading(Loading {
        elapsed: Duration::from_secs(3),
        ..Loading::default()
    }));
    let front = Front::start(vec![backend]).await;
    let answer = front.chat(CHAT).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "model_not_ready"));
    assert!(answer.text().contains("loading (3 s"), "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
    state.send_replace(BackendState::Ready);
    assert_eq!(front.chat(CHAT).await.status, 200);
    assert_eq!(stub.count(), 1);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn a_full_backend_answers_429() {
    let mut stub = Stub::start(|_| Act::RawThenHang([sse_head(), chunk(b"data: 1\n\n")].concat())).await;
    let (_state, mut backend) = backend("m", stub.addr);
    backend.slots = Some(1);
    let mut narrow = config();
    narrow.backend_queue_max = 1;
    let front = Front::with(narrow, vec![backend], Arc::new(NoPeers)).await;
    let mut callers = [front.caller().await, front.caller().await];
    for caller in &mut callers {
        caller.send(&post("/v1/chat/completions", CHAT)).await;
        caller.until("data: 1").await;
    }
    let answer = front.chat(CHAT).await;
    assert_eq!((answer.status, answer.code().as_str()), (429, "full"));
    assert!(answer.header("retry-after").is_some());
    let [first, _second] = callers;
    drop(first);
    stub.wait_left(1).await;
    let mut caller = front.caller().await;
    caller.send(&post("/v1/chat/completions", CHAT)).await;
    caller.until("data: 1").await;
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn the_backends_own_errors_pass_unchanged() {
    let stub =
        Stub::start(|_| Act::Raw(answer(400, "application/json", "{\"error\":{\"message\":\"too long\"}}")))
            .await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    let answer = front.chat(CHAT).await;
    assert_eq!((answer.status, answer.text().as_str()), (400, "{\"error\":{\"message\":\"too long\"}}"));
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn a_kept_connection_closed_by_the_backend_costs_nothing() {
    let stub = Stub::start(|_| Act::RawThenClose(answer(200, "application/json", "1"))).await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    let mut caller = front.caller().await;
    for _ in 0..20 {
        caller.send(&post("/v1/chat/completions", CHAT)).await;
        assert_eq!(caller.answer().await.status, 200);
    }
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn shutdown_lets_answers_finish_and_refuses_new_callers() {
    let stub = Stub::start(|_| {
        Act::Pieces(vec![
            sse_head(),
            chunk(b"data: 1\n\n"),
            chunk(b"data: 2\n\n"),
            chunk(b"data: 3\n\n"),
            LAST_CHUNK.to_vec(),
        ])
    })
    .await;
    let (_state, backend) = backend("m", stub.addr);
    let mut patient = config();
    patient.drain = Duration::from_secs(10);
    let front = Front::with(patient, vec![backend], Arc::new(NoPeers)).await;
    let mut caller = front.caller().await;
    caller.send(&post("/v1/chat/completions", CHAT)).await;
    caller.until("data: 1").await;
    let ((), answer) = tokio::join!(front.gateway.shutdown(), caller.answer());
    assert_eq!(answer.text(), "data: 1\n\ndata: 2\n\ndata: 3\n\n");
    assert!(tokio::net::TcpStream::connect(front.gateway.local_addr()).await.is_err());
    front.gateway.shutdown().await;
}
