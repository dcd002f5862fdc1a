//! What a proven caller may ask for, and for whom it may speak.

use mesh_sessions::channel::{AskError, Code, MessageRequest, Outgoing};
use serde_json::{Value, json};

use crate::support::*;

/// The status and the body of an answer.
pub(crate) async fn ask(
    node: &Node,
    who: &'static str,
    method: &str,
    path: &str,
    headers: &str,
    body: &Value,
) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let heard = say(&mut node.raw(who).await, &request(method, path, headers, &body)).await;
    let (head, body) = heard.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {heard:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

async fn code(node: &Node, who: &'static str, path: &str, headers: &str, body: &Value) -> (u16, Value) {
    let (status, body) = ask(node, who, "POST", path, headers, body).await;
    (status, body["error"]["code"].clone())
}

fn task(agent: &str) -> Value {
    json!({"fromAgent": "opus", "toAgent": agent, "message": "go"})
}

#[tokio::test]
async fn a_ping_has_the_fields_of_both_systems() {
    let node = Node::start().await;
    let (status, body) = ask(&node, "ct111", "GET", "/api/mesh/ping", "", &Value::Null).await;
    let wanted = json!({"status": "ok", "ok": true, "node": "ct110", "tls": true, "cn": "ct111"});
    assert_eq!((status, body), (200, wanted));
    until("logged", || node.log.has("INFO mesh_sessions::channel::api: Received mesh request peer.cn=ct111 request=\"GET /api/mesh/ping\"")).await;
    node.end().await;
}

#[tokio::test]
async fn a_certificate_that_claims_another_node_gets_403() {
    let node = Node::start().await;
    let mut foreign = task("echo");
    foreign["fromAgent"] = json!("opus@ct112");
    assert_eq!(code(&node, "ct111", "/api/message", "", &foreign).await, (403, json!("not_you")));
    let header = "x-mesh-node: ct112\r\n";
    assert_eq!(code(&node, "ct111", "/api/message", header, &task("echo")).await, (403, json!("not_you")));
    for path in ["/api/mesh/ping", "/api/mesh", "/api/agents"] {
        let (status, body) = ask(&node, "ct111", "GET", path, header, &Value::Null).await;
        assert_eq!((status, &body["error"]["code"]), (403, &json!("not_you")), "{path}");
    }
    for body in [
        json!({"name": "ct112", "host": "10.0.0.9"}),
        json!({"node": {"name": "ct112"}}),
        json!({"node": {"name": "ct111", "nodeName": "ct112"}}),
        json!({"name": "ct111", "node": {"name": "ct112"}}),
        json!({"name": ["ct111"]}),
    ] {
        assert_eq!(
            code(&node, "ct111", "/api/mesh/join", "", &body).await,
            (403, json!("not_you")),
            "{body}"
        );
    }
    assert_eq!((node.agents.times(), node.registry.joined.lock().unwrap().len()), (0, 0));
    assert_eq!(node.server.stats().refused(Code::NotYou), 10);
    // The same with the name of the certificate.
    let mut own = task("echo");
    own["fromAgent"] = json!("opus@ct111");
    let (status, _) = ask(&node, "ct111", "POST", "/api/message", "x-mesh-node: CT111\r\n", &own).await;
    assert_eq!((status, node.agents.times()), (200, 1));
    node.end().await;
}

#[tokio::test]
async fn a_name_that_is_not_registered_pings_reads_and_joins_and_no_more() {
    let node = Node::start().await;
    assert_eq!(code(&node, "new", "/api/message", "", &task("echo")).await, (403, json!("not_registered")));
    let (status, body) = ask(&node, "new", "GET", "/api/agents", "", &Value::Null).await;
    assert_eq!((status, &body["error"]["mend"]), (403, &json!("join first: POST /api/mesh/join")));
    assert_eq!(ask(&node, "new", "GET", "/api/mesh/ping", "", &Value::Null).await.0, 200);
    assert_eq!(ask(&node, "new", "GET", "/api/mesh", "", &Value::Null).await.0, 200);
    let (status, body) =
        ask(&node, "new", "POST", "/api/mesh/join", "", &json!({"node": {"name": "new", "port": 1}})).await;
    assert_eq!((status, body["nodes"].as_array().unwrap().len()), (200, 4));
    assert_eq!(*node.registry.joined.lock().unwrap(), [json!({"name": "new", "port": 1})]);
    assert_eq!(ask(&node, "new", "POST", "/api/message", "", &task("echo")).await.0, 200);
    // A name that is nobody here stays so.
    assert_eq!(code(&node, "nobody", "/api/message", "", &task("echo")).await, (403, json!("not_allowed")));
    node.end().await;
}

#[tokio::test]
async fn failures_are_http_errors_that_say_what_and_how_to_mend_it() {
    let node = Node::start().await;
    for (body, wanted) in [
        (json!({"message": "m"}), (400, "bad_request")),
        (json!({"fromAgent": "", "message": "m"}), (400, "bad_request")),
        (json!({"fromAgent": "a", "message": "  "}), (400, "bad_request")),
        (json!("text"), (400, "bad_request")),
        (task("nowhere"), (404, "unknown_agent")),
        (task("broken"), (502, "agent_failed")),
        (task("long"), (502, "agent_failed")),
    ] {
        let (status, code) = code(&node, "ct111", "/api/message", "", &body).await;
        assert_eq!((status, code), (wanted.0, json!(wanted.1)), "{body}");
    }
    let slow = json!({"fromAgent": "opus", "toAgent": "slow", "message": "go", "timeoutMs": 50});
    assert_eq!(code(&node, "ct111", "/api/message", "", &slow).await, (504, json!("timed_out")));
    until("it was ended", || node.agents.given_up.load(std::sync::atomic::Ordering::SeqCst) == 1).await;
    assert_eq!(
        ask(&node, "ct111", "GET", "/elsewhere", "", &Value::Null).await.1["error"]["code"],
        "not_found"
    );
    assert_eq!(ask(&node, "ct111", "GET", "/api/message", "", &Value::Null).await.0, 405);
    node.end().await;
}

#[tokio::test]
async fn a_role_decides_what_is_seen() {
    let node = Node::start().await;
    let agents = async |who| ask(&node, who, "GET", "/api/agents", "", &Value::Null).await.1;
    assert_eq!(agents("ct111").await, json!({"node": "ct110", "agents": [{"id": "echo"}, {"id": "slow"}]}));
    assert_eq!(agents("guest").await, json!({"node": "ct110", "agents": [{"id": "echo"}]}));
    node.end().await;
}

#[tokio::test]
async fn a_refusal_reaches_the_client_with_its_words() {
    let node = Node::start().await;
    let outgoing = Outgoing {
        request: MessageRequest {
            from_agent: "a".into(),
            to_agent: Some("nowhere".into()),
            message: "m".into(),
            ..Default::default()
        },
        chain: None,
        key: "k".to_owned(),
    };
    let client = node.client("ct111");
    let error = client.delegate(&node.target(), &outgoing).await.unwrap().outcome().await.unwrap_err();
    let AskError::Refused { status: 404, fault } = &error else { panic!("{error:?}") };
    assert_eq!((fault.code, fault.message.as_str()), (Code::UnknownAgent, "there is no agent nowhere"));
    assert!(error.has_not_begun());
    let error = node.client("new").delegate(&node.target(), &outgoing).await.unwrap_err();
    let AskError::Refused { status: 403, fault } = &error else { panic!("{error:?}") };
    assert_eq!(fault.code, Code::NotRegistered);
    node.end().await;
}
