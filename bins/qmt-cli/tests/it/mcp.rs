//! The mesh as an MCP server, driven as a client drives it.

use std::path::Path;

use serde_json::{Value, json};

use crate::host::{ADDRESS, Host, ID, Memory, answers, asks};
use crate::piped::Piped;

async fn begun(home: &Path) -> Piped {
    let mut server = Piped::start(home, &["mcp"]);
    let hello = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}});
    let answer = server.call(1, "initialize", hello).await;
    assert_eq!(answer["result"]["serverInfo"]["name"], "qmt-cli", "{answer}");
    server.send(json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    server
}

/// What a tool says, and whether it is an error.
async fn called(server: &mut Piped, id: u64, name: &str, arguments: Value) -> (String, bool) {
    let answer = server.call(id, "tools/call", json!({"name": name, "arguments": arguments})).await;
    let result = &answer["result"];
    let text = result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    (text.to_owned(), result["isError"] == true)
}

fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn any_agent_lists_delegates_and_reads() {
    let host = Host::start(Memory { script: answers(&["Elbe", ", Oder"]), ..Memory::default() });
    let mut server = begun(host.home.path()).await;
    let tools = server.call(2, "tools/list", json!({})).await;
    let names: Vec<&str> = tools["result"]["tools"]
        .as_array()
        .expect("tools")
        .iter()
        .filter_map(|tool| tool["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "list_nodes",
            "list_agents",
            "delegate",
            "list_sessions",
            "read_session",
            "prompt_session",
            "decide_tool",
            "search_sessions"
        ]
    );
    let (text, _) = called(&mut server, 3, "list_nodes", json!({})).await;
    assert_eq!(read(&text)[1]["name"], "lap");
    let (text, _) = called(&mut server, 4, "list_agents", json!({})).await;
    assert_eq!(read(&text)[0]["tools"], json!(["shell", "edit"]));
    let (text, is_error) =
        called(&mut server, 5, "delegate", json!({"agent": "coder@gpu", "task": "Name two"})).await;
    let done = read(&text);
    assert_eq!((&done["text"], &done["outcome"], is_error), (&"Elbe, Oder".into(), &"done".into(), false));
    assert_eq!((&done["session"], &done["last_event"]), (&ID.into(), &7.into()));
    let (text, _) = called(&mut server, 6, "read_session", json!({"session": "work"})).await;
    assert!(text.contains("1 USER: Name two\n") && text.contains("6 AGENT: Elbe, Oder\n"), "{text}");
    assert!(text.contains("7 TURN done\n(that is all; the last event is 7)"), "{text}");
    let (text, _) =
        called(&mut server, 7, "list_sessions", json!({"unfinished": true, "all_nodes": true})).await;
    assert_eq!(read(&text)["sessions"][0]["id"], ID);
    assert_eq!(host.stub.queries("GET /api/sessions"), ["unfinished=true&all=true&limit=50"]);
    assert_eq!(server.end().await, Some(0));
}

#[tokio::test]
async fn a_call_returns_when_a_tool_waits_and_the_caller_decides() {
    let (script, after_decision) = asks();
    let host = Host::start(Memory { script, after_decision, breaks: vec![5], ..Memory::default() });
    let mut server = begun(host.home.path()).await;
    let arguments = json!({"session": "work", "text": "Build it"});
    let params = json!({"name": "prompt_session", "arguments": arguments, "_meta": {"progressToken": "p"}});
    let answer = server.call(2, "tools/call", params).await;
    let waited = read(answer["result"]["content"][0]["text"].as_str().expect("text"));
    assert_eq!((&waited["outcome"], &waited["text"]), (&Value::Null, &"I build it.".into()));
    let note = waited["note"].as_str().expect("a note");
    assert!(
        note.contains("shell {\"command\":\"make\"}")
            && note.contains("qmt-cli session allow")
            && note.contains("decide_tool"),
        "{note}"
    );
    let progress: Vec<&Value> = server
        .seen
        .iter()
        .filter(|line| line["method"] == "notifications/progress")
        .map(|line| &line["params"])
        .collect();
    assert_eq!(progress[0]["message"], "thinks", "{progress:?}");
    let (text, is_error) =
        called(&mut server, 3, "decide_tool", json!({"session": "work", "allow": false, "call": "c9"})).await;
    assert!(is_error && text.contains("no call \"c9\" waits"), "{text}");
    let (text, _) = called(&mut server, 4, "decide_tool", json!({"session": "work", "allow": true})).await;
    let decided = read(&text);
    assert_eq!(
        (&decided["outcome"], &decided["text"]),
        (&"done".into(), &"It has no rule.".into()),
        "{text}"
    );
    assert_eq!(decided["tools"][0]["name"], "shell", "{text}");
    assert_eq!(
        host.stub.bodies("POST /api/sessions/decide"),
        [json!({"session": ADDRESS, "turn": 1, "call": "c1", "allowed": true})]
    );
    assert_eq!(server.end().await, Some(0));
}

#[tokio::test]
async fn a_call_that_is_taken_back_ends_its_turn() {
    let (mut script, _) = asks();
    script.truncate(2);
    let host = Host::start(Memory { script, ..Memory::default() });
    let mut server = begun(host.home.path()).await;
    let arguments = json!({"session": "work", "text": "Build it"});
    let params = json!({"name": "prompt_session", "arguments": arguments, "_meta": {"progressToken": 7}});
    server.request(2, "tools/call", params).await;
    server.until(|line| line["params"]["message"].as_str().is_some_and(|text| text == "thinks")).await;
    let taken = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}});
    server.send(taken).await;
    crate::support::until(|| !host.stub.bodies("POST /api/sessions/cancel").is_empty()).await;
    assert_eq!(host.stub.bodies("POST /api/sessions/cancel"), [json!({"session": ADDRESS, "turn": 1})]);
    assert_eq!(server.end().await, Some(0));
}

#[tokio::test]
async fn what_makes_no_sense_is_answered_and_harms_nothing() {
    let host = Host::start(Memory::default());
    let mut server = begun(host.home.path()).await;
    for (id, name, arguments, said) in [
        (2, "fly", json!({}), "there is no tool \"fly\""),
        (3, "delegate", json!({"agent": "coder"}), "missing field `task`"),
        (4, "delegate", json!({"agent": 7, "task": "x"}), "invalid type"),
        (5, "list_nodes", json!({"x": 1}), "unknown field `x`"),
        (6, "read_session", json!({"session": "nothing"}), "unknown_session: there is no such session here"),
        (7, "read_session", json!({"session": "work", "after": -1}), "invalid value"),
    ] {
        let (text, is_error) = called(&mut server, id, name, arguments).await;
        assert!(is_error && text.contains(said), "{name}: {text}");
    }
    server.raw(b"\xff\xfe garbage\n{\"jsonrpc\":\"2.0\"}\n[]\n7\n{\"id\":[1],\"method\":1}\n\n").await;
    server.raw(format!("{}\n", "[".repeat(200_000)).as_bytes()).await;
    server.raw(format!("{{\"x\":\"{}\"}}\n", "y".repeat(17 * 1024 * 1024)).as_bytes()).await;
    let (text, is_error) = called(&mut server, 8, "list_agents", json!({})).await;
    assert!(!is_error && text.contains("coder"), "{text}");
    assert_eq!(server.end().await, Some(0));
}

#[tokio::test]
async fn a_caller_that_says_nothing_or_finds_no_node_is_told() {
    let home = tempfile::tempdir().expect("a folder");
    let silent = Piped::start(home.path(), &["mcp"]);
    assert_eq!(silent.end().await, Some(0));
    let mut server = begun(home.path()).await;
    let (text, is_error) = called(&mut server, 2, "list_nodes", json!({})).await;
    assert!(
        is_error && text.starts_with("no_node: no node is running at ") && text.contains("`qmt-node`"),
        "{text}"
    );
    assert_eq!(server.end().await, Some(0));
}
