//! A node that hosts one session and plays its agent by a script.

use std::path::Path;
use std::sync::{Arc, Mutex};

use mesh_control::{EndReason, StreamEnd};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::stub::{Asked, NO_END, Reply, Stub};

pub(crate) const ID: &str = "0197a5c2-0000-7000-8000-000000000001";
/// Its address, by which it is found whatever it is called.
pub(crate) const ADDRESS: &str = "0197a5c2-0000-7000-8000-000000000001@12D3gpu";

/// What the node remembers when it goes down.
#[derive(Default)]
pub(crate) struct Memory {
    /// The log, without numbers.
    pub(crate) log: Vec<Value>,
    /// What a prompt brings into the log; `PROMPT` stands for its id.
    pub(crate) script: Vec<Value>,
    /// What a decision brings.
    pub(crate) after_decision: Vec<Value>,
    /// After how many events the next streams of events break off.
    pub(crate) breaks: Vec<usize>,
    /// Answers to the next prompts, instead of taking them.
    pub(crate) refusals: Vec<Reply>,
}

pub(crate) struct Host {
    pub(crate) home: TempDir,
    pub(crate) memory: Arc<Mutex<Memory>>,
    pub(crate) stub: Stub,
}

impl Host {
    pub(crate) fn start(memory: Memory) -> Self {
        let home = tempfile::tempdir().expect("a folder");
        let memory = Arc::new(Mutex::new(memory));
        let stub = listen(home.path(), &memory);
        Self { home, memory, stub }
    }

    /// The node goes down, and is started again after `away`.
    pub(crate) async fn restart(&mut self, away: impl Future<Output = ()>) {
        let home = self.home.path().to_owned();
        let nobody = tempfile::tempdir().expect("a folder");
        drop(std::mem::replace(&mut self.stub, listen(nobody.path(), &self.memory)));
        away.await;
        std::fs::remove_file(mesh_control::socket_path(&home)).expect("what the killed node left");
        self.stub = listen(&home, &self.memory);
    }
}

fn listen(home: &Path, memory: &Arc<Mutex<Memory>>) -> Stub {
    let memory = Arc::clone(memory);
    Stub::control(home, move |asked, _| memory.lock().expect("no panic").answer(asked))
}

pub(crate) fn refused(status: u16, code: &str, message: &str) -> Reply {
    (status, json!({"error": {"code": code, "message": message}}).to_string())
}

fn parameter<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}

impl Memory {
    fn answer(&mut self, asked: &Asked) -> Reply {
        let written =
            |number: usize| (200, json!({"session": ID, "node": "12D3gpu", "number": number}).to_string());
        match asked.what.as_str() {
            "GET /api/status" => (
                200,
                json!({"version": "0.1.0", "node_id": "12D3desk", "node_name": "desk", "pid": 1, "uptime_secs": 2,
                    "scopes": [{"id": "ab12", "name": "home", "role": "member", "members_alive": 2}]})
                .to_string(),
            ),
            "GET /api/nodes" => (
                200,
                json!([{"id": "12D3gpu", "name": "gpu", "scope": "ab12", "role": "member", "state": "alive"},
                    {"id": "12D3lap", "name": "lap", "scope": "ab12", "role": "member", "state": "alive"}])
                .to_string(),
            ),
            "GET /api/agents" => (
                200,
                json!([{"name": "coder", "node": "12D3gpu", "node_name": "gpu", "state": "ready", "model": "gemma",
                    "tools": ["shell", "edit"], "description": "writes\ncode\u{1b}[2J"}])
                .to_string(),
            ),
            "GET /api/sessions" => (200, json!({"sessions": [self.view()], "next": ID}).to_string()),
            "GET /api/sessions/show" if !asked.query.contains("0197") && !asked.query.contains("work") => {
                refused(404, "unknown_session", "there is no such session here")
            }
            "GET /api/sessions/show"
            | "POST /api/sessions"
            | "POST /api/sessions/fork"
            | "POST /api/sessions/move" => (200, self.view().to_string()),
            "GET /api/sessions/search" => {
                (200, json!([{"session": ID, "number": 3, "excerpt": "two \u{7}rivers"}]).to_string())
            }
            "GET /api/sessions/content" => (200, "a long text\n".to_owned()),
            "POST /api/sessions/prompt" => {
                if !self.refusals.is_empty() {
                    return self.refusals.remove(0);
                }
                let id = asked.body["prompt"].clone();
                let known = self.log.iter().position(|event| event["prompt"] == id && event["kind"] == "prompted");
                let number = known.unwrap_or_else(|| {
                    self.log.push(json!({"kind": "prompted", "prompt": id, "parts": said(&asked.body["parts"])}));
                    for event in self.script.clone() {
                        let event = event.to_string().replace("\"PROMPT\"", &id.to_string());
                        self.log.push(serde_json::from_str(&event).expect("an event"));
                    }
                    self.log.len() - 1 - self.script.len()
                });
                written(number + 1)
            }
            "POST /api/sessions/decide" => {
                let (turn, call, allowed) = (&asked.body["turn"], &asked.body["call"], &asked.body["allowed"]);
                self.log.push(json!({"kind": "tool_decided", "turn": turn, "call": call, "allowed": allowed}));
                self.log.append(&mut self.after_decision);
                written(self.log.len())
            }
            "GET /api/sessions/events" => self.events(&asked.query),
            "POST /api/sessions/import" => {
                (200, json!({"session": ID, "last": 5, "added": 5}).to_string())
            }
            what if what.starts_with("POST /api/sessions/") => written(self.log.len()),
            _ => refused(404, "no_such_endpoint", "no"),
        }
    }

    /// The events after a number. A stream stays open until something is posted, or breaks off.
    fn events(&mut self, query: &str) -> Reply {
        let after: usize = parameter(query, "after").and_then(|text| text.parse().ok()).unwrap_or(0);
        let is_past = parameter(query, "past").is_some();
        let broken = if self.breaks.is_empty() || is_past { None } else { Some(self.breaks.remove(0)) };
        let mut text = String::new();
        for (at, event) in self.log.iter().enumerate().skip(after).take(broken.unwrap_or(usize::MAX)) {
            let mut event = event.clone();
            (event["number"], event["at_ms"]) = (json!(at + 1), json!(1));
            text += &format!(
                "id: {}\nevent: {}\ndata: {event}\n\n",
                at + 1,
                event["kind"].as_str().unwrap_or("x")
            );
        }
        let last = self.log.last().map(|event| event["kind"].clone()).unwrap_or_default();
        if is_past {
            text += &StreamEnd::new(EndReason::Past).to_sse();
        } else if last == "archived" && broken.is_none() {
            text += &StreamEnd::new(EndReason::Archived).to_sse();
        } else if broken.is_none() {
            text += NO_END;
        }
        (200, text)
    }

    fn view(&self) -> Value {
        let turn = self.log.iter().rev().find_map(|event| match event["kind"].as_str() {
            Some("turn_ended") => Some(Value::Null),
            Some("turn_started") => Some(event["turn"].clone()),
            _ => None,
        });
        json!({
            "id": ID, "node": "12D3gpu", "node_name": "gpu", "agent": "coder", "owner": {"node": "12D3desk"},
            "name": "work\u{1b}[2J", "labels": {"team": "red"}, "state": "waiting", "turn": turn,
            "last": self.log.len(), "created_ms": 1, "updated_ms": 1, "epoch": 1, "right": "own",
            "shares": [{"node": "12D3lap", "right": "watch"}],
        })
    }
}

/// The parts of a prompt as its event has them.
fn said(parts: &Value) -> Value {
    let part = |part: &Value| match part["type"].as_str() {
        Some("image") => json!({"type": "image", "media_type": part["media_type"], "blob": "ab", "bytes": 3}),
        _ => part.clone(),
    };
    parts.as_array().into_iter().flatten().map(part).collect()
}

/// A turn that answers in pieces.
pub(crate) fn answers(pieces: &[&str]) -> Vec<Value> {
    let mut script = vec![
        json!({"kind": "turn_started", "turn": 1, "prompt": "PROMPT"}),
        json!({"kind": "model_called", "turn": 1, "attempt": 1, "model": "gemma"}),
    ];
    script.extend(pieces.iter().map(|text| json!({"kind": "text_added", "turn": 1, "text": text})));
    let usage = json!({"input_tokens": 7, "output_tokens": pieces.len()});
    script.push(json!({"kind": "answered", "turn": 1, "text": pieces.concat(), "usage": usage}));
    script.push(json!({"kind": "turn_ended", "turn": 1, "outcome": {"type": "done"}, "usage": usage}));
    script
}

/// A turn that asks for a tool, and waits to be allowed; and what follows the decision.
pub(crate) fn asks() -> (Vec<Value>, Vec<Value>) {
    let call = json!({"id": "c1", "name": "shell", "arguments": {"command": "make"}});
    let script = vec![
        json!({"kind": "turn_started", "turn": 1, "prompt": "PROMPT"}),
        json!({"kind": "model_called", "turn": 1, "attempt": 1, "model": "gemma"}),
        json!({"kind": "text_added", "turn": 1, "text": "I build it."}),
        json!({"kind": "answered", "turn": 1, "text": "I build it.", "tool_calls": [call], "usage": {}}),
        json!({"kind": "tool_asked", "turn": 1, "call": "c1", "why": "it can change something"}),
    ];
    let result =
        json!({"outcome": "failed", "parts": [{"type": "text", "text": "no\u{1b}[2J rule\nsecond line"}]});
    let mut after = vec![
        json!({"kind": "tool_started", "turn": 1, "call": "c1"}),
        json!({"kind": "tool_ended", "turn": 1, "call": "c1", "result": result}),
        json!({"kind": "model_called", "turn": 1, "attempt": 2, "model": "gemma"}),
        json!({"kind": "text_added", "turn": 1, "text": "It has no rule."}),
    ];
    after.push(json!({"kind": "turn_ended", "turn": 1, "outcome": {"type": "done"}, "usage": {}}));
    (script, after)
}
