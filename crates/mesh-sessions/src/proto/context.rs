//! What models are told of a session: what was said since the last summary.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::content::{Part, Text, ToolCall, Usage};
use crate::ids::{EventNumber, ToolCallId};

/// Bytes of text that a token stands for, about: English prose has four, source code three. Only used for what no provider
/// has counted yet.
const BYTES_PER_TOKEN: u64 = 4;
/// What an image counts, in bytes of text: providers charge around 1,500 tokens for one of ordinary size.
const IMAGE_BYTES: u64 = 6_000;

/// Something said, as the log has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// A summary of all before.
    Summary(Text),
    /// A prompt, or what was said in the middle of a turn.
    User(Vec<Part>),
    /// An answer, or what was said of it before the turn was ended.
    Assistant {
        /// Its text.
        text: Text,
        /// The tools that it asked for.
        tool_calls: Vec<ToolCall>,
    },
    /// What a tool said.
    Tool {
        /// The call.
        call: ToolCallId,
        /// The result.
        parts: Vec<Part>,
    },
}

/// Something said, with the event from which on models are told it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The event.
    pub number: EventNumber,
    /// What.
    pub said: Said,
}

/// What was said since the last summary, oldest first; the numbers never fall.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Context {
    entries: VecDeque<Entry>,
    /// Tokens of all up to the last answer, as its provider counted them: instructions and tools included.
    measured: Option<u64>,
    /// Bytes said since.
    unmeasured: u64,
}

impl Context {
    /// All of it, oldest first.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Tokens of it, about.
    pub fn tokens(&self) -> u64 {
        self.measured.unwrap_or(0).saturating_add(self.unmeasured / BYTES_PER_TOKEN)
    }

    pub(crate) fn push(&mut self, number: EventNumber, said: Said) {
        self.unmeasured = self.unmeasured.saturating_add(bytes_of(&said));
        self.entries.push_back(Entry { number, said });
    }

    /// Takes in how much a model has counted up to the entry pushed last.
    pub(crate) fn measure(&mut self, usage: Usage) {
        if usage.input_tokens > 0 {
            (self.measured, self.unmeasured) =
                (Some(usage.input_tokens.saturating_add(usage.output_tokens)), 0);
        }
    }

    /// A summary takes the place of everything up to that event.
    pub(crate) fn compact(&mut self, through: EventNumber, summary: Text) {
        while self.entries.front().is_some_and(|entry| entry.number <= through) {
            self.entries.pop_front();
        }
        self.entries.push_front(Entry { number: through, said: Said::Summary(summary) });
        let bytes = self.entries.iter().map(|entry| bytes_of(&entry.said)).fold(0, u64::saturating_add);
        (self.measured, self.unmeasured) = (None, bytes);
    }

    /// Where to cut so that about `keep_tokens` stay as they are: the last event that a summary has to cover. Results stay
    /// with their calls. None when there is nothing worth a summary. `all`: nothing has to stay.
    pub(crate) fn cut(&self, keep_tokens: u64, all: bool) -> Option<EventNumber> {
        let (mut kept, keep) = (0_u64, self.bytes_for(keep_tokens));
        let mut at = all.then_some(self.entries.len());
        for (index, entry) in self.entries.iter().enumerate().rev() {
            kept = kept.saturating_add(bytes_of(&entry.said));
            if at.is_some() && kept > keep {
                break;
            }
            if self.may_start_at(index) {
                at = Some(index);
            }
        }
        let covered = self.entries.get(at?.checked_sub(1)?)?;
        let is_worth = !matches!((at?, &covered.said), (1, Said::Summary(_)));
        is_worth.then_some(covered.number)
    }

    /// How many bytes of this context are so many tokens: as a provider has counted, when one has.
    fn bytes_for(&self, tokens: u64) -> u64 {
        let bytes = self.entries.iter().map(|entry| bytes_of(&entry.said)).fold(0, u64::saturating_add);
        match self.measured {
            Some(_) => tokens.saturating_mul(bytes) / self.tokens().max(1),
            None => tokens.saturating_mul(BYTES_PER_TOKEN),
        }
    }

    fn may_start_at(&self, index: usize) -> bool {
        let is_start = matches!(self.entries[index].said, Said::User(_) | Said::Assistant { .. });
        let before = index.checked_sub(1).map(|before| self.entries[before].number);
        is_start && before != Some(self.entries[index].number)
    }
}

/// How long it is, in bytes of text or what counts like them.
pub(crate) fn bytes_of_parts(parts: &[Part]) -> u64 {
    let bytes = |part: &Part| match part {
        Part::Text { text } => bytes_of_text(text),
        Part::Image { .. } => IMAGE_BYTES,
    };
    parts.iter().map(bytes).fold(0, u64::saturating_add)
}

/// About as many tokens.
pub(crate) fn tokens_of(bytes: u64) -> u64 {
    bytes / BYTES_PER_TOKEN
}

fn bytes_of(said: &Said) -> u64 {
    match said {
        Said::Summary(text) => bytes_of_text(text),
        Said::User(parts) | Said::Tool { parts, .. } => bytes_of_parts(parts),
        Said::Assistant { text, tool_calls } => {
            let calls = tool_calls.iter().map(|call| call.name.len() + call.arguments.to_string().len());
            calls.fold(bytes_of_text(text), |sum, bytes| sum.saturating_add(bytes as u64))
        }
    }
}

fn bytes_of_text(text: &Text) -> u64 {
    match text {
        Text::Inline(text) => text.len() as u64,
        Text::Blob { bytes, .. } => *bytes,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(bytes: usize) -> Text {
        Text::Inline("x".repeat(bytes))
    }

    fn user(bytes: usize) -> Said {
        Said::User(vec![Part::Text { text: text(bytes) }])
    }

    fn tool(bytes: usize) -> Said {
        Said::Tool { call: "c".parse().unwrap(), parts: vec![Part::Text { text: text(bytes) }] }
    }

    fn assistant(bytes: usize) -> Said {
        Said::Assistant { text: text(bytes), tool_calls: Vec::new() }
    }

    fn context(said: Vec<Said>) -> Context {
        let mut context = Context::default();
        for (number, said) in (10..).step_by(10).zip(said) {
            context.push(EventNumber(number), said);
        }
        context
    }

    #[test]
    fn keeps_the_end_and_never_parts_results_from_their_calls() {
        let context = context(vec![user(400), assistant(400), tool(400), tool(400), assistant(40), user(40)]);
        assert_eq!(context.cut(25, false), Some(EventNumber(40)), "the last answer and prompt stay");
        assert_eq!(context.cut(150, false), Some(EventNumber(40)), "a result would begin the rest");
        assert_eq!(context.cut(400, false), Some(EventNumber(10)));
        assert_eq!(context.cut(5, false), Some(EventNumber(50)), "the last prompt stays, however long");
        assert_eq!(context.cut(5, true), Some(EventNumber(60)), "unless all may go");
        assert_eq!(context.cut(5_000, false), None, "all fits");
    }

    #[test]
    fn what_follows_a_summary_is_told_as_it_was() {
        let mut context = context(vec![user(400), assistant(400), user(40)]);
        assert_eq!(context.tokens(), 210);
        context.compact(EventNumber(20), text(40));
        let said: Vec<_> = context.entries().map(|entry| entry.number.0).collect();
        assert_eq!((said, context.tokens()), (vec![20, 30], 20));
        assert_eq!(context.cut(5, false), None, "a summary of the summary alone is not worth a call");
    }

    #[test]
    fn counts_of_providers_are_believed_before_guesses() {
        let mut context = context(vec![user(400), assistant(400)]);
        context.measure(Usage { input_tokens: 900, output_tokens: 90, cost_micros: None });
        context.push(EventNumber(90), tool(40));
        assert_eq!(context.tokens(), 1_000);
    }
}
