use std::future::pending;
use std::path::Path;
use std::time::Duration;

use mesh_control::*;
use tokio::net::UnixListener;

use crate::fake::{FakeNode, json, stream};

#[tokio::test]
async fn no_node_says_where_it_looked_and_how_to_start_one() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let client = Client::for_home(folder.path());
    let error = client.status().await.expect_err("nobody listens");
    let socket = folder.path().join("node.sock");
    assert_eq!(error.to_string(), format!("no node is running at {}", socket.display()));
    assert_eq!((error.code(), error.mend()), ("no_node", Some("start one with `qmt-node`")));

    drop(UnixListener::bind(&socket).expect("socket")); // what a killed node leaves behind
    assert!(matches!(client.nodes().await, Err(ClientError::NoNode { .. })));
}

#[tokio::test]
async fn a_path_beyond_a_sockets_length_is_named() {
    let home = Path::new("/tmp").join("x".repeat(120));
    let error = Client::for_home(&home).status().await.expect_err("too long");
    assert!(matches!(error, ClientError::PathTooLong { .. }), "{error}");
}

#[tokio::test]
async fn asks_the_documented_endpoints() {
    let node = FakeNode::start(|(_, path, _)| match path.split('?').next().expect("path") {
        "/api/status" => {
            json(200, r#"{"version":"0.1.0","node_id":"12D3","node_name":"a","pid":1,"uptime_secs":2}"#)
        }
        "/api/invites" => json(
            200,
            r#"{"token":"t","url":"qmt://mesh/join/t","invite_id":"i","scope":"ab","max_uses":1,"qr_version":9}"#,
        ),
        "/api/join" => json(200, r#"{"scope":"ab","name":"home","role":"member","issuer":"12D3"}"#),
        _ => json(200, "[]"),
    });
    assert_eq!(node.client.status().await.expect("status").node_name, "a");
    assert!(node.client.nodes().await.expect("nodes").is_empty());
    let created = node
        .client
        .invite(&InviteRequest { ttl: Some("7d".into()), ..InviteRequest::default() })
        .await
        .expect("invite");
    assert_eq!((created.max_uses, created.expires_at, created.recovery_key_file), (1, None, None));
    let joined = node.client.join(&JoinRequest { token: "abc".into() }).await.expect("join");
    assert_eq!(joined.role, Role::Member);
    node.client.ping(&PingRequest { node: "b".into(), count: Some(3) }).await.expect("ping");
    node.client.routes(Some("org/model q4")).await.expect("routes");
    node.client.doctor().await.expect("doctor");
    let asked: Vec<String> =
        node.asked().iter().map(|(method, path, body)| format!("{method} {path} {body}")).collect();
    assert_eq!(
        asked,
        [
            "GET /api/status ",
            "GET /api/nodes ",
            r#"POST /api/invites {"ttl":"7d"}"#,
            r#"POST /api/join {"token":"abc"}"#,
            r#"POST /api/ping {"node":"b","count":3}"#,
            "GET /api/routes?model=org%2Fmodel%20q4 ",
            "GET /api/doctor ",
        ]
    );
}

#[tokio::test]
async fn a_failure_arrives_typed_with_its_advice() {
    let sent = ApiError::new(ErrorCode::InviteUsedUp, "this invite was used once, as often as it may be")
        .with_mend("ask for a new one");
    let answer = sent.clone();
    let node = FakeNode::start(move |_| json(answer.http_status(), &answer.to_body()));
    let error = node.client.join(&JoinRequest { token: "abc".into() }).await.expect_err("refused");
    assert_eq!((error.code(), error.mend()), ("invite_used_up", Some("ask for a new one")));
    let ClientError::Api(got) = error else { panic!("{error:?}") };
    assert_eq!(got, sent);
}

#[tokio::test]
async fn an_answer_of_another_shape_is_an_error() {
    let node = FakeNode::start(|_| json(200, r#"{"hello":1}"#));
    assert!(matches!(node.client.nodes().await, Err(ClientError::NotUnderstood { what: "/api/nodes", .. })));
}

#[tokio::test]
async fn a_silent_node_ends_in_a_deadline() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let listener = UnixListener::bind(socket_path(folder.path())).expect("socket");
    let short = Deadlines { answer: Duration::from_millis(50), ..Deadlines::default() };
    let client = Client::for_home(folder.path()).with_deadlines(short);
    let error = tokio::select! {
        answer = client.status() => answer.expect_err("nobody answers"),
        () = async { let _held = listener.accept().await; pending::<()>().await } => unreachable!(),
    };
    assert!(matches!(error, ClientError::Deadline { what: "/api/status", .. }), "{error}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let folder = tempfile::tempdir().expect("temporary folder");
    let listener = UnixListener::bind(socket_path(folder.path())).expect("socket");
    let serve = async {
        let (mut stream, _) = listener.accept().await.expect("accept");
        let mut head = [0; 1024];
        assert!(stream.read(&mut head).await.expect("request") > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n[").await.expect("write");
    };
    let client = Client::for_home(folder.path());
    let (answer, ()) = tokio::join!(client.nodes(), serve);
    assert!(matches!(answer, Err(ClientError::Broken(_))), "{answer:?}");
}

#[tokio::test]
async fn events_come_in_order_and_end_with_the_node() {
    let snapshot = Event {
        number: 4,
        at_ms: 1,
        kind: EventKind::Snapshot { status: Box::default(), nodes: vec![], models: vec![] },
    };
    let gone = Event { number: 5, at_ms: 2, kind: EventKind::ModelGone { name: "m".into() } };
    let sent = [snapshot.clone(), gone.clone()];
    let node = FakeNode::start(move |_| {
        let text = format!("{}{HEARTBEAT_FRAME}{}", sent[0].to_sse(), sent[1].to_sse());
        let (first, second) = text.split_at(40); // inside an event
        stream(vec![first.to_owned(), second.to_owned()], true)
    });
    let mut events = node.client.events().await.expect("events");
    assert_eq!(events.next().await.expect("event"), Some(snapshot));
    assert_eq!(events.next().await.expect("event"), Some(gone));
    assert_eq!(events.next().await.expect("end"), None);
}

#[tokio::test]
async fn a_stream_without_heartbeat_is_taken_for_dead() {
    let snapshot = Event {
        number: 1,
        at_ms: 1,
        kind: EventKind::Snapshot { status: Box::default(), nodes: vec![], models: vec![] },
    };
    let node = FakeNode::start(move |_| stream(vec![snapshot.to_sse()], false));
    let client = node
        .client
        .clone()
        .with_deadlines(Deadlines { event_idle: Duration::from_millis(50), ..Deadlines::default() });
    let mut events = client.events().await.expect("events");
    assert!(events.next().await.expect("event").is_some());
    assert!(matches!(events.next().await, Err(ClientError::Deadline { what: "/api/events", .. })));
}

/// The example `follow`, which cargo builds beside this test.
async fn follow(home: &Path, events: &str) -> std::process::Output {
    let here = std::env::current_exe().expect("this test's own path");
    let built = here.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join("examples/follow");
    let mut run = tokio::process::Command::new(&built);
    let run = run.arg(events).env("QMT_HOME", home).kill_on_drop(true).output();
    let ended = tokio::time::timeout(Duration::from_secs(30), run).await.expect("it ends by itself");
    ended.unwrap_or_else(|error| {
        panic!("{}: {error}; build it with `cargo build --examples`", built.display())
    })
}

#[tokio::test]
async fn the_example_follows_a_node_and_says_when_none_runs() {
    let empty = tempfile::tempdir().expect("temporary folder");
    let output = follow(empty.path(), "1").await;
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("error: no node is running at ") && said.contains("qmt-node"), "{said}");

    let status = Status { node_name: "desktop".into(), node_id: "12D3KooW".into(), ..Status::default() };
    let gone = EventKind::ModelGone { name: "tiny".into() };
    let events = [
        Event {
            number: 7,
            at_ms: 0,
            kind: EventKind::Snapshot { status: Box::new(status.clone()), nodes: vec![], models: vec![] },
        },
        Event { number: 8, at_ms: 0, kind: gone },
    ];
    let chunks: Vec<String> = events
        .iter()
        .map(|event| format!("data: {}\n\n", serde_json::to_string(event).expect("an event")))
        .collect();
    let node = FakeNode::start(move |(_, path, _)| match path.as_str() {
        "/api/status" => json(200, &serde_json::to_string(&status).expect("a status")),
        _ => stream(chunks.clone(), false),
    });
    let output = follow(node.client.socket().parent().expect("its folder"), "2").await;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).lines().collect::<Vec<_>>(),
        [
            "desktop (12D3KooW), up for 0 s",
            "     7  snapshot: 0 nodes, 0 models",
            "     8  nobody provides tiny any more",
        ]
    );
    assert!(output.status.success());
}
