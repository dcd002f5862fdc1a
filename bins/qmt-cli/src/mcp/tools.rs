//! What can be called, and what it does.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_control::{Client, CreateSession, DecideTool, PromptPart, PromptSession, SearchQuery, SessionQuery};
use rmcp::RoleServer;
use rmcp::model::{Tool, ToolAnnotations};
use rmcp::service::RequestContext;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::transcript::{Reading, read};
use super::wait::wait;
use crate::failure::Failure;
use crate::session::change::waiting_call;
use crate::session::seen::TurnSeen;
use crate::session::turn::{address, at_first, new_id, patiently};

/// How long a call waits for a turn unless it says otherwise: longer than most turns, shorter than most callers' patience.
const WAIT: u64 = 300;
/// The longest wait of one call.
const WAIT_MAX: u64 = 3600;
/// The most of a session that one call reads, in bytes.
const READ_BYTES: usize = 48 * 1024;

pub(super) fn list() -> Vec<Tool> {
    let agent = json!({"type": "string", "description": "NAME, or NAME@NODE for the one of that node, as list_agents has them"});
    let session = json!({"type": "string", "description": "A session's id, the beginning of it, or its name; @NODE behind it for another node's"});
    let waiting = json!({"type": "integer", "minimum": 0, "maximum": WAIT_MAX, "description": "How many seconds to wait for the answer (default 300); the work goes on after that"});
    vec![
        tool(
            "list_nodes",
            "The machines of the mesh: names, state, models, free memory, round trip.",
            true,
            json!({}),
            &[],
        ),
        tool(
            "list_agents",
            "The agents that can be asked: name, node, what they are for, model, tools, state.",
            true,
            json!({}),
            &[],
        ),
        tool(
            "delegate",
            "Gives a task to an agent in a new session, waits, and returns its answer and the session's id. The agent knows \
             nothing of this conversation: say in the task all that it needs.",
            false,
            json!({"agent": agent, "task": {"type": "string"}, "wait_seconds": waiting}),
            &["agent", "task"],
        ),
        tool(
            "list_sessions",
            "Sessions with agents, the newest first.",
            true,
            json!({
                "agent": {"type": "string", "description": "Only with this agent"},
                "unfinished": {"type": "boolean", "description": "Only those that have work left"},
                "all_nodes": {"type": "boolean", "description": "Of all nodes, not of this one alone"},
                "limit": {"type": "integer", "minimum": 1, "maximum": 1000},
            }),
            &[],
        ),
        tool(
            "read_session",
            "What was said and done in a session, as numbered events; read on after the last number that is returned.",
            true,
            json!({"session": session, "after": {"type": "integer", "minimum": 0, "description": "Only events after this number"}}),
            &["session"],
        ),
        tool(
            "prompt_session",
            "Says something to the agent of a session, waits, and returns its answer.",
            false,
            json!({"session": session, "text": {"type": "string"}, "wait_seconds": waiting}),
            &["session", "text"],
        ),
        tool(
            "decide_tool",
            "Allows or denies a tool that an agent of a session may only use when somebody allows it, waits, and returns what came \
             of it. Decide as the person would for whom you work; ask when in doubt.",
            false,
            json!({
                "session": session,
                "allow": {"type": "boolean"},
                "call": {"type": "string", "description": "The call, or the beginning of it; may be left out when only one waits"},
                "wait_seconds": waiting,
            }),
            &["session", "allow"],
        ),
        tool(
            "search_sessions",
            "Finds where words were said in the sessions of this node, or of another.",
            true,
            json!({"words": {"type": "string"}, "node": {"type": "string", "description": "The other node's name or id"}, "limit": {"type": "integer", "minimum": 1, "maximum": 200}}),
            &["words"],
        ),
    ]
}

fn tool(
    name: &'static str,
    description: &'static str,
    only_reads: bool,
    properties: Value,
    required: &[&str],
) -> Tool {
    let schema = json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    let Value::Object(schema) = schema else { unreachable!("it was written as an object") };
    Tool::new(name, description, schema).with_annotations(ToolAnnotations::new().read_only(only_reads))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Delegate {
    agent: String,
    task: String,
    wait_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListSessions {
    agent: Option<String>,
    #[serde(default)]
    unfinished: bool,
    #[serde(default)]
    all_nodes: bool,
    limit: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadSession {
    session: String,
    #[serde(default)]
    after: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Prompt {
    session: String,
    text: String,
    wait_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Decide {
    session: String,
    allow: bool,
    call: Option<String>,
    wait_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Search {
    words: String,
    node: Option<String>,
    limit: Option<u32>,
}

/// Does what a tool does; what it returns is for the calling model.
pub(super) async fn call(
    client: &Client,
    name: &str,
    arguments: Value,
    context: &RequestContext<RoleServer>,
) -> Result<String, Failure> {
    match name {
        "list_nodes" => {
            let Nothing {} = understood(arguments)?;
            text(&client.nodes().await?)
        }
        "list_agents" => {
            let Nothing {} = understood(arguments)?;
            text(&client.agents().await?)
        }
        "list_sessions" => {
            let ListSessions { agent, unfinished, all_nodes, limit } = understood(arguments)?;
            let query = SessionQuery {
                agent,
                unfinished,
                all: all_nodes,
                limit: Some(limit.unwrap_or(50).clamp(1, 1000)),
                ..SessionQuery::default()
            };
            text(&client.sessions(&query).await?)
        }
        "search_sessions" => {
            let Search { words, node, limit } = understood(arguments)?;
            let limit = limit.map(|limit| limit.clamp(1, 200));
            text(&client.search_sessions(&SearchQuery { words, node, limit }).await?)
        }
        "read_session" => {
            let ReadSession { session, after } = understood(arguments)?;
            let view = client.session(&session).await?;
            let address = address(&view.id, &view.node);
            read(client, &view, Reading { session: address, after, bytes_max: READ_BYTES }).await
        }
        "prompt_session" => {
            let Prompt { session, text, wait_seconds } = understood(arguments)?;
            let view = at_first(|_| (), || client.session(&session)).await?;
            prompt(client, &view.id, &view.node, text, wait_seconds, context).await
        }
        "decide_tool" => {
            let Decide { session, allow, call, wait_seconds } = understood(arguments)?;
            let view = at_first(|_| (), || client.session(&session)).await?;
            let asked = waiting_call(client, &view, call).await?;
            let seen = TurnSeen::of_call(&view.id, &view.node, &asked);
            let session = address(&view.id, &view.node);
            let decision = DecideTool { session, turn: asked.turn, call: asked.call, allowed: allow };
            client.decide(&decision).await?;
            // What came of it may be in the log already.
            text(&wait(client, seen, view.last, patience(wait_seconds), context).await?)
        }
        "delegate" => {
            let Delegate { agent, task, wait_seconds } = understood(arguments)?;
            let new =
                CreateSession { id: new_id(), agent, labels: BTreeMap::new(), ..CreateSession::default() };
            let view = at_first(|_| (), || client.create_session(&new)).await?;
            prompt(client, &view.id, &view.node, task, wait_seconds, context).await
        }
        other => Err(Failure::new("unknown_tool", format!("there is no tool {other:?}"))),
    }
}

async fn prompt(
    client: &Client,
    id: &str,
    node: &str,
    said: String,
    wait_seconds: Option<u64>,
    context: &RequestContext<RoleServer>,
) -> Result<String, Failure> {
    let parts = vec![PromptPart::Text { text: said }];
    let request = PromptSession { session: address(id, node), prompt: new_id(), parts };
    let written = patiently(|_| (), || client.prompt(&request)).await?;
    let seen = TurnSeen::of(id, node, &request.prompt);
    let after = written.number.saturating_sub(1);
    text(&wait(client, seen, after, patience(wait_seconds), context).await?)
}

fn patience(wait_seconds: Option<u64>) -> Duration {
    Duration::from_secs(wait_seconds.unwrap_or(WAIT).min(WAIT_MAX))
}

fn understood<T: DeserializeOwned>(arguments: Value) -> Result<T, Failure> {
    serde_json::from_value(arguments)
        .map_err(|error| Failure::new("bad_request", format!("the arguments are not understood: {error}")))
}

fn text<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value)
        .map_err(|error| Failure::new("internal", format!("the result is no JSON: {error}")))
}
