//! An answer while it comes: pieces out of the gateway's stream, gathered with the times at which they came.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Some text of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// Of the answer itself.
    Text(&'a str),
    /// Of what a reasoning model thinks before it.
    Thought(&'a str),
}

/// What came so far.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    /// The answer.
    pub(super) text: String,
    /// What the model thought before it; empty for most models.
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning: String,
    /// Why it ended: `stop`, `length` or another word of the server; none while it comes.
    finish_reason: Option<String>,
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    #[serde(skip)]
    begin: Instant,
    #[serde(skip)]
    first: Option<Instant>,
    #[serde(skip)]
    last: Instant,
    #[serde(skip)]
    complete: bool,
}

impl Default for Answer {
    /// An answer of which nothing came; its clock starts here.
    fn default() -> Self {
        let now = Instant::now();
        Self {
            text: String::new(),
            reasoning: String::new(),
            finish_reason: None,
            prompt_tokens: None,
            completion_tokens: None,
            begin: now,
            first: None,
            last: now,
            complete: false,
        }
    }
}

/// One event of the stream, of `/v1/chat/completions` or of `/v1/completions`.
#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<Declared>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
}

/// An error as OpenAI's API writes it; codes are words or numbers.
#[derive(Debug, Deserialize)]
pub(super) struct Declared {
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    code: serde_json::Value,
}

impl Declared {
    pub(super) fn word(&self) -> &str {
        self.code.as_str().unwrap_or("gateway")
    }
}

impl Answer {
    /// Takes one event of the stream; its pieces go to `write` too.
    pub(super) fn take(
        &mut self,
        data: &[u8],
        write: &mut impl FnMut(Piece<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if data == b"[DONE]" {
            self.complete = true;
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|error| {
            Failure::new("not_understood", format!("the gateway's answer is not understood: {error}"))
        })?;
        if let Some(error) = chunk.error {
            return Err(Failure::new(error.word(), format!("the answer broke off: {}", error.message)));
        }
        if let Some(usage) = chunk.usage {
            self.prompt_tokens = usage.prompt_tokens.or(self.prompt_tokens);
            self.completion_tokens = usage.completion_tokens.or(self.completion_tokens);
        }
        let Some(choice) = chunk.choices.into_iter().next() else { return Ok(()) };
        if let Some(thought) = choice.delta.reasoning_content.filter(|text| !text.is_empty()) {
            self.tick();
            self.reasoning.push_str(&thought);
            write(Piece::Thought(&thought))?;
        }
        if let Some(text) = choice.delta.content.or(choice.text).filter(|text| !text.is_empty()) {
            self.tick();
            self.text.push_str(&text);
            write(Piece::Text(&text))?;
        }
        self.finish_reason = choice.finish_reason.or(self.finish_reason.take());
        Ok(())
    }

    fn tick(&mut self) {
        self.last = Instant::now();
        self.first.get_or_insert(self.last);
    }

    /// The stream ended: by its own word, or before it.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        if self.complete || self.finish_reason.is_some() {
            return Ok(());
        }
        Err(Failure::new("broken", "the answer broke off before its end"))
    }

    pub(super) fn first_ms(&self) -> Option<f64> {
        self.first.map(|first| milliseconds(self.begin, first))
    }

    pub(super) fn total_ms(&self) -> f64 {
        milliseconds(self.begin, self.last)
    }

    /// Of the tokens after the first one; none when they were not counted, or were too few to tell.
    pub(super) fn tokens_per_second(&self) -> Option<f64> {
        let seconds = milliseconds(self.first?, self.last) / 1e3;
        let after_first = u32::try_from(self.completion_tokens?.checked_sub(1)?).ok()?;
        (after_first > 0 && seconds > 0.0).then(|| (f64::from(after_first) / seconds * 10.0).round() / 10.0)
    }
}

/// With three digits behind the point.
fn milliseconds(from: Instant, to: Instant) -> f64 {
    (to.saturating_duration_since(from).as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(events: &[&str]) -> (Answer, Vec<String>, Result<(), Failure>) {
        let mut answer = Answer::default();
        let mut pieces = Vec::new();
        let mut write = |piece: Piece<'_>| {
            pieces.push(format!("{piece:?}"));
            Ok(())
        };
        let mut result = Ok(());
        for event in events {
            result = result.and_then(|()| answer.take(event.as_bytes(), &mut write));
        }
        (answer, pieces, result)
    }

    #[test]
    fn gathers_text_thoughts_and_counts() {
        let (mut answer, pieces, result) = taken(&[
            r#"{"choices":[{"delta":{"role":"assistant","content":null}}]}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#,
            r#"{"choices":[{"delta":{"content":"Elbe"}}]}"#,
            r#"{"choices":[{"text":" Oder","finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#,
            "[DONE]",
        ]);
        result.expect("a good stream");
        answer.finish().expect("it is complete");
        assert_eq!(pieces, [r#"Thought("hm")"#, r#"Text("Elbe")"#, r#"Text(" Oder")"#]);
        let shown = serde_json::to_value(&answer).expect("JSON");
        assert_eq!(
            shown,
            serde_json::json!({
                "text": "Elbe Oder", "reasoning": "hm", "finish_reason": "stop",
                "prompt_tokens": 3, "completion_tokens": 2
            })
        );
    }

    #[test]
    fn a_declared_error_ends_it() {
        let (_, pieces, result) = taken(&[
            r#"{"choices":[{"delta":{"content":"El"}}]}"#,
            r#"{"error":{"message":"the host is gone","code":"upstream_lost"}}"#,
        ]);
        let failure = result.expect_err("declared");
        assert_eq!((failure.code(), pieces.len()), ("upstream_lost", 1));
        assert!(failure.message().contains("the host is gone"));
    }

    #[test]
    fn an_end_without_a_word_is_a_break() {
        let (mut answer, _, result) = taken(&[r#"{"choices":[{"delta":{"content":"El"}}]}"#]);
        result.expect("a good event");
        assert_eq!(answer.finish().expect_err("no end was said").code(), "broken");
    }
}
