//! From the events of a stream to the pieces of an answer. Pure: bytes in, pieces out.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::Deserialize;

use super::error::Told;
use super::tool_calls::{self, ToolCalls};
use super::{ChatError, FinishReason, Piece, Usage};
use crate::gateway::{Held, TooLong, data_of, events};

/// Bytes of one answer, everything counted. A model's longest answers have a few hundred thousand.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What was read of an answer so far.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    held: Held,
    bytes: usize,
    calls: ToolCalls,
    finish: Option<FinishReason>,
    usage: Usage,
    out: VecDeque<Piece>,
    finished: bool,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<RawUsage>,
    #[serde(default)]
    error: Option<Told>,
}

#[derive(Deserialize)]
struct Choice {
    /// `message` is what an answer has that came whole.
    #[serde(default, alias = "message")]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<tool_calls::Part>>,
}

#[derive(Deserialize)]
struct RawUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    #[serde(default)]
    cost_micros: Option<u64>,
}

impl Pieces {
    /// The next piece that is there.
    pub(super) fn pop(&mut self) -> Option<Piece> {
        self.out.pop_front()
    }

    /// Whether the answer is complete; what comes behind it is not looked at.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Reads more of the stream. After an error nothing more may be read.
    pub(super) fn read(&mut self, bytes: Bytes) -> Result<(), ChatError> {
        self.bytes += bytes.len();
        if self.bytes > ANSWER_BYTES_MAX {
            return Err(too_large(&format!("an answer of more than {ANSWER_BYTES_MAX} bytes")));
        }
        let whole = self
            .held
            .pass(bytes)
            .map_err(|TooLong(all)| too_large(&format!("an event of {} bytes", all.len())))?;
        for event in events(&whole) {
            if self.finished {
                break;
            }
            if let Some(data) = data_of(event) {
                self.event(&data)?;
            }
        }
        Ok(())
    }

    /// The stream is over. A server that leaves `[DONE]` out has at least said why it ended.
    pub(super) fn end(&mut self) -> Result<(), ChatError> {
        if !self.finished && self.finish.is_none() {
            return Err(ChatError::BrokenOff("it ended in the middle".into()));
        }
        self.finish();
        Ok(())
    }

    /// An answer that came whole, though a stream was asked for.
    pub(super) fn read_whole(&mut self, json: &[u8]) -> Result<(), ChatError> {
        self.event(json)?;
        self.end()
    }

    fn event(&mut self, data: &[u8]) -> Result<(), ChatError> {
        if data.trim_ascii() == b"[DONE]" {
            self.finish();
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(data)
            .map_err(|error| ChatError::BrokenOff(format!("an event cannot be read: {error}")))?;
        if let Some(told) = chunk.error {
            return Err(ChatError::of_event(&told));
        }
        if let Some(usage) = chunk.usage {
            self.usage = Usage {
                input_tokens: usage.prompt_tokens,
                output_tokens: usage.completion_tokens,
                cost_micros: usage.cost_micros,
            };
        }
        let Some(choice) = chunk.choices.into_iter().flatten().next() else { return Ok(()) };
        if let Some(delta) = choice.delta {
            self.delta(delta)?;
        }
        if let Some(reason) = choice.finish_reason {
            self.finish = Some(match reason.as_str() {
                "length" => FinishReason::Length,
                "content_filter" => FinishReason::Filtered,
                _ => FinishReason::Done,
            });
        }
        Ok(())
    }

    fn delta(&mut self, delta: Delta) -> Result<(), ChatError> {
        let reasoning = delta.reasoning_content.or(delta.reasoning);
        self.out.extend(reasoning.filter(|text| !text.is_empty()).map(Piece::Reasoning));
        self.out.extend(delta.content.filter(|text| !text.is_empty()).map(Piece::Text));
        for part in delta.tool_calls.into_iter().flatten() {
            self.calls.add(part).map_err(|what| too_large(&what))?;
        }
        Ok(())
    }

    fn finish(&mut self) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        self.out.extend(self.calls.take().map(Piece::ToolCall));
        let reason = self.finish.unwrap_or(FinishReason::Done);
        self.out.push_back(Piece::Finished { reason, usage: self.usage });
    }
}

fn too_large(what: &str) -> ChatError {
    ChatError::Refused(format!("the model answered with {what}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::chat::ToolCall;

    /// All pieces of a stream that comes in these parts, and how it ended.
    fn read<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Piece>, Result<(), ChatError>) {
        let mut pieces = Pieces::default();
        let mut out = Vec::new();
        for part in parts {
            let read = pieces.read(Bytes::copy_from_slice(part));
            out.extend(std::iter::from_fn(|| pieces.pop()));
            if read.is_err() {
                return (out, read);
            }
        }
        let ended = pieces.end();
        out.extend(std::iter::from_fn(|| pieces.pop()));
        (out, ended)
    }

    const STREAM: &str = concat!(
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n",
        ": still here\n\n",
        "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"grüße\"}}]}\r\n\r\n",
        "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"c\",\"function\":{\"name\":\"t\",\"arguments\":\"{\\\"a\"}}]}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"\\\":1}\"}}]}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4,\"cost_micros\":5}}\n\n",
        "data: [DONE]\n\n",
    );

    fn expected() -> Vec<Piece> {
        vec![
            Piece::Reasoning("hm".into()),
            Piece::Text("grüße".into()),
            Piece::ToolCall(ToolCall { id: "c".into(), name: "t".into(), arguments: json!({"a": 1}) }),
            Piece::Finished {
                reason: FinishReason::Done,
                usage: Usage { input_tokens: 3, output_tokens: 4, cost_micros: Some(5) },
            },
        ]
    }

    #[test]
    fn what_comes_behind_the_end_is_not_read() {
        let text = format!("{STREAM}data: {{\"error\":{{}}}}\n\n");
        assert_eq!(read([text.as_bytes()]), (expected(), Ok(())));
    }

    #[test]
    fn a_server_without_done_must_have_said_why_it_ended() {
        let text = STREAM.replace("data: [DONE]\n\n", "");
        assert_eq!(read([text.as_bytes()]), (expected(), Ok(())));
        let (pieces, ended) = read(["data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n".as_bytes()]);
        assert_eq!(pieces, [Piece::Text("a".into())]);
        assert!(matches!(ended, Err(ChatError::BrokenOff(_))));
    }

    #[test]
    fn errors_in_the_middle_are_sorted() {
        let error = |kind: &str| {
            read([format!("data: {{\"error\":{{\"message\":\"so\",\"type\":\"{kind}\"}}}}\n\n").as_bytes()]).1
        };
        assert_eq!(error("server_error"), Err(ChatError::BrokenOff("so".into())));
        assert_eq!(error("invalid_request_error"), Err(ChatError::Refused("so".into())));
        assert_eq!(error("overloaded_error"), Err(ChatError::Busy { why: "so".into(), retry_after: None }));
        assert!(matches!(read([&b"data: {\"choices\":7}\n\n"[..]]).1, Err(ChatError::BrokenOff(_))));
    }

    #[test]
    fn an_event_or_an_answer_without_end_is_refused() {
        let mut pieces = Pieces::default();
        let flood = Bytes::from(vec![b'x'; 64 * 1024]);
        let refused = (0..).find_map(|_| pieces.read(flood.clone()).err()).unwrap();
        assert!(refused.to_string().contains("an event of"), "{refused}");
        let mut pieces = Pieces::default();
        let comments = Bytes::from([&vec![b':'; 1000][..], b"\n\n"].concat().repeat(1000));
        let refused = (0..).find_map(|_| pieces.read(comments.clone()).err()).unwrap();
        assert!(refused.to_string().contains("an answer of more than"), "{refused}");
    }

    #[test]
    fn an_answer_that_came_whole_is_read_too() {
        let mut pieces = Pieces::default();
        let json = json!({"choices": [{"message": {"content": "a"}, "finish_reason": "length"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2}});
        pieces.read_whole(json.to_string().as_bytes()).unwrap();
        assert_eq!(pieces.pop(), Some(Piece::Text("a".into())));
        let usage = Usage { input_tokens: 1, output_tokens: 2, cost_micros: None };
        assert_eq!(pieces.pop(), Some(Piece::Finished { reason: FinishReason::Length, usage }));
        assert!(Pieces::default().read_whole(b"{}").is_err());
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_pieces_are_the_same(cuts in proptest::collection::vec(0usize..900, 0..12)) {
            let bytes = STREAM.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let parts = cuts.windows(2).map(|two| &bytes[two[0]..two[1]]);
            prop_assert_eq!(read(parts), (expected(), Ok(())));
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            text in "(data: )?[\\[\\]{}\":,a0nul choicesdeltacontenttool_callsindexid\n]{0,80}\n\n",
        ) {
            let _ = read([text.as_bytes()]);
        }
    }
}
