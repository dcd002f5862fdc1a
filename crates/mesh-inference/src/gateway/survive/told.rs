//! What a stream of chunks has told its caller so far.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::events::{data_of, events};

/// The text of an answer so far, and which of its parts the caller has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// The answer's text.
    pub(crate) text: String,
    /// The text of the model's reasoning, which comes before it.
    pub(crate) reasoning: String,
    /// Chunks with text in them. Each is a token, where nothing makes the backend hold text back.
    pub(crate) chunks: u64,
    /// Who the answer says it is; every chunk repeats it. None before the first chunk.
    pub(crate) name: Option<Name>,
    /// Why the model ended, once it has said so: no text follows.
    pub(crate) finished: bool,
    /// The counts of tokens were told.
    pub(crate) counted: bool,
    /// The stream has ended, well or by an error of the backend's own: nothing may follow.
    pub(crate) over: bool,
    /// Told something that no other host could go on from.
    pub(crate) strange: Option<&'static str>,
}

/// What the chunks of one answer have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) id: Option<String>,
    pub(crate) created: Option<u64>,
    pub(crate) model: Option<String>,
    pub(crate) fingerprint: Option<String>,
}

#[derive(Deserialize)]
struct Chunk<'a> {
    id: Option<String>,
    created: Option<u64>,
    model: Option<String>,
    system_fingerprint: Option<String>,
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    usage: Option<IgnoredAny>,
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    index: Option<u64>,
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    text: Option<Cow<'a, str>>,
    finish_reason: Option<IgnoredAny>,
    logprobs: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    content: Option<Cow<'a, str>>,
    reasoning_content: Option<Cow<'a, str>>,
    tool_calls: Option<IgnoredAny>,
    function_call: Option<IgnoredAny>,
    audio: Option<IgnoredAny>,
    refusal: Option<IgnoredAny>,
}

impl Told {
    /// Takes in whole events.
    pub(crate) fn hear(&mut self, sent: &[u8]) {
        for event in events(sent) {
            if let Some(data) = data_of(event) {
                self.hear_data(&data);
            }
        }
    }

    fn hear_data(&mut self, data: &[u8]) {
        if data == b"[DONE]" {
            self.over = true;
            return;
        }
        let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(data) else {
            self.strange = Some("an event that is no chunk of an answer");
            return;
        };
        if chunk.error.is_some() {
            self.over = true;
        }
        self.counted |= chunk.usage.is_some();
        self.name.get_or_insert(Name {
            id: chunk.id,
            created: chunk.created,
            model: chunk.model,
            fingerprint: chunk.system_fingerprint,
        });
        let before = self.bytes();
        for choice in chunk.choices.unwrap_or_default() {
            self.hear_choice(choice);
        }
        self.chunks += u64::from(self.bytes() > before);
    }

    fn hear_choice(&mut self, choice: Choice<'_>) {
        if choice.index.is_some_and(|index| index > 0) {
            self.strange = Some("several answers at a time");
        }
        if choice.logprobs.is_some() {
            self.strange = Some("probabilities of tokens");
        }
        self.finished |= choice.finish_reason.is_some();
        self.text.push_str(&choice.text.unwrap_or_default());
        let Some(delta) = choice.delta else { return };
        self.text.push_str(&delta.content.unwrap_or_default());
        self.reasoning.push_str(&delta.reasoning_content.unwrap_or_default());
        if delta.tool_calls.is_some() || delta.function_call.is_some() {
            self.strange = Some("a call of a tool");
        } else if delta.audio.is_some() || delta.refusal.is_some() {
            self.strange = Some("something other than text");
        }
    }

    /// Whether any text of the model was told.
    pub(crate) fn has_text(&self) -> bool {
        !self.text.is_empty() || !self.reasoning.is_empty()
    }

    /// Whether no character of it is longer than a byte: a longer one may be several tokens and comes as one chunk.
    pub(crate) fn is_ascii(&self) -> bool {
        self.text.is_ascii() && self.reasoning.is_ascii()
    }

    /// Memory that it takes, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.text.len() + self.reasoning.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_chat_is_heard_to_its_end() {
        let mut told = Told::default();
        told.hear(b"data: {\"id\":\"c1\",\"created\":7,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null},\"finish_reason\":null}]}\n\n");
        assert!(!told.has_text() && !told.finished);
        told.hear(b":\n\ndata: {\"id\":\"c1\",\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\\nb\"}}]}\n\n");
        told.hear(
            "data: {\"choices\":[{\"delta\":{\"content\":\"ü\"},\"finish_reason\":\"stop\"}]}\n\n".as_bytes(),
        );
        assert_eq!((told.text.as_str(), told.reasoning.as_str()), ("a\nbü", "hm"));
        let name = told.name.clone().unwrap();
        assert_eq!(
            (name.id.as_deref(), name.created, name.model.as_deref()),
            (Some("c1"), Some(7), Some("m"))
        );
        assert!(told.finished && !told.counted && !told.over && told.chunks == 3 && !told.is_ascii());
        told.hear(b"data: {\"choices\":[],\"usage\":{\"total_tokens\":3}}\n\ndata: [DONE]\n\n");
        assert!(told.counted && told.over && told.strange.is_none());
    }

    #[test]
    fn what_nobody_could_go_on_from_is_noticed() {
        for data in [
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#,
            r#"{"choices":[{"index":1,"delta":{"content":"x"}}]}"#,
            r#"{"choices":[{"text":"x","logprobs":{"tokens":[]}}]}"#,
            "1",
            "{",
        ] {
            let mut told = Told::default();
            told.hear(format!("data: {data}\n\n").as_bytes());
            assert!(told.strange.is_some(), "{data}");
        }
        let mut told = Told::default();
        told.hear(b"data: {\"error\":{\"message\":\"x\"}}\n\n");
        assert!(told.over);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            Told::default().hear(&bytes);
            Told::default().hear(&[&b"data: "[..], &bytes].concat());
        }
    }
}
