//! What a caller has made of a stream, checked against what it must be.

use std::time::Instant;

use serde_json::Value;

/// One event of a stream.
#[derive(Debug, Default)]
pub(super) struct Event {
    id: Option<String>,
    data: Option<String>,
    comments: bool,
}

impl Event {
    pub(super) fn of(text: &str) -> Self {
        let mut event = Self::default();
        for line in text.lines() {
            if let Some(data) = line.strip_prefix("data: ") {
                event.data = Some(data.to_owned());
            } else if let Some(id) = line.strip_prefix("id: ") {
                event.id = Some(id.to_owned());
            } else {
                event.comments |= line.starts_with(':');
            }
        }
        event
    }
}

/// A time without text, between two pieces of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pause {
    pub(super) from: Instant,
    pub(super) to: Instant,
    /// Bytes of text before it.
    pub(super) told: usize,
    /// Whether the caller had to go to another gateway.
    pub(super) resumed: bool,
}

/// An answer so far, over all streams that brought parts of it.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) text: String,
    /// Events that end an answer. There is to be one.
    pub(super) terminal: usize,
    /// The error that it ended in.
    pub(super) error: Option<String>,
    /// The number of the last event, as the gateway names it.
    pub(super) last_id: Option<String>,
    events: u64,
    /// Tokens of the prompt and of the answer, by the gateway's count.
    pub(super) usage: Option<(u64, u64)>,
    pub(super) pauses: Vec<Pause>,
    /// Attempts before the first byte.
    pub(super) refused: usize,
    /// Times that another gateway gave the rest.
    pub(super) resumed: usize,
    /// What no stream may say.
    pub(super) faults: Vec<String>,
    last_text: Option<Instant>,
    /// Interrupted since the last text, and whether by the gateway's end.
    waits: Option<bool>,
    name: Option<Value>,
    roles: usize,
}

impl Heard {
    pub(super) fn hear(&mut self, event: &Event) {
        if event.comments && self.last_text.is_some() {
            self.interrupted(false);
        }
        if let Some(id) = &event.id {
            self.number(id, event.data.is_some());
        }
        let Some(data) = &event.data else { return };
        if self.terminal > 0 {
            self.faults.push(format!("behind the end: {data}"));
        }
        if data == "[DONE]" {
            self.terminal += 1;
            return;
        }
        match serde_json::from_str::<Value>(data) {
            Ok(chunk) if chunk["error"].is_object() => {
                self.terminal += 1;
                self.error = Some(chunk["error"]["message"].as_str().unwrap_or_default().to_owned());
            }
            Ok(chunk) => self.hear_chunk(&chunk),
            Err(_) => self.faults.push(format!("not an event: {data}")),
        }
    }

    /// Notes that nothing comes for now.
    pub(super) fn interrupted(&mut self, resumed: bool) {
        self.waits = Some(self.waits.unwrap_or(false) | resumed);
    }

    /// Numbers go up by one, whichever gateway counts; an event without data only names the last one anew.
    fn number(&mut self, id: &str, has_data: bool) {
        let number = id.split('.').next().and_then(|number| number.parse::<u64>().ok());
        let expected = self.events + u64::from(has_data);
        if number != Some(expected) {
            self.faults.push(format!("event {id} instead of {expected}"));
        }
        self.events = number.unwrap_or(expected);
        self.last_id = Some(id.to_owned());
    }

    fn hear_chunk(&mut self, chunk: &Value) {
        let name = &chunk["id"];
        if *self.name.get_or_insert_with(|| name.clone()) != *name {
            self.faults.push(format!("another answer's name: {name}"));
        }
        if let Some(usage) = chunk["usage"].as_object() {
            let count = |key: &str| usage.get(key).and_then(Value::as_u64).unwrap_or_default();
            if self.usage.replace((count("prompt_tokens"), count("completion_tokens"))).is_some() {
                self.faults.push("counted twice".to_owned());
            }
        }
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            self.roles += usize::from(!choice["delta"]["role"].is_null());
            if self.roles > 1 {
                self.faults.push("the role was told twice".to_owned());
            }
            let piece = choice["delta"]["content"].as_str().unwrap_or_default();
            if !piece.is_empty() {
                self.hear_text(piece);
            }
        }
    }

    fn hear_text(&mut self, piece: &str) {
        let now = Instant::now();
        if let (Some(from), Some(resumed)) = (self.last_text, self.waits.take()) {
            self.pauses.push(Pause { from, to: now, told: self.text.len(), resumed });
        }
        self.text.push_str(piece);
        self.last_text = Some(now);
    }
}

/// How a text differs from what it was to be, in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) lost: usize,
    pub(super) doubled: usize,
    pub(super) reordered: usize,
}

impl Difference {
    /// By the longest part that both have in the same order: what else there is was swapped, as far as it is too much on one
    /// side and too little on the other, and lost or doubled beyond that.
    pub(super) fn between(text: &str, expected: &str) -> Self {
        if text == expected {
            return Self::default();
        }
        let (text, expected): (Vec<char>, Vec<char>) = (text.chars().collect(), expected.chars().collect());
        let common = common(&text, &expected);
        let (missing, added) = (expected.len() - common, text.len() - common);
        let reordered = missing.min(added);
        Self { lost: missing - reordered, doubled: added - reordered, reordered }
    }
}

/// The length of the longest common subsequence.
fn common(a: &[char], b: &[char]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (at, y) in b.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if x == y { diagonal + 1 } else { above.max(row[at]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_text_is_told_apart() {
        let difference = |text| {
            let Difference { lost, doubled, reordered } = Difference::between(text, "abcdef");
            (lost, doubled, reordered)
        };
        assert_eq!(difference("abcdef"), (0, 0, 0));
        assert_eq!(difference("abef"), (2, 0, 0));
        assert_eq!(difference("abcdcdef"), (0, 2, 0));
        assert_eq!(difference("abdcef"), (0, 0, 1));
        assert_eq!(difference(""), (6, 0, 0));
    }

    #[test]
    fn a_stream_that_counts_or_ends_wrongly_is_found_out() {
        let mut heard = Heard::default();
        for event in [
            "id: 1\ndata: {\"id\":\"a\",\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n",
            "id: 1.scope.node\n\n",
            ": the answer goes on soon\n\n",
            "id: 2.scope.node\ndata: {\"id\":\"a\",\"choices\":[{\"delta\":{\"content\":\"y\"}}]}\n\n",
            "id: 3\ndata: [DONE]\n\n",
        ] {
            heard.hear(&Event::of(event));
        }
        assert_eq!((heard.text.as_str(), heard.terminal, heard.pauses.len()), ("xy", 1, 1));
        assert_eq!(heard.faults, Vec::<String>::new());
        heard.hear(&Event::of("id: 3\ndata: [DONE]\n\n"));
        assert_eq!((heard.terminal, heard.faults.len()), (2, 2), "{:?}", heard.faults);
    }
}
