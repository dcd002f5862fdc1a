//! Anthropic's answers in OpenAI's shape: whole ones, and errors.

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::request::Asked;
use crate::terms::{Counted, Price};

/// Longest message taken over from an error, in characters.
const MESSAGE_MAX: usize = 2000;

/// Tokens as Anthropic counts them: those in its cache apart.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
}

impl Usage {
    /// Takes over what a later count says; its numbers are of the whole answer.
    pub(super) fn update(&mut self, later: Self) {
        self.input_tokens = later.input_tokens.or(self.input_tokens);
        self.cache_creation_input_tokens =
            later.cache_creation_input_tokens.or(self.cache_creation_input_tokens);
        self.cache_read_input_tokens = later.cache_read_input_tokens.or(self.cache_read_input_tokens);
        self.output_tokens = later.output_tokens.or(self.output_tokens);
    }

    pub(super) fn counted(self) -> Counted {
        let cached = self.cache_read_input_tokens.unwrap_or(0);
        let input = self.input_tokens.unwrap_or(0);
        let input =
            input.saturating_add(cached).saturating_add(self.cache_creation_input_tokens.unwrap_or(0));
        Counted { input, cached, output: self.output_tokens.unwrap_or(0) }
    }
}

/// In OpenAI's shape, with the cost beside it where a price is known.
pub(super) fn usage(counted: Counted, price: Option<Price>) -> Value {
    let mut usage = json!({
        "prompt_tokens": counted.input,
        "completion_tokens": counted.output,
        "total_tokens": counted.input.saturating_add(counted.output),
        "prompt_tokens_details": { "cached_tokens": counted.cached },
    });
    if let Some(price) = price {
        usage["cost_micros"] = price.cost_micros(counted).into();
    }
    usage
}

/// OpenAI's word for why an answer ended.
pub(super) fn finish_reason(stop_reason: Option<&str>) -> &'static str {
    match stop_reason {
        Some("max_tokens" | "model_context_window_exceeded") => "length",
        Some("tool_use") => "tool_calls",
        Some("refusal") => "content_filter",
        _ => "stop",
    }
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    id: String,
    content: Vec<Block>,
    #[serde(default)]
    stop_reason: Option<String>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Text {
        text: String,
    },
    Thinking {
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

/// A whole answer, and what it used.
///
/// # Errors
/// What about it cannot be read.
pub(super) fn whole(body: &[u8], asked: &Asked, price: Option<Price>) -> Result<(Value, Counted), String> {
    let message: Message =
        serde_json::from_slice(body).map_err(|error| format!("its answer cannot be read: {error}"))?;
    let (mut text, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    for block in message.content {
        match block {
            Block::Text { text: more } => text.push_str(&more),
            Block::Thinking { thinking } => reasoning.push_str(&thinking),
            Block::ToolUse { id, name, input } => {
                let input = if input.is_null() { json!({}) } else { input };
                let function = json!({ "name": name, "arguments": input.to_string() });
                calls.push(json!({ "id": id, "type": "function", "function": function }));
            }
            Block::Other => {}
        }
    }
    let text = if text.is_empty() && !calls.is_empty() { Value::Null } else { text.into() };
    let mut said = json!({ "role": "assistant", "content": text });
    if !reasoning.is_empty() {
        said["reasoning_content"] = reasoning.into();
    }
    if !calls.is_empty() {
        said["tool_calls"] = calls.into();
    }
    let counted = message.usage.counted();
    let reason = finish_reason(message.stop_reason.as_deref());
    let answer = json!({
        "id": message.id,
        "object": "chat.completion",
        "created": now(),
        "model": asked.model,
        "choices": [{ "index": 0, "message": said, "finish_reason": reason }],
        "usage": usage(counted, price),
    });
    Ok((answer, counted))
}

pub(super) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// An error of the provider, as callers are told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    kind: &'static str,
    message: String,
}

#[derive(Deserialize)]
struct ErrorShape {
    error: ErrorTold,
}

#[derive(Deserialize)]
struct ErrorTold {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    message: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let kind = match status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500..=599 => "server_error",
            _ => "invalid_request_error",
        };
        Self { status, kind, message: message.into() }
    }

    /// From an answer other than 200. 529, overloaded, becomes 503, which clients know.
    pub(super) fn of_status(status: StatusCode, body: &[u8]) -> Self {
        let told: Option<ErrorTold> = serde_json::from_slice(body).ok().map(|ErrorShape { error }| error);
        let message = told.map(|told| told.message).filter(|message| !message.is_empty());
        let message = message.unwrap_or_else(|| format!("The provider answers {}.", status.as_u16()));
        let status = match status.as_u16() {
            529 => StatusCode::SERVICE_UNAVAILABLE,
            400..=599 => status,
            _ => StatusCode::BAD_GATEWAY,
        };
        Self::new(status, message)
    }

    /// From an error told within a stream.
    pub(super) fn of_event(data: &[u8]) -> Self {
        let told = serde_json::from_slice(data).map(|ErrorShape { error }| error);
        let ErrorTold { r#type, message } = told
            .unwrap_or_else(|_| ErrorTold { r#type: String::new(), message: "it gives no reason".into() });
        let status = match r#type.as_str() {
            "invalid_request_error" => StatusCode::BAD_REQUEST,
            "authentication_error" => StatusCode::UNAUTHORIZED,
            "permission_error" => StatusCode::FORBIDDEN,
            "not_found_error" => StatusCode::NOT_FOUND,
            "request_too_large" => StatusCode::PAYLOAD_TOO_LARGE,
            "rate_limit_error" => StatusCode::TOO_MANY_REQUESTS,
            "overloaded_error" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, message)
    }

    /// In OpenAI's shape. `secret` does not get out, should the provider repeat it.
    pub(super) fn json(&self, secret: Option<&str>) -> Value {
        let message: String = match secret.filter(|secret| !secret.is_empty()) {
            Some(secret) => self.message.replace(secret, "[key]"),
            None => self.message.clone(),
        };
        let message: String = message.chars().take(MESSAGE_MAX).collect();
        json!({ "error": { "message": message, "type": self.kind, "param": null, "code": "provider_error" } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_answer_with_all_that_it_may_have() {
        let body = json!({
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "stop_reason": "tool_use",
            "content": [
                { "type": "thinking", "thinking": "hm", "signature": "s" },
                { "type": "redacted_thinking", "data": "x" },
                { "type": "text", "text": "I look." },
                { "type": "tool_use", "id": "toolu_1", "name": "look", "input": { "a": 1 } },
                { "type": "tool_use", "id": "toolu_2", "name": "now" },
            ],
            "usage": { "input_tokens": 10, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 5, "output_tokens": 7 },
        });
        let asked = Asked { model: "claude".into(), stream: false, usage: false };
        let price = Price { input: 1.0, output: 2.0, cached: Some(0.1) };
        let (mut answer, counted) = whole(body.to_string().as_bytes(), &asked, Some(price)).unwrap();
        assert_eq!(counted, Counted { input: 115, cached: 100, output: 7 });
        answer["created"] = 0.into();
        assert_eq!(
            answer,
            json!({
                "id": "msg_1", "object": "chat.completion", "created": 0, "model": "claude",
                "choices": [{ "index": 0, "finish_reason": "tool_calls", "message": {
                    "role": "assistant", "content": "I look.", "reasoning_content": "hm",
                    "tool_calls": [
                        { "id": "toolu_1", "type": "function", "function": { "name": "look", "arguments": "{\"a\":1}" } },
                        { "id": "toolu_2", "type": "function", "function": { "name": "now", "arguments": "{}" } },
                    ],
                } }],
                "usage": { "prompt_tokens": 115, "completion_tokens": 7, "total_tokens": 122,
                    "prompt_tokens_details": { "cached_tokens": 100 }, "cost_micros": 39 },
            })
        );
        assert!(whole(b"{}", &asked, None).is_err());
    }

    #[test]
    fn errors_keep_their_reason_and_lose_the_key() {
        let body = br#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded sk-1"}}"#;
        let failure = Failure::of_status(StatusCode::from_u16(529).unwrap(), body);
        assert_eq!(failure.status, 503);
        assert_eq!(failure.json(Some("sk-1"))["error"]["message"], "Overloaded [key]");
        assert_eq!(Failure::of_event(body).status, 503);
        assert_eq!(Failure::of_event(b"?").status, 500);
        let odd = Failure::of_status(StatusCode::FOUND, b"<html>");
        assert_eq!((odd.status.as_u16(), odd.message.as_str()), (502, "The provider answers 302."));
        let long = Failure::new(StatusCode::BAD_REQUEST, "x".repeat(10_000)).json(None);
        assert_eq!(long["error"]["message"].as_str().unwrap().len(), MESSAGE_MAX);
    }
}
