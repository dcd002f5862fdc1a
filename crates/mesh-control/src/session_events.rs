//! The events of a session as readers see them, and how a stream of them ends.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::types::session::PartyView;

/// One event of a session's log, with all that its host wrote.
///
/// On a stream it is `id: NUMBER`, `event: KIND` and one line of `data:`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SessionEvent {
    /// Its place in the log; the first has 1, each next one more.
    pub number: u64,
    /// When its host wrote it, Unix milliseconds.
    #[serde(default)]
    pub at_ms: u64,
    /// `kind` and the rest, as they came.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl SessionEvent {
    /// What happened, in a word.
    pub fn kind(&self) -> &str {
        self.fields.get("kind").and_then(Value::as_str).unwrap_or_default()
    }

    /// What happened, as far as this version knows it: [`Happened::Other`] for the rest, and for what has another shape.
    pub fn happened(&self) -> Happened {
        Happened::deserialize(&self.fields).unwrap_or(Happened::Other)
    }
}

/// What happened in a session: what readers act on. `docs/sessions.md` tells what each means.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are those of the log, which docs/sessions.md describes")]
pub enum Happened {
    Created {
        agent: String,
        #[serde(default)]
        owner: PartyView,
    },
    Forked {
        parent: String,
        cut: u64,
        #[serde(default)]
        owner: PartyView,
    },
    Named {
        #[serde(default)]
        name: Option<String>,
    },
    Prompted {
        prompt: String,
        #[serde(default)]
        by: PartyView,
        #[serde(default)]
        parts: Vec<EventPart>,
    },
    Posted {
        post: String,
        #[serde(default)]
        by: PartyView,
        #[serde(default)]
        agent: Option<String>,
        #[serde(default)]
        parts: Vec<EventPart>,
    },
    Steered {
        turn: u32,
        #[serde(default)]
        by: PartyView,
        #[serde(default)]
        parts: Vec<EventPart>,
    },
    TurnStarted {
        turn: u32,
        prompt: String,
    },
    ModelCalled {
        turn: u32,
        #[serde(default)]
        attempt: u32,
        #[serde(default)]
        model: String,
    },
    TextAdded {
        turn: u32,
        text: String,
    },
    ReasoningAdded {
        turn: u32,
        text: String,
    },
    Answered {
        turn: u32,
        text: EventText,
        #[serde(default)]
        reasoning: Option<EventText>,
        #[serde(default)]
        tool_calls: Vec<EventToolCall>,
        #[serde(default)]
        usage: EventUsage,
    },
    ModelFailed {
        turn: u32,
        #[serde(default)]
        why: String,
        #[serde(default)]
        retry_ms: Option<u64>,
    },
    ToolAsked {
        turn: u32,
        call: String,
        #[serde(default)]
        why: String,
    },
    ToolDecided {
        turn: u32,
        call: String,
        allowed: bool,
    },
    ToolStarted {
        turn: u32,
        call: String,
    },
    ToolPrinted {
        turn: u32,
        call: String,
        text: String,
    },
    ToolEnded {
        turn: u32,
        call: String,
        result: EventToolResult,
    },
    TurnEnded {
        turn: u32,
        outcome: EventOutcome,
        #[serde(default)]
        usage: EventUsage,
    },
    Suspended {
        #[serde(default)]
        why: String,
    },
    Resumed,
    Archived,
    HandedOver {
        #[serde(default)]
        epoch: u64,
        to: String,
    },
    /// A kind that this version does not know, or that no reader acts on.
    #[serde(other)]
    Other,
}

/// A text: in its place, or a content of the session (`GET /api/sessions/content`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum EventText {
    /// The text.
    Inline(String),
    /// Where it is.
    Blob {
        /// For [`crate::ContentQuery::blob`].
        blob: String,
        /// Its length.
        bytes: u64,
    },
}

/// A part of a prompt or of a tool's result.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventPart {
    /// Text.
    Text {
        /// The text.
        text: EventText,
    },
    /// An image.
    Image {
        /// Such as `image/png`.
        media_type: String,
        /// For [`crate::ContentQuery::blob`].
        blob: String,
        /// Its length.
        bytes: u64,
    },
    /// A part that this version does not know.
    #[serde(other)]
    Other,
}

/// A call of a tool as a model asked for it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EventToolCall {
    /// Unique within the turn.
    pub id: String,
    /// The tool.
    pub name: String,
    /// The arguments.
    #[serde(default)]
    pub arguments: Value,
}

/// What came of a call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EventToolResult {
    /// `done`, `failed`, `denied`, `cancelled` or `unknown`.
    pub outcome: String,
    /// What the model is told.
    #[serde(default)]
    pub parts: Vec<EventPart>,
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EventOutcome {
    /// `done`, `cancelled`, `limit_reached` or `failed`.
    #[serde(rename = "type")]
    pub word: String,
    /// Which limit was reached.
    #[serde(default)]
    pub limit: Option<String>,
    /// Why it failed.
    #[serde(default)]
    pub why: Option<String>,
}

/// What model calls used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EventUsage {
    /// Tokens of prompts.
    #[serde(default)]
    pub input_tokens: u64,
    /// Tokens of answers.
    #[serde(default)]
    pub output_tokens: u64,
    /// The price in millionths of the account's currency.
    #[serde(default)]
    pub cost_micros: Option<u64>,
}

/// Why a stream of events ended: its one terminal event, `event: end` without an `id:`. A connection that ends without it
/// broke, and the reader goes on by `Last-Event-ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StreamEnd {
    /// Why.
    pub end: EndReason,
    /// With `moved`: id of the node that hosts the session now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// With `failed`: what went wrong, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Why a stream of events ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum EndReason {
    /// The session is archived: nothing more comes.
    Archived,
    /// What there was has been sent, and no more was asked for (`past`).
    Past,
    /// Another node hosts the session now, and the answering node cannot follow it there.
    Moved,
    /// The session was deleted, or the reader may not watch it any more.
    Gone,
    /// The answering node stops; the reader goes on by `Last-Event-ID` when it is back.
    Stopping,
    /// The host was not reached again within the grace period, or its store failed.
    Failed,
    /// A word that this version does not know.
    #[serde(other)]
    Unknown,
}

impl StreamEnd {
    /// An end for this reason.
    pub fn new(end: EndReason) -> Self {
        Self { end, node: None, why: None }
    }

    /// The end as a server-sent event.
    pub fn to_sse(&self) -> String {
        let data = serde_json::to_string(self).expect("words and texts always serialize");
        format!("event: end\ndata: {data}\n\n")
    }
}

/// What a stream brings.
#[derive(Debug, Clone, PartialEq)]
pub enum SessionItem {
    /// An event.
    Event(SessionEvent),
    /// The end; nothing follows.
    End(StreamEnd),
}

impl SessionItem {
    pub(crate) fn parse(data: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        #[serde(untagged)]
        enum Either {
            End(StreamEnd),
            Event(SessionEvent),
        }
        Ok(match serde_json::from_slice(data)? {
            Either::End(end) => Self::End(end),
            Either::Event(event) => Self::Event(event),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> SessionEvent {
        match SessionItem::parse(text.as_bytes()).expect("it parses") {
            SessionItem::Event(event) => event,
            SessionItem::End(end) => panic!("{end:?}"),
        }
    }

    #[test]
    fn events_are_read_as_the_log_writes_them() {
        let added = event(r#"{"number":9,"at_ms":1,"kind":"text_added","turn":2,"text":"hel"}"#);
        assert_eq!((added.number, added.kind()), (9, "text_added"));
        assert_eq!(added.happened(), Happened::TextAdded { turn: 2, text: "hel".into() });
        let ended = event(
            r#"{"number":10,"at_ms":1,"kind":"tool_ended","turn":2,"call":"c1","result":{"outcome":"done","parts":
            [{"type":"text","text":{"blob":"ab","bytes":7}},{"type":"hologram","depth":3}]}}"#,
        );
        let Happened::ToolEnded { result, .. } = ended.happened() else { panic!("{ended:?}") };
        let blob = EventText::Blob { blob: "ab".into(), bytes: 7 };
        assert_eq!(result.parts, [EventPart::Text { text: blob }, EventPart::Other]);
        let archived = event(r#"{"number":11,"at_ms":1,"kind":"archived","by":{"node":"x"}}"#);
        assert_eq!(archived.happened(), Happened::Archived);
    }

    #[test]
    fn what_is_not_known_passes_unchanged() {
        let text = r#"{"number":7,"at_ms":12,"kind":"dreamt","of":{"sheep":3}}"#;
        let dreamt = event(text);
        assert_eq!((dreamt.kind(), dreamt.happened()), ("dreamt", Happened::Other));
        let again = serde_json::to_value(&dreamt).expect("serializes");
        assert_eq!(again, serde_json::from_str::<Value>(text).expect("JSON"));
        let odd = event(r#"{"number":8,"kind":"text_added","turn":"two","text":"x"}"#);
        assert_eq!(odd.happened(), Happened::Other);
    }

    #[test]
    fn an_end_is_no_event_and_an_event_no_end() {
        let end = StreamEnd { end: EndReason::Moved, node: Some("12D3".into()), why: None };
        assert_eq!(end.to_sse(), "event: end\ndata: {\"end\":\"moved\",\"node\":\"12D3\"}\n\n");
        let newer = SessionItem::parse(br#"{"end":"eclipsed","by":"moon"}"#).expect("a newer word");
        assert_eq!(newer, SessionItem::End(StreamEnd::new(EndReason::Unknown)));
        assert!(SessionItem::parse(b"{}").is_err());
        assert!(SessionItem::parse(b"[1]").is_err());
    }
}
