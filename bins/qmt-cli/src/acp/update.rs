//! What a session's events are to an editor. Pure.

use std::collections::BTreeMap;

use mesh_control::{EventToolCall, Happened};
use serde_json::{Value, json};

use crate::session::seen::line;

/// The most of what a tool said that an editor is shown, in bytes.
pub(super) const TOOL_BYTES_MAX: usize = 64 * 1024;

/// The most of what a tool prints while it runs that an editor is shown, in bytes: each piece brings all of it again.
const PRINTED_BYTES_MAX: usize = 4 * 1024;

/// What the editor was shown.
#[derive(Debug, Default)]
pub(super) struct Updates {
    /// Some of an answer that is not complete: it counts for nothing when the model is asked again.
    has_shown: bool,
    /// The end of what each running tool has printed, by its call: an update replaces the one before.
    printed: BTreeMap<String, String>,
}

impl Updates {
    /// The updates that an event brings. `said` are the words of its parts, where it has some.
    pub(super) fn of(&mut self, happened: &Happened, said: &str) -> Vec<Value> {
        match happened {
            Happened::Prompted { .. } | Happened::Steered { .. } => vec![chunk("user_message_chunk", said)],
            // What was shown cannot be taken back.
            Happened::ModelCalled { .. } if std::mem::take(&mut self.has_shown) => {
                vec![chunk("agent_message_chunk", "\n\n(the answer broke off and begins again)\n\n")]
            }
            Happened::TurnEnded { .. } => {
                self.has_shown = false;
                self.printed.clear();
                Vec::new()
            }
            Happened::TextAdded { text, .. } => {
                self.has_shown = true;
                vec![chunk("agent_message_chunk", text)]
            }
            Happened::ReasoningAdded { text, .. } => vec![chunk("agent_thought_chunk", text)],
            Happened::Answered { turn, tool_calls, .. } => {
                self.has_shown = false;
                tool_calls.iter().map(|call| tool_call(*turn, call)).collect()
            }
            Happened::ToolStarted { turn, call } => vec![json!({
                "sessionUpdate": "tool_call_update", "toolCallId": call_id(*turn, call), "status": "in_progress",
            })],
            Happened::ToolPrinted { turn, call, text } => {
                let id = call_id(*turn, call);
                let printed = self.printed.entry(id.clone()).or_default();
                printed.push_str(text);
                printed.drain(..printed.ceil_char_boundary(printed.len().saturating_sub(PRINTED_BYTES_MAX)));
                vec![json!({
                    "sessionUpdate": "tool_call_update", "toolCallId": id, "status": "in_progress",
                    "content": [{"type": "content", "content": {"type": "text", "text": printed}}],
                })]
            }
            Happened::ToolEnded { turn, call, result } => {
                self.printed.remove(&call_id(*turn, call));
                let status = if result.outcome == "done" { "completed" } else { "failed" };
                let shown = &said[..said.floor_char_boundary(TOOL_BYTES_MAX)];
                let text = match result.outcome.as_str() {
                    "done" | "failed" => shown.to_owned(),
                    outcome => format!("({outcome}) {shown}"),
                };
                vec![json!({
                    "sessionUpdate": "tool_call_update", "toolCallId": call_id(*turn, call), "status": status,
                    "content": [{"type": "content", "content": {"type": "text", "text": text}}],
                })]
            }
            _ => Vec::new(),
        }
    }
}

fn chunk(kind: &str, text: &str) -> Value {
    json!({"sessionUpdate": kind, "content": {"type": "text", "text": text}})
}

/// A call's id in the whole session: models give ids that are unique within a turn.
pub(super) fn call_id(turn: u32, call: &str) -> String {
    format!("{turn}/{call}")
}

fn tool_call(turn: u32, call: &EventToolCall) -> Value {
    json!({
        "sessionUpdate": "tool_call", "toolCallId": call_id(turn, &call.id),
        "title": line(&call.name, &call.arguments), "kind": kind(&call.name), "status": "pending",
        "rawInput": call.arguments,
    })
}

/// What a tool does, in the protocol's words.
fn kind(tool: &str) -> &'static str {
    match tool {
        "read_file" => "read",
        "edit" | "write_file" => "edit",
        "list" | "search" => "search",
        "shell" => "execute",
        _ => "other",
    }
}

/// How a turn ended, in the protocol's words; the error is for turns that failed.
pub(super) fn stop_reason(outcome: &mesh_control::EventOutcome) -> Result<&'static str, String> {
    match (outcome.word.as_str(), outcome.limit.as_deref()) {
        ("done", _) => Ok("end_turn"),
        ("cancelled", _) => Ok("cancelled"),
        ("limit_reached", Some("tokens")) => Ok("max_tokens"),
        ("limit_reached", _) => Ok("max_turn_requests"),
        (_, _) => Err(outcome.why.clone().unwrap_or_else(|| format!("the turn ended as {}", outcome.word))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happened(value: Value) -> Happened {
        serde_json::from_value(value).expect("an event")
    }

    #[test]
    fn an_answer_that_begins_again_says_so() {
        let mut updates = Updates::default();
        let called = happened(json!({"kind": "model_called", "turn": 1, "attempt": 2}));
        assert!(updates.of(&called, "").is_empty(), "nothing was shown yet");
        let text = happened(json!({"kind": "text_added", "turn": 1, "text": "El"}));
        assert_eq!(updates.of(&text, ""), [chunk("agent_message_chunk", "El")]);
        assert!(updates.of(&called, "")[0].to_string().contains("begins again"));
        assert!(updates.of(&called, "").is_empty(), "once");
        let answered = happened(json!({"kind": "answered", "turn": 1, "text": "El", "usage": {}}));
        assert_eq!((updates.of(&text, "").len(), updates.of(&answered, "").len()), (1, 0));
        assert!(updates.of(&called, "").is_empty(), "a complete answer counts");
    }

    #[test]
    fn a_tool_is_told_from_its_call_to_its_end() {
        let mut updates = Updates::default();
        let calls = json!([{"id": "c1", "name": "shell", "arguments": {"command": "ls"}}]);
        let answered =
            happened(json!({"kind": "answered", "turn": 2, "text": "", "tool_calls": calls, "usage": {}}));
        let call = &updates.of(&answered, "")[0];
        assert_eq!(
            (&call["toolCallId"], &call["kind"], &call["status"]),
            (&"2/c1".into(), &"execute".into(), &"pending".into())
        );
        let print = |text: &str| {
            let text = text.to_owned();
            happened(json!({"kind": "tool_printed", "turn": 2, "call": "c1", "text": text}))
        };
        updates.of(&print("one\n"), "");
        let printed = &updates.of(&print("two\n"), "")[0];
        assert_eq!(
            (&printed["toolCallId"], &printed["status"], &printed["content"][0]["content"]["text"]),
            (&"2/c1".into(), &"in_progress".into(), &"one\ntwo\n".into())
        );
        let long = &updates.of(&print(&"é".repeat(PRINTED_BYTES_MAX)), "")[0];
        let shown = long["content"][0]["content"]["text"].as_str().expect("text");
        assert!(shown.len() == PRINTED_BYTES_MAX && shown.starts_with('é'), "{} bytes", shown.len());
        let result = json!({"outcome": "denied", "parts": []});
        let ended = happened(json!({"kind": "tool_ended", "turn": 2, "call": "c1", "result": result}));
        let end = &updates.of(&ended, &"é".repeat(TOOL_BYTES_MAX))[0];
        assert_eq!(end["status"], "failed");
        let text = end["content"][0]["content"]["text"].as_str().expect("text");
        assert!(text.starts_with("(denied) éé") && text.len() <= TOOL_BYTES_MAX + 16);
    }
}
