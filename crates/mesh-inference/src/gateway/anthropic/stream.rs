//! Anthropic's stream of events as OpenAI's stream of chunks. Pure: events in, events out.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Failure, Usage, finish_reason, now, usage};
use super::request::Asked;
use crate::gateway::door::Rewrite;
use crate::gateway::survive::data_of;
use crate::terms::Spending;

/// Blocks that an answer may have open. Models write one after the other.
const OPEN_MAX: usize = 64;

/// One answer on its way.
pub(super) struct Chunks {
    asked: Asked,
    secret: Option<crate::backend::Secret>,
    spending: Spending,
    id: String,
    created: u64,
    usage: Usage,
    stop_reason: Option<String>,
    role_told: bool,
    calls: u64,
    /// Blocks of tools that are open, by their number in the message.
    open: BTreeMap<u64, OpenCall>,
    failure: Option<Failure>,
    over: bool,
}

struct OpenCall {
    /// Its number among the calls.
    index: u64,
    /// Some servers give the whole input at once, as the API does where there is none.
    input: Value,
    has_text: bool,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    MessageStart {
        message: Start,
    },
    ContentBlockStart {
        index: u64,
        content_block: BlockStart,
    },
    ContentBlockDelta {
        index: u64,
        delta: Delta,
    },
    ContentBlockStop {
        index: u64,
    },
    MessageDelta {
        #[serde(default)]
        delta: MessageDelta,
        #[serde(default)]
        usage: Usage,
    },
    MessageStop,
    Error,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Start {
    #[serde(default)]
    id: String,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum BlockStart {
    Text {
        #[serde(default)]
        text: String,
    },
    Thinking {
        #[serde(default)]
        thinking: String,
    },
    ToolUse {
        id: String,
        name: String,
        #[serde(default)]
        input: Value,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Delta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: String },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
    #[serde(other)]
    Other,
}

#[derive(Deserialize, Default)]
struct MessageDelta {
    #[serde(default)]
    stop_reason: Option<String>,
}

impl Chunks {
    pub(super) fn new(asked: Asked, secret: Option<crate::backend::Secret>, spending: Spending) -> Self {
        Self {
            asked,
            secret,
            spending,
            id: String::new(),
            created: now(),
            usage: Usage::default(),
            stop_reason: None,
            role_told: false,
            calls: 0,
            open: BTreeMap::new(),
            failure: None,
            over: false,
        }
    }

    /// What the provider failed with before it said anything.
    pub(super) fn early_failure(&self) -> Option<&Failure> {
        self.failure.as_ref().filter(|_| !self.role_told)
    }

    fn say(&mut self, mut delta: Value, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.role_told, true) {
            delta["role"] = "assistant".into();
        }
        self.chunk(&json!([{ "index": 0, "delta": delta, "finish_reason": null }]), None, out);
    }

    fn chunk(&self, choices: &Value, usage: Option<Value>, out: &mut Vec<u8>) {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.asked.model,
            "choices": choices,
        });
        if let Some(usage) = usage {
            chunk["usage"] = usage;
        }
        write(&chunk, out);
    }

    fn text(&mut self, key: &str, text: String, out: &mut Vec<u8>) {
        if !text.is_empty() {
            self.spending.note_text(text.len());
            self.say(json!({ key: text }), out);
        }
    }

    fn arguments(&mut self, index: u64, text: String, out: &mut Vec<u8>) {
        self.spending.note_text(text.len());
        self.say(json!({ "tool_calls": [{ "index": index, "function": { "arguments": text } }] }), out);
    }

    fn begin(&mut self, block: u64, start: BlockStart, out: &mut Vec<u8>) -> Result<(), String> {
        match start {
            BlockStart::Text { text } => self.text("content", text, out),
            BlockStart::Thinking { thinking } => self.text("reasoning_content", thinking, out),
            BlockStart::ToolUse { id, name, input } => {
                if self.open.len() >= OPEN_MAX {
                    return Err(format!("more than {OPEN_MAX} blocks are open at a time"));
                }
                let index = self.calls;
                self.calls += 1;
                let function = json!({ "name": name, "arguments": "" });
                let call = json!({ "index": index, "id": id, "type": "function", "function": function });
                self.open.insert(block, OpenCall { index, input, has_text: false });
                self.say(json!({ "tool_calls": [call] }), out);
            }
            BlockStart::Other => {}
        }
        Ok(())
    }

    fn delta(&mut self, block: u64, delta: Delta, out: &mut Vec<u8>) {
        match delta {
            Delta::Text { text } => self.text("content", text, out),
            Delta::Thinking { thinking } => self.text("reasoning_content", thinking, out),
            Delta::InputJson { partial_json } => {
                // Tools that run at the provider are no concern of the caller: their blocks are not open here.
                let Some(call) = self.open.get_mut(&block).filter(|_| !partial_json.is_empty()) else {
                    return;
                };
                call.has_text = true;
                let index = call.index;
                self.arguments(index, partial_json, out);
            }
            Delta::Other => {}
        }
    }

    fn stop(&mut self, block: u64, out: &mut Vec<u8>) {
        let Some(call) = self.open.remove(&block).filter(|call| !call.has_text) else { return };
        let input = if call.input.is_object() { call.input } else { json!({}) };
        self.arguments(call.index, input.to_string(), out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if !self.role_told {
            self.say(json!({ "content": "" }), out);
        }
        let reason = finish_reason(self.stop_reason.as_deref());
        self.chunk(&json!([{ "index": 0, "delta": {}, "finish_reason": reason }]), None, out);
        let counted = self.usage.counted();
        self.spending.complete(counted);
        if self.asked.usage {
            let price = self.spending.terms().price;
            self.chunk(&json!([]), Some(usage(counted, price)), out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
        self.over = true;
    }
}

impl Rewrite for Chunks {
    fn event(&mut self, event: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let Some(data) = data_of(event) else { return Ok(()) };
        let read: Event =
            serde_json::from_slice(&data).map_err(|error| format!("an event cannot be read: {error}"))?;
        match read {
            Event::MessageStart { message } => {
                self.id = message.id;
                self.usage = message.usage;
                self.spending.count(self.usage.counted());
            }
            Event::ContentBlockStart { index, content_block } => self.begin(index, content_block, out)?,
            Event::ContentBlockDelta { index, delta } => self.delta(index, delta, out),
            Event::ContentBlockStop { index } => self.stop(index, out),
            Event::MessageDelta { delta, usage } => {
                self.stop_reason = delta.stop_reason.or(self.stop_reason.take());
                self.usage.update(usage);
                self.spending.count(self.usage.counted());
            }
            Event::MessageStop => self.end(out),
            Event::Error => {
                let failure = Failure::of_event(&data);
                if self.role_told {
                    write(&failure.json(self.secret.as_ref().map(crate::backend::Secret::expose)), out);
                }
                self.failure = Some(failure);
                self.over = true;
            }
            Event::Other => {}
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.over
    }
}

fn write(json: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("data: {json}\n\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::gateway::survive::events;
    use crate::terms::{Api, Price, Quota, Terms};

    fn chunks(usage: bool) -> Chunks {
        let price = Price { input: 1.0, output: 10.0, cached: None };
        let terms = Arc::new(Terms::new(Api::Anthropic, Quota::default(), Some(price)));
        let asked = Asked { model: "claude".into(), stream: true, usage };
        Chunks::new(asked, Some(crate::backend::Secret::new("sk-1")), Spending::new(terms, None))
    }

    fn event(data: &Value) -> String {
        format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap())
    }

    /// The data of the events that come of these, `created` and what never changes left out.
    fn said(chunks: &mut Chunks, list: &[Value]) -> Vec<Value> {
        let text: String = list.iter().map(event).collect();
        let mut out = Vec::new();
        for event in events(text.as_bytes()) {
            chunks.event(event, &mut out).unwrap();
        }
        let datas = events(&out).filter_map(|event| data_of(event).map(|data| data.into_owned()));
        datas
            .map(|data| match serde_json::from_slice::<Value>(&data) {
                Ok(mut chunk) => {
                    let chunk = chunk.as_object_mut().unwrap();
                    for key in ["created", "object", "model", "id"] {
                        chunk.remove(key);
                    }
                    Value::Object(chunk.clone())
                }
                Err(_) => String::from_utf8(data).unwrap().into(),
            })
            .collect()
    }

    fn delta(delta: Value) -> Value {
        json!({ "choices": [{ "index": 0, "delta": delta, "finish_reason": null }] })
    }

    fn start() -> Value {
        json!({ "type": "message_start", "message": { "id": "msg_1", "type": "message", "role": "assistant", "content": [],
            "model": "claude-x", "stop_reason": null, "usage": { "input_tokens": 25, "output_tokens": 1 } } })
    }

    #[test]
    fn a_stream_as_it_is_documented() {
        let list = [
            start(),
            json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "thinking", "thinking": "", "signature": "" } }),
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "thinking_delta", "thinking": "hm" } }),
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "signature_delta", "signature": "x" } }),
            json!({ "type": "content_block_stop", "index": 0 }),
            json!({ "type": "ping" }),
            json!({ "type": "content_block_start", "index": 1, "content_block": { "type": "text", "text": "" } }),
            json!({ "type": "content_block_delta", "index": 1, "delta": { "type": "text_delta", "text": "Okay" } }),
            json!({ "type": "content_block_stop", "index": 1 }),
            json!({ "type": "content_block_start", "index": 2, "content_block": { "type": "tool_use", "id": "toolu_1", "name": "look", "input": {} } }),
            json!({ "type": "content_block_delta", "index": 2, "delta": { "type": "input_json_delta", "partial_json": "" } }),
            json!({ "type": "content_block_delta", "index": 2, "delta": { "type": "input_json_delta", "partial_json": "{\"a\":" } }),
            json!({ "type": "content_block_delta", "index": 2, "delta": { "type": "input_json_delta", "partial_json": " 1}" } }),
            json!({ "type": "content_block_stop", "index": 2 }),
            json!({ "type": "content_block_start", "index": 3, "content_block": { "type": "tool_use", "id": "toolu_2", "name": "now", "input": {} } }),
            json!({ "type": "content_block_stop", "index": 3 }),
            json!({ "type": "message_delta", "delta": { "stop_reason": "tool_use", "stop_sequence": null }, "usage": { "output_tokens": 15 } }),
            json!({ "type": "message_stop" }),
        ];
        let call = |index: u64, id: &str, name: &str| json!({ "tool_calls": [{ "index": index, "id": id, "type": "function", "function": { "name": name, "arguments": "" } }] });
        let more = |index: u64, text: &str| {
            delta(json!({ "tool_calls": [{ "index": index, "function": { "arguments": text } }] }))
        };
        let expected = [
            delta(json!({ "role": "assistant", "reasoning_content": "hm" })),
            delta(json!({ "content": "Okay" })),
            delta(call(0, "toolu_1", "look")),
            more(0, "{\"a\":"),
            more(0, " 1}"),
            delta(call(1, "toolu_2", "now")),
            more(1, "{}"),
            json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "tool_calls" }] }),
            json!({ "choices": [], "usage": { "prompt_tokens": 25, "completion_tokens": 15, "total_tokens": 40,
                "prompt_tokens_details": { "cached_tokens": 0 }, "cost_micros": 175 } }),
            json!("[DONE]"),
        ];
        let mut stream = chunks(true);
        assert_eq!(said(&mut stream, &list), expected);
        assert!(stream.is_over());
        let without: Vec<_> = expected.iter().filter(|chunk| chunk.get("usage").is_none()).cloned().collect();
        assert_eq!(said(&mut chunks(false), &list), without);
    }

    #[test]
    fn an_error_before_anything_was_said_is_kept_for_the_head() {
        let mut stream = chunks(true);
        let error =
            json!({ "type": "error", "error": { "type": "overloaded_error", "message": "Overloaded" } });
        assert_eq!(said(&mut stream, &[start(), json!({ "type": "ping" }), error]), Vec::<Value>::new());
        assert!(stream.is_over());
        assert_eq!(stream.early_failure().unwrap().status, 503);
    }

    #[test]
    fn an_error_in_the_middle_is_the_last_word_without_done() {
        let mut stream = chunks(true);
        let list = [
            start(),
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "a" } }),
            json!({ "type": "error", "error": { "type": "overloaded_error", "message": "Overloaded for sk-1" } }),
        ];
        let out = said(&mut stream, &list);
        assert_eq!(out[1]["error"]["message"], "Overloaded for [key]");
        assert!(out.len() == 2 && stream.is_over() && stream.early_failure().is_none());
    }

    #[test]
    fn what_is_new_is_passed_over_and_what_is_broken_ends_it() {
        let mut stream = chunks(false);
        let list = [
            json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "server_tool_use", "id": "x", "name": "y" } }),
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "input_json_delta", "partial_json": "{" } }),
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "citations_delta", "citation": {} } }),
            json!({ "type": "content_block_stop", "index": 0 }),
            json!({ "type": "tomorrow" }),
        ];
        assert_eq!(said(&mut stream, &list), Vec::<Value>::new());
        let mut out = Vec::new();
        assert!(stream.event(b"data: {\"type\":\"content_block_delta\"}\n\n", &mut out).is_err());
        let open = |index: u64| {
            event(
                &json!({ "type": "content_block_start", "index": index, "content_block": { "type": "tool_use", "id": "x", "name": "y" } }),
            )
        };
        let refused = (0..).find_map(|index| stream.event(open(index).as_bytes(), &mut out).err()).unwrap();
        assert!(refused.contains("more than 64 blocks"));
    }

    proptest! {
        #[test]
        fn arbitrary_events_never_panic(text in "data: \\{\"type\":\"(content_block_(start|delta|stop)|message_(start|delta|stop)|error)\"[\\[\\]{}\":,a0 indextypedelta]{0,60}\\}\n\n") {
            let mut out = Vec::new();
            let _ = chunks(true).event(text.as_bytes(), &mut out);
        }
    }
}
