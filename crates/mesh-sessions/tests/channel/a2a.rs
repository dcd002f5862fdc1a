//! The same agents by A2A.

use std::sync::atomic::Ordering::SeqCst;

use serde_json::{Value, json};

use crate::requests::ask;
use crate::support::*;

fn call(method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params})
}

fn message(id: &str, agent: &str, text: &str) -> Value {
    let message = json!({"messageId": id, "role": "ROLE_USER", "parts": [{"text": text}]});
    json!({"message": message, "tenant": agent})
}

async fn result(node: &Node, method: &str, params: Value) -> Value {
    let (status, answer) =
        ask(node, "ct111", "POST", "/a2a", "A2A-Version: 1.0\r\n", &call(method, params)).await;
    assert_eq!((status, &answer["id"]), (200, &json!(7)), "{answer}");
    answer["result"].clone()
}

async fn error(node: &Node, who: &'static str, method: &str, params: Value) -> Value {
    let (status, answer) = ask(node, who, "POST", "/a2a", "", &call(method, params)).await;
    assert_eq!(status, 200, "{answer}");
    answer["error"]["code"].clone()
}

#[tokio::test]
async fn the_card_names_the_agents_that_are_open_to_the_caller() {
    let node = Node::start().await;
    let (status, card) = ask(&node, "guest", "GET", "/.well-known/agent-card.json", "", &Value::Null).await;
    assert_eq!(
        (status, &card["name"], &card["capabilities"]["streaming"]),
        (200, &json!("ct110"), &json!(true))
    );
    assert_eq!(card["skills"].as_array().unwrap().len(), 1);
    let interfaces = card["supportedInterfaces"].as_array().unwrap();
    assert_eq!(
        (&interfaces[0]["url"], &interfaces[0]["protocolBinding"]),
        (&json!("https://ct110.mesh/a2a"), &json!("JSONRPC"))
    );
    assert_eq!(
        (&interfaces[1]["tenant"], &interfaces[1]["protocolVersion"]),
        (&json!("echo"), &json!("1.0"))
    );
    assert_eq!(ask(&node, "new", "GET", "/.well-known/agent-card.json", "", &Value::Null).await.0, 403);
    node.end().await;
}

#[tokio::test]
async fn a_message_is_a_task_that_is_got_again_by_its_id() {
    let node = Node::start().await;
    for method in ["SendMessage", "message/send"] {
        let task = result(&node, method, message("m-1", "echo", "hello")).await["task"].clone();
        assert_eq!(task["status"]["state"], "TASK_STATE_COMPLETED", "{task}");
        assert_eq!(task["artifacts"][0]["parts"][0]["text"], "hello");
        assert_eq!(result(&node, "GetTask", json!({"id": task["id"]})).await, task);
        assert_eq!(result(&node, "tasks/get", json!({"id": task["id"]})).await, task);
        // It is nobody else's.
        assert_eq!(error(&node, "guest", "GetTask", json!({"id": task["id"]})).await, json!(-32001));
        assert_eq!(error(&node, "ct111", "CancelTask", json!({"id": task["id"]})).await, json!(-32002));
    }
    assert_eq!(node.agents.times(), 1, "the same message is the same task");
    let failed = result(&node, "SendMessage", message("m-2", "broken", "hello")).await["task"].clone();
    assert_eq!(failed["status"]["state"], "TASK_STATE_FAILED");
    assert_eq!(failed["status"]["message"]["parts"][0]["text"], "the model is gone");
    let rejected = result(&node, "SendMessage", message("m-3", "nowhere", "hello")).await["task"].clone();
    assert_eq!(rejected["status"]["state"], "TASK_STATE_REJECTED");
    node.end().await;
}

#[tokio::test]
async fn a_task_streams_its_answer() {
    let node = Node::start().await;
    let body = call("SendStreamingMessage", message("m-1", "echo", "abcd")).to_string();
    let heard = say(&mut node.raw("ct111").await, &request("POST", "/a2a", "", &body)).await;
    assert!(heard.contains("content-type: text/event-stream"), "{heard}");
    let events: Vec<Value> = heard
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str::<Value>(data).unwrap()["result"].clone())
        .collect();
    assert_eq!(events[0]["task"]["status"]["state"], "TASK_STATE_WORKING", "{heard}");
    let texts =
        events.iter().filter_map(|event| event["artifactUpdate"]["artifact"]["parts"][0]["text"].as_str());
    assert_eq!(texts.collect::<String>(), "abcd");
    assert_eq!(events.last().unwrap()["statusUpdate"]["status"]["state"], "TASK_STATE_COMPLETED");
    node.end().await;
}

#[tokio::test]
async fn a_task_outlives_its_caller_and_ends_when_it_is_cancelled() {
    let node = Node::start().await;
    let mut params = message("m-1", "slow", "hello");
    params["configuration"] = json!({"returnImmediately": true});
    let task = result(&node, "SendMessage", params).await["task"].clone();
    assert_eq!(task["status"]["state"], "TASK_STATE_WORKING");
    until("it is under way", || node.agents.times() == 1).await;
    assert_eq!(
        result(&node, "GetTask", json!({"id": task["id"]})).await["status"]["state"],
        "TASK_STATE_WORKING"
    );
    let cancelled = result(&node, "tasks/cancel", json!({"id": task["id"]})).await;
    assert_eq!(cancelled["status"]["state"], "TASK_STATE_CANCELED");
    assert_eq!(node.agents.given_up.load(SeqCst), 1);
    node.end().await;
}

#[tokio::test]
async fn what_is_no_call_is_answered_in_the_protocols_words() {
    let node = Node::start().await;
    assert_eq!(error(&node, "ct111", "Dance", json!({})).await, json!(-32601));
    assert_eq!(error(&node, "ct111", "SendMessage", json!({"message": 1})).await, json!(-32602));
    assert_eq!(error(&node, "ct111", "SendMessage", message("m", "echo", " ")).await, json!(-32602));
    assert_eq!(error(&node, "ct111", "GetTask", json!({"id": "none"})).await, json!(-32001));
    let picture =
        json!({"messageId": "m", "role": "ROLE_USER", "parts": [{"url": "https://example.org/a.png"}]});
    assert_eq!(error(&node, "ct111", "SendMessage", json!({"message": picture})).await, json!(-32005));
    let (_, old) =
        ask(&node, "ct111", "POST", "/a2a", "A2A-Version: 0.3\r\n", &call("SendMessage", json!({}))).await;
    assert_eq!(old["error"]["code"], json!(-32009));
    let (status, refused) = ask(&node, "new", "POST", "/a2a", "", &call("GetTask", json!({"id": "x"}))).await;
    assert_eq!((status, &refused["error"]["code"]), (403, &json!("not_registered")));
    assert_eq!(node.agents.times(), 0);
    node.end().await;
}
