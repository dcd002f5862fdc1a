//! The control socket: who may use it, and what it says to requests that it cannot serve.

use mesh_control::{EventKind, NodeState};
use serde_json::Value;

use crate::support::http::{Answer, over_socket};
use crate::support::{Host, PATIENCE, mode, stop_both};

async fn send(host: &Host, method: &str, path: &str, body: Vec<u8>) -> Answer {
    over_socket(&host.node.control_socket(), method, path, body).await.whole().await
}

fn assert_refuses(answer: &Answer, status: u16, code: &str, message: &str) {
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{answer:?}");
    assert_eq!(answer.headers["content-type"], "application/json");
    assert!(answer.message().contains(message), "{:?} does not say {message:?}", answer.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_may_open_the_socket() {
    let host = Host::new("host").await;
    let socket = host.node.control_socket();
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(socket.parent().unwrap()), 0o700);
    host.stop().await;
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_served_say_why() {
    let host = Host::new("host").await;
    let answer = send(&host, "POST", "/api/join", b"{".to_vec()).await;
    assert_refuses(&answer, 400, "bad_request", "not understood");
    let answer = send(&host, "POST", "/api/join", b"{}".to_vec()).await;
    assert_refuses(&answer, 400, "bad_request", "`token`");
    let answer = send(&host, "POST", "/api/ping", br#"{"node":7}"#.to_vec()).await;
    assert_refuses(&answer, 400, "bad_request", "node: invalid type");
    let answer = send(&host, "POST", "/api/invites", br#"{"uses":"many"}"#.to_vec()).await;
    assert_refuses(&answer, 400, "bad_request", "uses: invalid type");
    let answer = send(&host, "GET", "/api/nothing", Vec::new()).await;
    assert_refuses(&answer, 404, "no_such_endpoint", "/api/nothing");
    let answer = send(&host, "DELETE", "/api/status", Vec::new()).await;
    assert_refuses(&answer, 405, "method_not_allowed", "DELETE");
    // One byte too many: of a longer body the node leaves the rest unread, and the writer may see that first.
    let answer = send(&host, "POST", "/api/join", vec![b' '; 65_537]).await;
    assert_refuses(&answer, 413, "too_large", "longer than this node reads");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_stream_begins_with_a_snapshot_and_tells_of_members() {
    let (first, second) = tokio::join!(Host::new("first"), Host::new("second"));
    let invite = first.invite().await;
    let mut events = first.client.events().await.unwrap();
    let mut next = async || {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("no event came");
        event.unwrap().expect("the stream has ended")
    };
    let snapshot = next().await;
    let EventKind::Snapshot { status, nodes, .. } = &snapshot.kind else { panic!("{snapshot:?}") };
    assert_eq!((status.node_id.as_str(), nodes.len()), (first.id().as_str(), 1));
    second.join(&invite.token).await;
    let (mut number, mut used) = (snapshot.number, false);
    for wanted in [NodeState::Alive, NodeState::Down] {
        loop {
            let event = next().await;
            assert!(event.number > number, "{} after {number}", event.number);
            number = event.number;
            used |= matches!(&event.kind, EventKind::InviteUsed { id, uses: 1, .. } if *id == second.id());
            if matches!(&event.kind, EventKind::Node { node } if node.id == second.id() && node.state == wanted)
            {
                break;
            }
        }
        if wanted == NodeState::Alive {
            second.node.shutdown().await;
        }
    }
    assert!(used, "the use of the invite was not told");
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_node_ends_its_event_streams() {
    let host = Host::new("host").await;
    let mut events = host.client.events().await.unwrap();
    assert!(matches!(events.next().await.unwrap().unwrap().kind, EventKind::Snapshot { .. }));
    let ((), last) = tokio::join!(host.node.shutdown(), async {
        loop {
            match tokio::time::timeout(PATIENCE, events.next()).await.expect("the stream goes on") {
                Ok(Some(_)) => {}
                end => break end,
            }
        }
    });
    assert!(last.unwrap().is_none());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wire_form_of_events_is_that_of_server_sent_events() {
    let host = Host::new("host").await;
    let mut stream = over_socket(&host.node.control_socket(), "GET", "/api/events", "").await;
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    let first = String::from_utf8(stream.piece().await.unwrap().unwrap().to_vec()).unwrap();
    let data = first.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    assert!(first.contains("event: snapshot\n") && first.ends_with("\n\n"), "{first}");
    assert_eq!(serde_json::from_str::<Value>(data).unwrap()["type"], "snapshot");
    drop(stream);
    host.stop().await;
}
