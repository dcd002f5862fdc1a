//! What callers see over TCP when all goes well, and what they are refused.

use std::time::Duration;

use mesh_inference::backend::{BackendState, Loading, Secret};
use mesh_inference::gateway::{Gateway, Listen, NoPeers, StartError};
use std::sync::Arc;

use crate::gateway_support::*;

#[tokio::test]
async fn the_body_reaches_the_backend_byte_for_byte() {
    let stub = Stub::start(|_| json("{\"ok\":1}")).await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    let body =
        "{ \"messages\":[{\"content\":\"\\\"model\\\":\\\"other\\\"\"}],\n\t\"model\" : \"m\", \"x\":1e400 }";
    let answer = front.chat(body).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "{\"ok\":1}"));
    assert_eq!(stub.last().body, body.as_bytes());
    assert_eq!(stub.last().line, "POST /v1/chat/completions HTTP/1.1");
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn each_request_of_a_connection_is_routed_by_its_own_model() {
    let a = Stub::start(|_| json("\"a\"")).await;
    let b = Stub::start(|_| json("\"b\"")).await;
    let ((_s, first), (_t, second)) = (backend("a", a.addr), backend("b", b.addr));
    let front = Front::start(vec![first, second]).await;
    let mut caller = front.caller().await;
    for model in ["a", "b", "b", "a"] {
        caller.send(&post("/v1/completions", &format!("{{\"model\":\"{model}\"}}"))).await;
        assert_eq!(caller.answer().await.text(), format!("\"{model}\""));
    }
    // Pipelined: all requests before the first answer.
    let all: Vec<u8> = ["b", "a", "a", "b"]
        .iter()
        .flat_map(|m| post("/v1/embeddings", &format!("{{\"model\":\"{m}\"}}")))
        .collect();
    caller.send(&all).await;
    for model in ["b", "a", "a", "b"] {
        assert_eq!(caller.answer().await.text(), format!("\"{model}\""));
    }
    assert_eq!((a.count(), b.count()), (4, 4));
    // The backends' connections were kept.
    assert_eq!(a.last().connection, 1);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn headers_split_over_packets_are_put_together() {
    let stub = Stub::start(|_| json("1")).await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    let mut caller = front.caller().await;
    for byte in post("/v1/responses", "{\"model\":\"m\"}") {
        caller.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(caller.answer().await.status, 200);
    assert_eq!(stub.last().line, "POST /v1/responses HTTP/1.1");
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn chunked_request_bodies_are_taken() {
    let stub = Stub::start(|_| json("1")).await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    let mut caller = front.caller().await;
    caller
        .send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    for piece in ["{\"mo", "del\":", "\"m\"}"] {
        caller.send(&chunk(piece.as_bytes())).await;
    }
    caller.send(LAST_CHUNK).await;
    assert_eq!(caller.answer().await.status, 200);
    assert_eq!(stub.last().body, b"{\"model\":\"m\"}");
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn credentials_and_queries_do_not_travel() {
    let stub = Stub::start(|_| {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\naccess-control-allow-origin: *\r\nset-cookie: a=b\r\nx-kept: 1\r\n\r\n{}";
        Act::Raw(head.as_bytes().to_vec())
    })
    .await;
    let (_state, mut backend) = backend("m", stub.addr);
    backend.auth = Some(Secret::new("providers-key"));
    backend.url = format!("http://{}/openai/v1/", stub.addr).parse().unwrap();
    backend.upstream_model = Some("vendor/\"m\"".into());
    let front = Front::start(vec![backend]).await;
    let mut caller = front.caller().await;
    let headers = [
        ("authorization", "Bearer callers-key"),
        ("cookie", "c=d"),
        ("x-request-id", "req-7"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("connection", "keep-alive, x-odd"),
        ("x-odd", "1"),
    ];
    let body = "{\"a\":\"model\", \"model\":\"m\", \"base_url\":\"http://evil.example\"}";
    caller
        .send(&with_headers("POST", "/v1/chat/completions?base_url=http://evil.example/../x", &headers, body))
        .await;
    let answer = caller.answer().await;
    assert_eq!(answer.status, 200);
    let seen = stub.last();
    assert_eq!(seen.line, "POST /openai/v1/chat/completions HTTP/1.1");
    assert_eq!(seen.header("authorization"), Some("Bearer providers-key"));
    assert_eq!(seen.header("host"), Some(stub.addr.to_string().as_str()));
    assert_eq!((seen.header("cookie"), seen.header("x-odd")), (None, None));
    assert_eq!(seen.header("x-request-id"), Some("req-7"));
    assert!(seen.header("traceparent").is_some());
    assert_eq!(seen.body, body.replace("\"model\":\"m\"", "\"model\":\"vendor/\\\"m\\\"\"").as_bytes());
    assert_eq!(answer.header("x-request-id"), Some("req-7"));
    assert_eq!((answer.header("access-control-allow-origin"), answer.header("set-cookie")), (None, None));
    assert_eq!(answer.header("x-kept"), Some("1"));
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn models_are_listed_and_shown() {
    let ((_s, first), (loading, second)) =
        (backend("b", "127.0.0.1:1".parse().unwrap()), backend("org/a b", "127.0.0.1:1".parse().unwrap()));
    loading.send_replace(BackendState::Loading(Loading::default()));
    let front = Front::start(vec![first.clone(), second, first]).await;
    let mut caller = front.caller().await;
    caller.send(&get("/v1/models")).await;
    let list = caller.answer().await.json();
    let ids: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["b", "org/a b"]);
    assert_eq!((&list["object"], &list["data"][1]["ready"]), (&"list".into(), &false.into()));
    caller.send(&get("/v1/models/org/a%20b")).await;
    assert_eq!(caller.answer().await.json()["object"], "model");
    caller.send(&get("/v1/models/none")).await;
    let answer = caller.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "model_not_found"));
    caller.send(&get("/health")).await;
    assert_eq!(caller.answer().await.text(), "{\"status\":\"ok\"}");
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn requests_without_a_clear_model_are_refused() {
    let stub = Stub::start(|_| json("1")).await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    for (body, status, code) in [
        ("{\"model\":\"m\",\"model\":\"m\"}", 400, "duplicate_parameter"),
        ("{\"messages\":[{\"model\":\"m\"}]}", 400, "missing_required_parameter"),
        ("{\"model\":7}", 400, "invalid_type"),
        ("{\"model\":\"m\"", 400, "invalid_json"),
        ("", 400, "invalid_json"),
        ("{\"model\":\"M\"}", 404, "model_not_found"),
    ] {
        let answer = front.chat(body).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{body}");
        assert!(answer.header("access-control-allow-origin").is_none());
    }
    let answer = front.chat("{\"model\":\"M\"}").await;
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("Known models: m"), "{answer:?}");
    assert_eq!(stub.count(), 0);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused() {
    let stub = Stub::start(|_| json("1")).await;
    let (_state, backend) = backend("m", stub.addr);
    let front = Front::start(vec![backend]).await;
    let own = front.gateway.local_addr().to_string();
    let origin = format!("http://{own}");
    let body = "{\"model\":\"m\"}";
    let cases: [(&[(&str, &str)], u16); 7] = [
        (&[("host", "evil.example")], 403),
        (&[("host", "127.0.0.1.evil.example:9337")], 403),
        (&[("origin", "http://evil.example")], 403),
        (&[("origin", "null")], 403),
        (&[("host", &own), ("origin", "http://127.0.0.1:3131")], 403),
        (&[("host", &own), ("origin", &origin)], 200),
        (&[("host", "[::1]:9337")], 200),
    ];
    for (headers, status) in cases {
        let mut caller = front.caller().await;
        caller.send(&with_headers("POST", "/v1/chat/completions", headers, body)).await;
        assert_eq!(caller.answer().await.status, status, "{headers:?}");
    }
    let mut caller = front.caller().await;
    caller.send(&with_headers("OPTIONS", "/v1/chat/completions", &[], "")).await;
    assert_eq!(caller.answer().await.status, 405);
    let mut caller = front.caller().await;
    caller.send(b"POST http://evil.example/v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(caller.answer().await.status, 403);
    let mut caller = front.caller().await;
    caller.send(b"GET /v1/models HTTP/1.1\r\n\r\n").await;
    assert_eq!(caller.answer().await.status, 400);
    assert_eq!(stub.count(), 2);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn a_bind_beyond_loopback_needs_a_key_and_asks_for_it() {
    let mut open = config();
    open.listen = Listen::Exactly("0.0.0.0:0".parse().unwrap());
    let refused = Gateway::start(open.clone(), Default::default(), Arc::new(NoPeers), None).await;
    assert!(matches!(refused, Err(StartError::NeedsKey(_))));
    open.api_key = Some(Secret::new("k-1"));
    let front = Front::with(open, Vec::new(), Arc::new(NoPeers)).await;
    let port = front.gateway.local_addr().port();
    let mut caller = Caller::to(([127, 0, 0, 1], port).into()).await;
    for (key, status) in [(None, 401), (Some("Bearer k-2"), 401), (Some("Bearer k-1"), 200)] {
        let headers: Vec<_> = key.map(|key| ("authorization", key)).into_iter().collect();
        caller.send(&with_headers("GET", "/v1/models", &headers, "")).await;
        assert_eq!(caller.answer().await.status, status);
    }
    caller.send(&get("/health")).await;
    assert_eq!(caller.answer().await.status, 200);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn a_default_port_moves_and_an_asked_one_does_not() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let mut asked = config();
    asked.listen = Listen::Exactly(addr);
    let refused = Gateway::start(asked.clone(), Default::default(), Arc::new(NoPeers), None).await;
    assert!(matches!(refused, Err(StartError::Bind { addr: at, .. }) if at == addr));
    asked.listen = Listen::FirstFreeFrom(addr);
    let gateway = Gateway::start(asked, Default::default(), Arc::new(NoPeers), None).await.unwrap();
    assert!(gateway.local_addr().port() > addr.port());
    gateway.shutdown().await;
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_unread() {
    let mut small = config();
    small.body_bytes_max = 1000;
    let front = Front::with(small, Vec::new(), Arc::new(NoPeers)).await;
    // Announced: answered though not one byte of the body was sent.
    let mut caller = front.caller().await;
    caller
        .send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n")
        .await;
    let answer = caller.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "request_too_large"));
    // Not announced: cut off at the limit, though more is on its way.
    let mut caller = front.caller().await;
    caller
        .send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    for _ in 0..3 {
        caller.send(&chunk(&[b' '; 500])).await;
    }
    assert_eq!(caller.answer().await.status, 413);
    let mut caller = front.caller().await;
    caller.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 18446744073709551616\r\n\r\n").await;
    assert_eq!(caller.answer().await.status, 400);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn memory_for_bodies_is_shared_and_bounded() {
    let stub = Stub::start(|_| json("1")).await;
    let (_state, backend) = backend("m", stub.addr);
    let mut small = config();
    small.body_memory_max = 10 * 1024;
    let front = Front::with(small, vec![backend], Arc::new(NoPeers)).await;
    let mut slow = front.caller().await;
    slow.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9000\r\n\r\n{")
        .await;
    let big = format!("{{\"model\":\"m\",\"x\":\"{}\"}}", "x".repeat(4000));
    mesh_transport::testing::until("the slow body takes its share", || async {
        front.chat(&big).await.status == 503
    })
    .await;
    assert_eq!(front.chat("{\"model\":\"m\"}").await.status, 200);
    drop(slow);
    mesh_transport::testing::until("the share comes back", || async { front.chat(&big).await.status == 200 })
        .await;
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn slow_headers_bodies_and_idle_connections_end() {
    let mut hasty = config();
    hasty.header_timeout = Duration::from_millis(50);
    hasty.body_timeout = Duration::from_millis(50);
    hasty.idle_timeout = Duration::from_millis(50);
    let front = Front::with(hasty, Vec::new(), Arc::new(NoPeers)).await;
    front.caller().await.closed().await;
    let mut half = front.caller().await;
    half.send(b"GET /health HTTP/1.1\r\nhost: local").await;
    half.closed().await;
    let mut idle = front.caller().await;
    idle.send(&get("/health")).await;
    assert_eq!(idle.answer().await.status, 200);
    idle.closed().await;
    let mut slow = front.caller().await;
    slow.send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n{").await;
    let answer = slow.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (408, "request_timeout"));
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn headers_begun_on_a_kept_connection_end_in_time_too() {
    let mut hasty = config();
    hasty.header_timeout = Duration::from_millis(50);
    let front = Front::with(hasty, Vec::new(), Arc::new(NoPeers)).await;
    let mut caller = front.caller().await;
    caller.send(&get("/health")).await;
    assert_eq!(caller.answer().await.status, 200);
    caller.send(b"GET /hea").await;
    caller.closed().await;
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn silent_connections_are_capped() {
    let mut capped = config();
    capped.connections_max = Some(3);
    let front = Front::with(capped, Vec::new(), Arc::new(NoPeers)).await;
    let silent = [front.caller().await, front.caller().await, front.caller().await];
    let mut refused = front.caller().await;
    let answer = refused.answer().await;
    assert_eq!(
        (answer.status, answer.code().as_str(), answer.header("retry-after")),
        (503, "too_busy", Some("1"))
    );
    assert_eq!(front.gateway.stats().connections, 3);
    drop(silent);
    mesh_transport::testing::until("room again", || async { front.gateway.stats().connections < 3 }).await;
    let mut caller = front.caller().await;
    caller.send(&get("/health")).await;
    assert_eq!(caller.answer().await.status, 200);
    front.gateway.shutdown().await;
}

#[tokio::test]
async fn a_conversation_stays_at_its_backend_while_that_has_room() {
    let stubs = [Stub::start(|_| json("1")).await, Stub::start(|_| json("2")).await];
    let states: Vec<_> = stubs.iter().map(|stub| backend("m", stub.addr)).collect();
    let front = Front::start(states.iter().map(|(_, backend)| backend.clone()).collect()).await;
    let say = |text: &str, more: &str| {
        format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}{more}]}}"#)
    };
    let more = r#",{"role":"assistant","content":"x"},{"role":"user","content":"y"}"#;
    // With nothing else under way the first backend would get them all.
    states[0].0.send_replace(BackendState::Loading(Loading::default()));
    assert_eq!(front.chat(&say("one", "")).await.text(), "2");
    states[0].0.send_replace(BackendState::Ready);
    assert_eq!(front.chat(&say("one", more)).await.text(), "2");
    assert_eq!(front.chat(&say("two", "")).await.text(), "1", "another conversation");
    states[1].0.send_replace(BackendState::Loading(Loading::default()));
    assert_eq!(front.chat(&say("one", more)).await.text(), "1", "it is not ready");
    states[1].0.send_replace(BackendState::Ready);
    assert_eq!(front.chat(&say("one", more)).await.text(), "1", "where it was last");
    front.gateway.shutdown().await;
}
