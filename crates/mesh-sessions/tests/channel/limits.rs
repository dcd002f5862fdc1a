//! What no caller can do to the node: fill it, hold it up, or keep it from serving the others.

use std::time::Duration;

use mesh_sessions::channel::Limits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::delegations::outgoing;
use crate::support::*;

#[tokio::test]
async fn a_head_that_drips_is_cut_off() {
    let node = Node::with(
        Limits { head: Duration::from_millis(200), ..Limits::default() },
        vec![],
        Default::default(),
    )
    .await;
    let mut stream = node.raw("ct111").await;
    stream.write_all(b"GET /api/mesh/ping HTTP/1.1\r\nhost: ct110.mesh\r\n").await.unwrap();
    let dripping = async {
        loop {
            let dripped = stream.write_all(b"x-drop: 1\r\n").await.is_ok() && stream.flush().await.is_ok();
            let heard = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut [0; 256])).await;
            if !dripped || matches!(heard, Ok(Ok(0) | Err(_))) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, dripping).await.expect("it is cut off");
    until("it is gone", || node.server.stats().connections == 0).await;
    node.client("ct111").ping(&node.target()).await.unwrap();
    node.end().await;
}

#[tokio::test]
async fn a_body_that_drips_is_cut_off() {
    let node = Node::with(
        Limits { body: Duration::from_millis(200), ..Limits::default() },
        vec![],
        Default::default(),
    )
    .await;
    let mut stream = node.raw("ct111").await;
    let head = "POST /api/message HTTP/1.1\r\nhost: ct110.mesh\r\ncontent-length: 1000\r\n\r\n{";
    let heard = say(&mut stream, head).await;
    assert!(heard.starts_with("HTTP/1.1 408"), "{heard}");
    assert_eq!(node.agents.times(), 0);
    node.end().await;
}

#[tokio::test]
async fn a_body_of_100_mb_is_refused_before_it_is_read() {
    let node = Node::start().await;
    // One that says how long it is gets its answer without a byte of it being read.
    let mut stream = node.raw("ct111").await;
    let head = "POST /api/message HTTP/1.1\r\nhost: ct110.mesh\r\nexpect: 100-continue\r\ncontent-length: 104857600\r\n\r\n";
    let heard = say(&mut stream, head).await;
    assert!(heard.starts_with("HTTP/1.1 413") && heard.contains("too_large"), "{heard}");
    // One that does not is read up to the bound.
    let (mut reading, mut writing) = tokio::io::split(node.raw("ct111").await);
    let sending = async {
        let head = "POST /api/message HTTP/1.1\r\nhost: ct110.mesh\r\ntransfer-encoding: chunked\r\n\r\n";
        writing.write_all(head.as_bytes()).await?;
        let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
        for _ in 0..1600 {
            writing.write_all(&chunk).await?;
        }
        std::io::Result::Ok(())
    };
    let hearing = async {
        let mut heard = [0; 64];
        let count = reading.read(&mut heard).await.unwrap_or_default();
        String::from_utf8_lossy(&heard[..count]).into_owned()
    };
    let (sent, heard) = tokio::join!(sending, hearing);
    assert!(sent.is_err(), "the connection is closed in the middle");
    assert!(heard.is_empty() || heard.starts_with("HTTP/1.1 413"), "{heard}");
    assert_eq!(node.agents.times(), 0);
    node.end().await;
}

#[tokio::test]
async fn a_thousand_idle_connections_leave_room_for_others() {
    // Both ends of them are here.
    let wanted = 4096;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = rustix::process::Rlimit { current: Some(wanted), maximum: limit.maximum };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    }
    let node = Node::start().await;
    let config = raw_config(&node.ca, Some(&node.ca.issue(&Spec::of("guest", 3))));
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(raw_connect(node.server.address(), config.clone()).await.unwrap());
    }
    until("all are there", || node.server.stats().connections == 1000).await;
    let client = node.client("ct111");
    for round in 0..20 {
        let answering = client.delegate(&node.target(), &outgoing("echo", &round.to_string())).await.unwrap();
        assert_eq!(answering.outcome().await.unwrap().response, "do it");
    }
    // They are still good for something.
    let heard = say(idle.last_mut().unwrap(), &request("GET", "/api/mesh/ping", "", "")).await;
    assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");
    drop(idle);
    until("all are gone", || node.server.stats().connections == 1).await;
    node.end().await;
}

#[tokio::test]
async fn one_name_cannot_take_all_connections() {
    let node =
        Node::with(Limits { connections_of_one_max: 3, ..Limits::default() }, vec![], Default::default())
            .await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        kept.push(node.raw("guest").await);
    }
    until("they are there", || node.server.stats().connections == 3).await;
    let mut more = node.raw("guest").await;
    assert_eq!(say(&mut more, &request("GET", "/api/mesh/ping", "", "")).await, "");
    assert!(node.log.has("too many open connections: one more is closed peer.cn=guest"));
    node.client("ct111").ping(&node.target()).await.unwrap();
    node.end().await;
}

#[tokio::test]
async fn who_takes_nothing_of_what_is_sent_is_cut_off() {
    let limits = Limits {
        stalled: Duration::from_millis(200),
        // More than all buffers between the two ends hold.
        answer_bytes_max: 64 * 1024 * 1024,
        ..Limits::default()
    };
    let node = Node::with(limits, vec![], Default::default()).await;
    let mut stream = node.raw("ct111").await;
    let body = r#"{"fromAgent":"opus","toAgent":"long","message":"go"}"#;
    let accept = "accept: text/event-stream\r\n";
    stream.write_all(request("POST", "/api/message", accept, body).as_bytes()).await.unwrap();
    until("it began", || node.agents.times() == 1).await;
    until("it is cut off", || node.server.stats().connections == 0).await;
    node.end().await;
}
