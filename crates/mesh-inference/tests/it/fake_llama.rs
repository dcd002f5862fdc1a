//! A llama-server made of a fixed text: it counts tokens, keeps limits, and goes on behind what was said.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::gateway_support::{Act, LAST_CHUNK, Seen, answer, chunk, sse_head};

/// What it says, token by token. Some are white space, some are more than one byte, one looks like an event's end.
pub(crate) const TOKENS: [&str; 7] = ["Es", " war", " ein", "\n\n", "Käse", " \u{1F600}", " \"fin\"."];
/// What it thinks before it speaks, when it is asked to.
pub(crate) const THOUGHTS: [&str; 3] = ["hm", " ja", "\n"];
/// Tokens of any prompt.
pub(crate) const PROMPT_TOKENS: u64 = 10;

static ANSWERS: AtomicU64 = AtomicU64::new(1);

/// One request as the fake understands it.
pub(crate) struct Request {
    body: Value,
    chat: bool,
    /// Tokens said before, thoughts counted in.
    said: usize,
}

impl Request {
    pub(crate) fn of(seen: &Seen) -> Self {
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        let chat = seen.line.contains("/chat/");
        let (thought, text) = if chat {
            let last = body["messages"].as_array().unwrap().last().unwrap().clone();
            if last["role"] == "assistant" {
                assert_eq!(
                    (&body["continue_final_message"], &body["add_generation_prompt"]),
                    (&true.into(), &false.into())
                );
                let word = |key: &str| last[key].as_str().unwrap_or_default().to_owned();
                (word("reasoning_content"), word("content"))
            } else {
                (String::new(), String::new())
            }
        } else {
            let (_, text) = body["prompt"].as_str().unwrap().split_once(':').unwrap();
            (String::new(), text.to_owned())
        };
        let said = said(&THOUGHTS, &thought) + said(&TOKENS, &text);
        Self { body, chat, said }
    }

    pub(crate) fn streams(&self) -> bool {
        self.body["stream"] == true
    }

    fn thinks(&self) -> bool {
        self.body["messages"][0]["content"].as_str().is_some_and(|content| content.starts_with("think"))
    }

    /// The tokens still to say: text, and whether it is a thought.
    fn tokens(&self) -> Vec<(&'static str, bool)> {
        let thoughts = THOUGHTS.iter().filter(|_| self.thinks()).map(|thought| (*thought, true));
        thoughts.chain(TOKENS.iter().map(|token| (*token, false))).skip(self.said).collect()
    }

    /// The answer's bytes, as HTTP.
    pub(crate) fn answer(&self) -> Vec<u8> {
        let number = ANSWERS.fetch_add(1, Ordering::Relaxed);
        let mut tokens = self.tokens();
        let limit =
            self.body["max_tokens"].as_u64().map_or(usize::MAX, |limit| usize::try_from(limit).unwrap());
        let reason = if tokens.len() > limit { "length" } else { "stop" };
        tokens.truncate(limit.max(1));
        let prompt = PROMPT_TOKENS + self.said as u64;
        let usage = json!({
            "prompt_tokens": prompt, "completion_tokens": tokens.len(), "total_tokens": prompt + tokens.len() as u64,
        });
        if !self.streams() {
            let whole = json!({ "choices": [{ "index": 0, "message": { "content": "x" } }], "usage": usage });
            return answer(200, "application/json", &whole.to_string());
        }
        let name =
            json!({ "id": format!("answer-{number}"), "created": number, "model": "/path/of/it.gguf" });
        let event = |choices: Value, usage: Option<&Value>| {
            let mut event = name.clone();
            event["choices"] = choices;
            if let Some(usage) = usage {
                event["usage"] = usage.clone();
            }
            chunk(format!("data: {event}\n\n").as_bytes())
        };
        let mut out = sse_head();
        if self.chat {
            let delta = |delta: Value, reason: Value| json!([{ "index": 0, "delta": delta, "finish_reason": reason }]);
            out.extend(event(delta(json!({ "role": "assistant", "content": null }), Value::Null), None));
            for (token, thought) in tokens {
                let key = if thought { "reasoning_content" } else { "content" };
                out.extend(event(delta(json!({ key: token }), Value::Null), None));
            }
            out.extend(event(delta(json!({}), reason.into()), None));
            if self.body["stream_options"]["include_usage"] == true {
                out.extend(event(json!([]), Some(&usage)));
            }
        } else {
            let text = |text: &str, reason: Value| json!([{ "index": 0, "text": text, "logprobs": null, "finish_reason": reason }]);
            for (token, _) in tokens {
                out.extend(event(text(token, Value::Null), None));
            }
            out.extend(event(text("", reason.into()), Some(&usage)));
        }
        out.extend(chunk(b"data: [DONE]\n\n"));
        out.extend(LAST_CHUNK);
        out
    }
}

/// How many of `tokens` make up `text`, which must end where one of them ends.
fn said(tokens: &[&str], text: &str) -> usize {
    let mut rest = text;
    let mut count = 0;
    while !rest.is_empty() {
        rest = tokens
            .get(count)
            .and_then(|token| rest.strip_prefix(token))
            .unwrap_or_else(|| panic!("{text:?}"));
        count += 1;
    }
    count
}

/// A healthy server.
pub(crate) fn well(seen: &Seen) -> Act {
    Act::Raw(Request::of(seen).answer())
}

/// What a caller made of a stream, checked for what holds of every one: one name, one role, one end, nothing behind it.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Heard {
    pub(crate) text: String,
    pub(crate) thoughts: String,
    pub(crate) reason: Option<String>,
    pub(crate) usage: Option<Value>,
    pub(crate) error: Option<String>,
    /// The numbers of its events, where they have one.
    pub(crate) ids: Vec<u64>,
}

impl Heard {
    pub(crate) fn of(stream: &str) -> Self {
        let mut heard = Self::default();
        let mut name = None;
        let (mut over, mut roles) = (false, 0);
        assert!(stream.ends_with("\n\n"), "{stream:?}");
        for line in stream.split('\n') {
            if line.is_empty() || line.starts_with(':') {
                continue;
            }
            assert!(!over, "behind the end: {line:?} in {stream}");
            if let Some(id) = line.strip_prefix("id: ") {
                heard.ids.push(id.split('.').next().unwrap().parse().unwrap());
                continue;
            }
            let data = line.strip_prefix("data: ").unwrap_or_else(|| panic!("{line:?} in {stream}"));
            if data == "[DONE]" {
                over = true;
                continue;
            }
            let event: Value = serde_json::from_str(data).unwrap_or_else(|_| panic!("{data:?} in {stream}"));
            if let Some(code) = event["error"]["code"].as_str() {
                heard.error = Some(code.to_owned());
                over = true;
                continue;
            }
            let own = (event["id"].clone(), event["created"].clone(), event["model"].clone());
            assert!(own.0.is_string() && own.1.is_u64() && own.2.is_string(), "{event}");
            assert_eq!(*name.get_or_insert_with(|| own.clone()), own, "{stream}");
            heard.chunk(&event, &mut roles);
        }
        assert!(over, "no end: {stream}");
        assert!(roles <= 1, "{roles} roles: {stream}");
        heard
    }

    fn chunk(&mut self, event: &Value, roles: &mut usize) {
        if event["usage"].is_object() {
            assert!(self.usage.replace(event["usage"].clone()).is_none(), "counted twice");
        }
        for choice in event["choices"].as_array().unwrap() {
            *roles += usize::from(!choice["delta"]["role"].is_null());
            if let Some(reason) = choice["finish_reason"].as_str() {
                assert!(self.reason.replace(reason.to_owned()).is_none(), "finished twice");
            }
            let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            self.text += &word(&choice["text"]);
            self.text += &word(&choice["delta"]["content"]);
            self.thoughts += &word(&choice["delta"]["reasoning_content"]);
        }
    }
}
