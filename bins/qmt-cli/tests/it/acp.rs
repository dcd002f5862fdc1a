//! An agent of the mesh as an editor's own, driven as an editor drives it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::host::{ADDRESS, Host, Memory, answers, asks};
use crate::piped::Piped;
use crate::support::until;

async fn begun(home: &Path) -> Piped {
    let mut agent = Piped::start(home, &["acp", "coder@gpu"]);
    let hello = json!({"protocolVersion": 1, "clientCapabilities": {"fs": {"readTextFile": true}}});
    let answer = agent.call(0, "initialize", hello).await;
    assert_eq!(
        (&answer["result"]["protocolVersion"], &answer["result"]["agentCapabilities"]["loadSession"]),
        (&1.into(), &true.into())
    );
    agent
}

async fn opened(home: &Path) -> Piped {
    let mut agent = begun(home).await;
    let answer = agent.call(1, "session/new", json!({"cwd": "/work", "mcpServers": []})).await;
    assert_eq!(answer["result"], json!({"sessionId": ADDRESS}));
    agent
}

#[tokio::test]
async fn an_editor_lists_the_sessions_with_its_agent() {
    let host = Host::start(Memory::default());
    let mut agent = begun(host.home.path()).await;
    let listed = agent.call(1, "session/list", json!({"cwd": "/work"})).await;
    let session = &listed["result"]["sessions"][0];
    assert_eq!((&session["sessionId"], &session["cwd"]), (&ADDRESS.into(), &"/work".into()), "{listed}");
    assert!(session["title"].as_str().is_some_and(|title| title.starts_with("work")), "{listed}");
    assert_eq!(session["updatedAt"], "1970-01-01T00:00:00Z", "{listed}");
    assert_eq!(listed["result"].get("nextCursor"), None, "the page is not full");
    let listed = agent.call(2, "session/list", json!({"cursor": "0197"})).await;
    assert_eq!(listed["result"]["sessions"][0]["cwd"], "/", "{listed}");
    assert_eq!(
        host.stub.queries("GET /api/sessions"),
        ["agent=coder&node=gpu&limit=100", "agent=coder&node=gpu&before=0197&limit=100"]
    );
    assert_eq!(agent.end().await, Some(0));
}

fn says(text: &str) -> Value {
    json!({"sessionId": ADDRESS, "prompt": [{"type": "text", "text": text}]})
}

/// The updates that came so far, as `kind: text`.
fn updates(agent: &Piped) -> Vec<String> {
    let of = |line: &Value| {
        assert_eq!(
            (&line["method"], &line["params"]["sessionId"]),
            (&"session/update".into(), &ADDRESS.into())
        );
        let update = &line["params"]["update"];
        let text = update["content"]["text"].as_str().or(update["status"].as_str()).unwrap_or_default();
        format!("{}: {text}", update["sessionUpdate"].as_str().unwrap_or_default())
    };
    agent.seen.iter().filter(|line| line["method"] != "session/request_permission").map(of).collect()
}

#[tokio::test]
async fn a_prompt_brings_updates_and_then_its_answer() {
    let host = Host::start(Memory { script: answers(&["Elbe", ", Oder"]), ..Memory::default() });
    let mut agent = opened(host.home.path()).await;
    assert_eq!(host.stub.bodies("POST /api/sessions")[0]["agent"], "coder@gpu");
    let answer = agent.call(2, "session/prompt", says("Name two")).await;
    assert_eq!(answer["result"], json!({"stopReason": "end_turn"}));
    assert_eq!(updates(&agent), ["agent_message_chunk: Elbe", "agent_message_chunk: , Oder"]);
    assert_eq!(agent.end().await, Some(0));
}

#[tokio::test]
async fn an_editor_is_asked_about_tools() {
    for (choice, allowed) in [("allow", true), ("deny", false)] {
        let (script, after_decision) = asks();
        let host = Host::start(Memory { script, after_decision, ..Memory::default() });
        let mut agent = opened(host.home.path()).await;
        agent.request(2, "session/prompt", says("Build it")).await;
        let asked = agent.until(|line| line["method"] == "session/request_permission").await;
        let params = &asked["params"];
        assert_eq!(
            (&params["sessionId"], &params["toolCall"]["toolCallId"]),
            (&ADDRESS.into(), &"1/c1".into())
        );
        assert_eq!(params["options"][0], json!({"optionId": "allow", "name": "Allow", "kind": "allow_once"}));
        let outcome = json!({"outcome": {"outcome": "selected", "optionId": choice}});
        agent.send(json!({"jsonrpc": "2.0", "id": asked["id"], "result": outcome})).await;
        assert_eq!(agent.answer(2).await["result"], json!({"stopReason": "end_turn"}));
        assert_eq!(
            host.stub.bodies("POST /api/sessions/decide"),
            [json!({"session": ADDRESS, "turn": 1, "call": "c1", "allowed": allowed})]
        );
        assert_eq!(
            updates(&agent),
            [
                "agent_message_chunk: I build it.",
                "tool_call: pending",
                "tool_call_update: in_progress",
                "tool_call_update: failed",
                "agent_message_chunk: It has no rule."
            ]
        );
        assert_eq!(agent.end().await, Some(0));
    }
}

#[tokio::test]
async fn a_cancelled_prompt_is_answered_as_such() {
    let (script, _) = asks();
    let host = Host::start(Memory { script, ..Memory::default() });
    let mut agent = opened(host.home.path()).await;
    agent.request(2, "session/prompt", says("Build it")).await;
    let asked = agent.until(|line| line["method"] == "session/request_permission").await;
    agent.send(json!({"jsonrpc": "2.0", "method": "session/cancel", "params": {"sessionId": ADDRESS}})).await;
    agent
        .send(json!({"jsonrpc": "2.0", "id": asked["id"], "result": {"outcome": {"outcome": "cancelled"}}}))
        .await;
    until(|| !host.stub.bodies("POST /api/sessions/cancel").is_empty()).await;
    assert_eq!(host.stub.bodies("POST /api/sessions/cancel"), [json!({"session": ADDRESS, "turn": 1})]);
    let ended = json!({"kind": "turn_ended", "turn": 1, "outcome": {"type": "cancelled"}, "usage": {}});
    host.memory.lock().expect("no panic").log.push(ended);
    assert_eq!(agent.answer(2).await["result"], json!({"stopReason": "cancelled"}));
    assert!(host.stub.bodies("POST /api/sessions/decide").is_empty());
    assert_eq!(agent.end().await, Some(0));
}

#[tokio::test]
async fn a_turn_that_failed_is_an_error_and_a_limit_a_reason() {
    for (outcome, word) in [
        (json!({"type": "failed", "why": "no model answers"}), None),
        (json!({"type": "limit_reached", "limit": "tokens"}), Some("max_tokens")),
        (json!({"type": "limit_reached", "limit": "time"}), Some("max_turn_requests")),
    ] {
        let mut script = answers(&["Elb"]);
        script.last_mut().expect("an end")["outcome"] = outcome;
        let host = Host::start(Memory { script, ..Memory::default() });
        let mut agent = opened(host.home.path()).await;
        let answer = agent.call(2, "session/prompt", says("Name one")).await;
        match word {
            Some(word) => assert_eq!(answer["result"]["stopReason"], word),
            None => assert_eq!(answer["error"]["message"], "the turn failed: no model answers"),
        }
    }
}

#[tokio::test]
async fn a_session_is_loaded_with_all_that_was_said_and_goes_on() {
    let mut log = vec![
        json!({"kind": "prompted", "prompt": "PROMPT", "parts": [{"type": "text", "text": "Name one"}]}),
    ];
    log.extend(answers(&["Elbe"]));
    let host =
        Host::start(Memory { log, script: answers(&["Oder"]), breaks: vec![2, 1], ..Memory::default() });
    let mut agent = begun(host.home.path()).await;
    let load = json!({"sessionId": ADDRESS, "cwd": "/work", "mcpServers": []});
    assert_eq!(agent.call(1, "session/load", load.clone()).await["result"], json!({}));
    assert_eq!(updates(&agent), ["user_message_chunk: Name one", "agent_message_chunk: Elbe"]);
    agent.seen.clear();
    let again = agent.call(2, "session/load", load).await;
    assert_eq!(again["error"]["message"], "the session is open already");
    let answer = agent.call(3, "session/prompt", says("And one more")).await;
    assert_eq!(
        (&answer["result"]["stopReason"], updates(&agent)),
        (&"end_turn".into(), vec!["agent_message_chunk: Oder".to_owned()])
    );
    assert_eq!(agent.end().await, Some(0));
}

#[tokio::test]
async fn a_prompt_survives_a_restart_of_the_node() {
    let mut host = Host::start(Memory {
        script: answers(&["El", "be", ", O", "der"]),
        breaks: vec![0, 2, 1],
        ..Memory::default()
    });
    let mut agent = opened(host.home.path()).await;
    agent.request(2, "session/prompt", says("Name two")).await;
    until(|| !host.stub.bodies("POST /api/sessions/prompt").is_empty()).await;
    host.restart(sleep(Duration::from_millis(300))).await;
    assert_eq!(agent.answer(2).await["result"], json!({"stopReason": "end_turn"}));
    assert_eq!(
        updates(&agent),
        ["El", "be", ", O", "der"].map(|text| format!("agent_message_chunk: {text}"))
    );
    assert_eq!(agent.end().await, Some(0));
}

#[tokio::test]
async fn a_prompt_to_a_node_that_is_away_waits_for_it() {
    let mut host = Host::start(Memory { script: answers(&["Elbe"]), ..Memory::default() });
    let mut agent = opened(host.home.path()).await;
    let away = async {
        agent.request(2, "session/prompt", says("Name one")).await;
        sleep(Duration::from_millis(300)).await;
    };
    host.restart(away).await;
    assert_eq!(agent.answer(2).await["result"], json!({"stopReason": "end_turn"}));
    assert_eq!(updates(&agent), ["agent_message_chunk: Elbe"]);
    assert_eq!(agent.end().await, Some(0));
}

#[tokio::test]
async fn what_makes_no_sense_is_answered_and_harms_nothing() {
    let host = Host::start(Memory { script: answers(&["Elbe"]), ..Memory::default() });
    let mut agent = opened(host.home.path()).await;
    for (line, code) in [
        (&b"{\n"[..], -32700),
        (b"\xff\xfe\n", -32700),
        (b"[]\n", -32600),
        (b"{\"id\":{},\"result\":1}\n", -32600),
    ] {
        agent.raw(line).await;
        let answer = agent.next().await;
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&Value::Null, &code.into()), "{answer}");
    }
    agent.raw(format!("{}\n", "[".repeat(200_000)).as_bytes()).await;
    assert_eq!(agent.next().await["error"]["code"], -32700);
    agent.raw(&vec![b'x'; 49 * 1024 * 1024]).await;
    agent.raw(b"\n").await;
    assert_eq!(agent.next().await["error"]["code"], -32600);
    // Answers to what nobody asked, and notices that nobody knows.
    agent.send(json!({"jsonrpc": "2.0", "id": 77, "result": {"outcome": 5}})).await;
    agent.send(json!({"jsonrpc": "2.0", "method": "session/cancel", "params": [1, 2]})).await;
    agent.send(json!({"jsonrpc": "2.0", "method": "weather/changed"})).await;
    for (id, method, params, code) in [
        (10, "fly", json!({}), -32601),
        (11, "session/prompt", json!({"sessionId": "x", "prompt": []}), -32602),
        (12, "session/prompt", json!({"sessionId": ADDRESS, "prompt": []}), -32602),
        (13, "session/prompt", json!({"sessionId": ADDRESS, "prompt": [{"type": "audio"}]}), -32602),
        (14, "session/prompt", json!(7), -32602),
        (15, "session/load", json!({"sessionId": "nothing@gpu"}), -32603),
    ] {
        let answer = agent.call(id, method, params).await;
        assert_eq!(answer["error"]["code"], code, "{answer}");
    }
    let answer = agent.call(20, "session/prompt", says("Name one")).await;
    assert_eq!(answer["result"]["stopReason"], "end_turn");
    assert_eq!(agent.end().await, Some(0));
}
