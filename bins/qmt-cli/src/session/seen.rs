//! What was seen of a turn, and what its calls of tools are.

use std::collections::BTreeMap;

use mesh_control::{EventToolCall, Happened, SessionEvent};
use serde::Serialize;
use serde_json::Value;

/// Longest line about a call of a tool, in characters.
const CALL_CHARS_MAX: usize = 160;

/// A turn, from the prompt on; with `--json` the result of `prompt` and `delegate`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct TurnSeen {
    /// The session's id.
    pub(crate) session: String,
    /// The id of its host.
    pub(crate) node: String,
    /// The prompt's id.
    pub(crate) prompt: String,
    /// The turn; none while the prompt waits for it.
    pub(crate) turn: Option<u32>,
    /// What the model said last.
    pub(crate) text: String,
    /// Each call of a tool that came to an end.
    pub(crate) tools: Vec<ToolSeen>,
    /// How the turn ended: `done`, `failed`, `limit_reached`, `cancelled`.
    pub(crate) outcome: Option<String>,
    /// Why it failed, or which limit was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cost_micros: Option<u64>,
    #[serde(skip)]
    calls: Calls,
}

/// A call of a tool that came to an end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ToolSeen {
    name: String,
    arguments: Value,
    outcome: String,
}

impl TurnSeen {
    pub(crate) fn of(session: &str, node: &str, prompt: &str) -> Self {
        let own = str::to_owned;
        Self { session: own(session), node: own(node), prompt: own(prompt), ..Self::default() }
    }

    /// The turn of a call that waits for a decision, from there on.
    pub(crate) fn of_call(session: &str, node: &str, asked: &Asked) -> Self {
        let call = EventToolCall {
            id: asked.call.clone(),
            name: asked.name.clone(),
            arguments: asked.arguments.clone(),
        };
        let calls = Calls { calls: BTreeMap::from([(call.id.clone(), call)]), asked: Vec::new() };
        Self { turn: Some(asked.turn), calls, ..Self::of(session, node, "") }
    }

    /// Its calls of tools.
    pub(crate) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Takes the next event of the session; whether it belongs to this turn.
    pub(crate) fn take(&mut self, happened: &Happened) -> bool {
        if let Happened::TurnStarted { turn, prompt } = happened
            && *prompt == self.prompt
        {
            self.turn = Some(*turn);
            return true;
        }
        let is_own = self.turn.is_some() && turn_of(happened) == self.turn;
        if !is_own {
            return false;
        }
        self.calls.take(happened);
        match happened {
            // What was said of an answer before counts for nothing when it is asked for again.
            Happened::ModelCalled { .. } => self.text.clear(),
            Happened::TextAdded { text, .. } => self.text.push_str(text),
            Happened::ToolEnded { call, result, .. } => {
                let (name, arguments) = self.calls.named(call);
                self.tools.push(ToolSeen { name, arguments, outcome: result.outcome.clone() });
            }
            Happened::TurnEnded { outcome, usage, .. } => {
                self.why = outcome.why.clone().or_else(|| outcome.limit.clone());
                self.outcome = Some(outcome.word.clone());
                self.input_tokens = usage.input_tokens;
                self.output_tokens = usage.output_tokens;
                self.cost_micros = usage.cost_micros;
            }
            _ => {}
        }
        true
    }
}

/// The turn that an event is part of.
pub(crate) fn turn_of(happened: &Happened) -> Option<u32> {
    match happened {
        Happened::TurnStarted { turn, .. }
        | Happened::Steered { turn, .. }
        | Happened::ModelCalled { turn, .. }
        | Happened::TextAdded { turn, .. }
        | Happened::ReasoningAdded { turn, .. }
        | Happened::Answered { turn, .. }
        | Happened::ModelFailed { turn, .. }
        | Happened::ToolAsked { turn, .. }
        | Happened::ToolDecided { turn, .. }
        | Happened::ToolStarted { turn, .. }
        | Happened::ToolPrinted { turn, .. }
        | Happened::ToolEnded { turn, .. }
        | Happened::TurnEnded { turn, .. } => Some(*turn),
        _ => None,
    }
}

/// The calls of tools that the answers of the turn under way asked for, and those of them that wait for a decision.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Calls {
    calls: BTreeMap<String, EventToolCall>,
    asked: Vec<Asked>,
}

/// A call that waits for a decision.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Asked {
    pub(crate) turn: u32,
    pub(crate) call: String,
    pub(crate) name: String,
    pub(crate) arguments: Value,
    pub(crate) why: String,
}

impl Calls {
    pub(crate) fn take(&mut self, happened: &Happened) {
        match happened {
            Happened::TurnStarted { .. } | Happened::TurnEnded { .. } => {
                self.calls.clear();
                self.asked.clear();
            }
            Happened::Answered { tool_calls, .. } => {
                self.calls.extend(tool_calls.iter().map(|call| (call.id.clone(), call.clone())));
            }
            Happened::ToolAsked { turn, call, why } => {
                let (name, arguments) = self.named(call);
                let (call, why) = (call.clone(), why.clone());
                self.asked.push(Asked { turn: *turn, call, name, arguments, why });
            }
            Happened::ToolDecided { call, .. } | Happened::ToolEnded { call, .. } => {
                self.asked.retain(|asked| asked.call != *call);
            }
            _ => {}
        }
    }

    /// The calls that wait for a decision, the oldest first.
    pub(crate) fn asked(&self) -> &[Asked] {
        &self.asked
    }

    /// The tool's name and arguments; the call's id for one that is not known.
    pub(crate) fn named(&self, call: &str) -> (String, Value) {
        match self.calls.get(call) {
            Some(call) => (call.name.clone(), call.arguments.clone()),
            None => (call.to_owned(), Value::Null),
        }
    }

    /// The call in a line: `shell {"command":"ls"}`.
    pub(crate) fn line(&self, call: &str) -> String {
        let (name, arguments) = self.named(call);
        line(&name, &arguments)
    }
}

/// A call of a tool in a line.
pub(crate) fn line(name: &str, arguments: &Value) -> String {
    let arguments = if arguments.is_null() { String::new() } else { format!(" {arguments}") };
    let whole = format!("{name}{arguments}");
    match whole.char_indices().nth(CALL_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &whole[..at]),
        None => whole,
    }
}

/// What the last of these events leave waiting for a decision.
pub(crate) fn asked_in<'a>(events: impl IntoIterator<Item = &'a SessionEvent>) -> Vec<Asked> {
    let mut calls = Calls::default();
    events.into_iter().for_each(|event| calls.take(&event.happened()));
    calls.asked
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn events(all: &[Value]) -> Vec<SessionEvent> {
        let number = |(at, body): (usize, &Value)| {
            let mut body = body.clone();
            body["number"] = json!(at + 1);
            serde_json::from_value(body).expect("an event")
        };
        all.iter().enumerate().map(number).collect()
    }

    #[test]
    fn a_turn_is_gathered_among_others() {
        let log = events(&[
            json!({"kind": "text_added", "turn": 1, "text": "not mine"}),
            json!({"kind": "prompted", "prompt": "p", "parts": []}),
            json!({"kind": "turn_ended", "turn": 1, "outcome": {"type": "done"}, "usage": {}}),
            json!({"kind": "turn_started", "turn": 2, "prompt": "p"}),
            json!({"kind": "model_called", "turn": 2, "attempt": 1}),
            json!({"kind": "text_added", "turn": 2, "text": "let me"}),
            json!({"kind": "model_failed", "turn": 2, "why": "busy", "retry_ms": 1}),
            json!({"kind": "model_called", "turn": 2, "attempt": 2}),
            json!({"kind": "text_added", "turn": 2, "text": "I look"}),
            json!({"kind": "answered", "turn": 2, "text": "I look",
                "tool_calls": [{"id": "c1", "name": "list", "arguments": {"path": "."}}], "usage": {}}),
            json!({"kind": "tool_started", "turn": 2, "call": "c1"}),
            json!({"kind": "tool_ended", "turn": 2, "call": "c1", "result": {"outcome": "done", "parts": []}}),
            json!({"kind": "model_called", "turn": 2, "attempt": 3}),
            json!({"kind": "text_added", "turn": 2, "text": "Two "}),
            json!({"kind": "text_added", "turn": 2, "text": "files"}),
            json!({"kind": "turn_ended", "turn": 2, "outcome": {"type": "limit_reached", "limit": "time"},
                "usage": {"input_tokens": 3, "output_tokens": 4}}),
        ]);
        let mut seen = TurnSeen::of("s", "n", "p");
        let own = log.iter().filter(|event| seen.take(&event.happened())).count();
        assert_eq!((own, seen.turn, seen.text.as_str()), (13, Some(2), "Two files"));
        assert_eq!(
            serde_json::to_value(&seen.tools).expect("JSON"),
            json!([{"name": "list", "arguments": {"path": "."}, "outcome": "done"}])
        );
        assert_eq!((seen.outcome.as_deref(), seen.why.as_deref()), (Some("limit_reached"), Some("time")));
        assert_eq!((seen.input_tokens, seen.output_tokens), (3, 4));
    }

    #[test]
    fn what_waits_for_a_decision_is_what_nobody_decided() {
        let calls = json!([{"id": "a", "name": "shell", "arguments": {"command": "ls"}}, {"id": "b", "name": "edit"}]);
        let answered = json!({"kind": "answered", "turn": 1, "text": "", "tool_calls": calls, "usage": {}});
        let asked = |call: &str| json!({"kind": "tool_asked", "turn": 1, "call": call, "why": "it changes"});
        let mut log = vec![answered, asked("a"), asked("b")];
        let names =
            |log: &[Value]| asked_in(&events(log)).iter().map(|asked| asked.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&log), ["shell", "edit"]);
        log.push(json!({"kind": "tool_decided", "turn": 1, "call": "a", "allowed": false}));
        assert_eq!(names(&log), ["edit"]);
        log.push(json!({"kind": "turn_ended", "turn": 1, "outcome": {"type": "cancelled"}}));
        assert!(names(&log).is_empty());
    }

    #[test]
    fn a_long_call_is_cut_between_characters() {
        let text = line("shell", &json!({"command": "é".repeat(500)}));
        assert_eq!(text.chars().count(), CALL_CHARS_MAX + 1);
        assert!(text.starts_with("shell {\"command\":\"éé") && text.ends_with("é…"));
        assert_eq!(line("c1", &Value::Null), "c1");
    }
}
