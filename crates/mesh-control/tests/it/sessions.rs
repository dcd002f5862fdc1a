//! The client's side of agents and sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Response;
use mesh_control::*;

use crate::fake::{Body, FakeNode, json, stream};

const VIEW: &str =
    r#"{"id":"0197","node":"12D3","agent":"coder","state":"dreaming","last":3,"owner":{"node":"12D3"}}"#;

fn event(number: u64) -> String {
    format!(
        "id: {number}\nevent: text_added\ndata: {{\"number\":{number},\"at_ms\":1,\"kind\":\"text_added\",\"turn\":1,\"text\":\"t{number}\"}}\n\n"
    )
}

/// A node whose n-th stream of events is the n-th of these, the last one again and again.
fn playing(streams: Vec<(Vec<String>, bool)>) -> FakeNode {
    let count = AtomicUsize::new(0);
    let streams = Arc::new(streams);
    FakeNode::start(move |_| -> Response<Body> {
        let number = count.fetch_add(1, Ordering::SeqCst).min(streams.len() - 1);
        let (chunks, ends) = streams[number].clone();
        stream(chunks, ends)
    })
}

async fn numbers(follow: &mut SessionFollow) -> (Vec<u64>, usize, Followed) {
    let (mut numbers, mut losses) = (Vec::new(), 0);
    loop {
        match follow.next().await.expect("the reader goes on") {
            Followed::Event(event) => numbers.push(event.number),
            Followed::Lost(_) => losses += 1,
            end @ Followed::End(_) => return (numbers, losses, end),
        }
    }
}

#[tokio::test]
async fn asks_the_documented_endpoints() {
    let node = FakeNode::start(|(method, path, _)| {
        match (method.as_str(), path.split('?').next().expect("a path")) {
            ("GET", "/api/agents") => json(200, r#"[{"name":"coder","node":"12D3","mood":"good"}]"#),
            ("GET", "/api/sessions") => json(200, &format!(r#"{{"sessions":[{VIEW}],"next":"0197"}}"#)),
            ("GET", "/api/sessions/search") => json(200, "[]"),
            (_, "/api/sessions" | "/api/sessions/fork" | "/api/sessions/move" | "/api/sessions/show") => {
                json(200, VIEW)
            }
            _ => json(200, r#"{"session":"0197","number":7,"last":7}"#),
        }
    });
    let client = &node.client;
    assert_eq!(client.agents().await.expect("agents")[0].state, AgentState::Unknown);
    let query = SessionQuery { node: Some("gpu box".into()), unfinished: true, ..SessionQuery::default() };
    let page = client.sessions(&query).await.expect("sessions");
    assert_eq!((page.sessions[0].state, page.next.as_deref()), (SessionState::Unknown, Some("0197")));
    let new = CreateSession { id: "0197".into(), agent: "coder@gpu".into(), ..CreateSession::default() };
    client.create_session(&new).await.expect("created");
    let parts = vec![
        PromptPart::Text { text: "hi".into() },
        PromptPart::Image { media_type: "image/png".into(), data: "AA==".into() },
    ];
    let prompt = PromptSession { session: "0197".into(), prompt: "p1".into(), parts };
    assert_eq!(client.prompt(&prompt).await.expect("prompted").number, 7);
    let share = ShareView { node: Some("lap".into()), scope: None, role: None, right: RightView::Watch };
    client.share_session(&ShareSession { session: "s".into(), shares: vec![share] }).await.expect("shared");
    client.archive("s@gpu").await.expect("archived");
    let imported = client.import_session(&b"{}\n{}\n"[..]).await.expect("imported");
    assert_eq!((imported.session.as_str(), imported.last), ("0197", 7));
    let search = SearchQuery { words: "a&b".into(), ..SearchQuery::default() };
    client.search_sessions(&search).await.expect("searched");
    let asked: Vec<String> =
        node.asked().iter().map(|(method, path, body)| format!("{method} {path} {body}")).collect();
    assert_eq!(
        asked,
        [
            "GET /api/agents ",
            "GET /api/sessions?unfinished=true&node=gpu%20box ",
            r#"POST /api/sessions {"id":"0197","agent":"coder@gpu"}"#,
            r#"POST /api/sessions/prompt {"session":"0197","prompt":"p1","parts":[{"type":"text","text":"hi"},{"type":"image","media_type":"image/png","data":"AA=="}]}"#,
            r#"POST /api/sessions/share {"session":"s","shares":[{"node":"lap","right":"watch"}]}"#,
            r#"POST /api/sessions/archive {"session":"s@gpu"}"#,
            "POST /api/sessions/import {}\n{}\n",
            "GET /api/sessions/search?words=a%26b ",
        ]
    );
}

#[tokio::test]
async fn an_export_and_a_content_come_as_they_are() {
    let node =
        FakeNode::start(|_| stream(vec!["{\"qmt_session\":1}\n".into(), "{\"end\":1}\n".into()], true));
    let mut export = node.client.export_session("a b").await.expect("it begins");
    let mut whole = Vec::new();
    while let Some(bytes) = export.next().await.expect("it goes on") {
        whole.extend_from_slice(&bytes);
    }
    assert_eq!(whole, b"{\"qmt_session\":1}\n{\"end\":1}\n");
    let query = ContentQuery { session: "s".into(), blob: "ab".into() };
    assert_eq!(node.client.session_content(&query).await.expect("a content"), whole);
    let asked: Vec<String> = node.asked().into_iter().map(|(_, path, _)| path).collect();
    assert_eq!(asked, ["/api/sessions/export?session=a%20b", "/api/sessions/content?session=s&blob=ab"]);
}

#[tokio::test]
async fn a_reader_sees_each_event_once_over_many_connections() {
    let end = StreamEnd::new(EndReason::Archived).to_sse();
    let stopping = StreamEnd::new(EndReason::Stopping).to_sse();
    let node = playing(vec![
        (vec![event(1), event(2), event(3)[..20].to_owned()], true), // breaks off in the middle
        (vec![HEARTBEAT_FRAME.into(), event(2), event(3), stopping], true), // says again what was said
        (vec![event(5)], false),                                     // leaves one out
        (vec!["not even an event".into()], true),
        (vec![event(4), event(5), end], false),
    ]);
    let mut follow = node.client.follow_session("0197", 0);
    let (numbers, losses, end) = numbers(&mut follow).await;
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    assert_eq!(losses, 2, "once for each loss, however many attempts it took");
    assert_eq!(end, Followed::End(StreamEnd::new(EndReason::Archived)));
    let asked: Vec<String> = node.asked().into_iter().map(|(_, path, _)| path).collect();
    let path = |after| format!("/api/sessions/events?session=0197&after={after}");
    assert_eq!(asked, [path(0), path(2), path(3), path(3), path(3)]);
}

#[tokio::test]
async fn a_node_that_restarts_is_waited_for_and_one_that_refuses_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let client = Client::for_home(folder.path());
    let mut follow = client.follow_session("0197", 0).with_grace(Duration::from_millis(300));
    assert!(matches!(follow.next().await.expect("patience"), Followed::Lost(_)));
    let error = follow.next().await.expect_err("patience ends");
    assert!(matches!(error, ClientError::NoNode { .. }), "{error}");

    let refusing = FakeNode::start(|_| {
        json(404, r#"{"error":{"code":"unknown_session","message":"there is no such session here"}}"#)
    });
    let error = refusing.client.follow_session("x", 0).next().await.expect_err("refused");
    assert_eq!(error.code(), "unknown_session");

    let restless = playing(vec![(vec![], true)]);
    let mut follow = restless.client.follow_session("x", 0).with_grace(Duration::from_millis(300));
    assert!(matches!(follow.next().await.expect("patience"), Followed::Lost(_)));
    assert!(matches!(follow.next().await.expect_err("patience ends"), ClientError::Deadline { .. }));
}
