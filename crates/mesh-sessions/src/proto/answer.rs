//! An answer of a model that is coming.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use super::core::Asking;
use crate::content::ToolCall;
use crate::event::Body;
use crate::ids::{ToolCallId, TurnNumber};

/// The longest piece of an answer in one event, in bytes.
const PIECE_BYTES_MAX: usize = 16 * 1024;
/// The longest answer, its reasoning and arguments of tools included: more than any model of today gives.
pub(super) const ANSWER_BYTES_MAX: usize = 4 << 20;
/// The most that arguments of tools in one answer may come to: with them its event stays below the bound of a frame.
pub(super) const ARGUMENTS_BYTES_MAX: usize = 512 * 1024;
/// The most calls of tools in one answer.
pub(super) const TOOL_CALLS_MAX: usize = 128;

/// A model call under way, and what has come of it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) call: u64,
    pub(super) asking: Asking,
    pub(super) since: Instant,
    /// When the last piece came.
    pub(super) heard: Option<Instant>,
    pub(super) text: String,
    pub(super) reasoning: String,
    pub(super) tool_calls: Vec<ToolCall>,
    arguments_bytes: usize,
    /// What has come and stands in no event yet.
    pending: VecDeque<Piece>,
}

#[derive(Debug)]
enum Piece {
    Text(String),
    Reasoning(String),
}

impl Asked {
    pub(super) fn new(call: u64, asking: Asking, since: Instant) -> Self {
        Self {
            call,
            asking,
            since,
            heard: None,
            text: String::new(),
            reasoning: String::new(),
            tool_calls: Vec::new(),
            arguments_bytes: 0,
            pending: VecDeque::new(),
        }
    }

    pub(super) fn add_text(&mut self, more: &str) {
        self.text.push_str(more);
        match self.pending.back_mut() {
            Some(Piece::Text(text)) => text.push_str(more),
            _ => self.pending.push_back(Piece::Text(more.to_owned())),
        }
    }

    pub(super) fn add_reasoning(&mut self, more: &str) {
        self.reasoning.push_str(more);
        match self.pending.back_mut() {
            Some(Piece::Reasoning(text)) => text.push_str(more),
            _ => self.pending.push_back(Piece::Reasoning(more.to_owned())),
        }
    }

    pub(super) fn add_tool_call(&mut self, call: ToolCall) {
        self.arguments_bytes += call.arguments.to_string().len() + call.name.len();
        self.tool_calls.push(call);
    }

    /// Why the answer cannot be taken; none when it can.
    pub(super) fn excess(&self) -> Option<&'static str> {
        let bytes = self.text.len() + self.reasoning.len() + self.arguments_bytes;
        if self.arguments_bytes > ARGUMENTS_BYTES_MAX {
            Some("the model gave its tools arguments that are too long")
        } else if self.tool_calls.len() > TOOL_CALLS_MAX {
            Some("the model wanted too many tools at once")
        } else {
            (bytes > ANSWER_BYTES_MAX).then_some("the model's answer is too long")
        }
    }

    /// The events of what has come since they were last asked for. A summary has none.
    pub(super) fn drain(&mut self, turn: TurnNumber) -> Vec<Body> {
        let pending = std::mem::take(&mut self.pending);
        if self.asking != Asking::Answer {
            return Vec::new();
        }
        let bodies = |piece: Piece| match piece {
            Piece::Text(text) => split(&text).map(|text| Body::TextAdded { turn, text }).collect::<Vec<_>>(),
            Piece::Reasoning(text) => split(&text).map(|text| Body::ReasoningAdded { turn, text }).collect(),
        };
        pending.into_iter().flat_map(bodies).collect()
    }
}

/// The text in pieces that fit into events.
pub(super) fn split(text: &str) -> impl Iterator<Item = String> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES_MAX));
        rest = after;
        (!piece.is_empty()).then(|| piece.to_owned())
    })
}

/// Makes the ids of calls unique within their turn: some models count anew in each answer.
pub(super) fn name_apart(calls: Vec<ToolCall>, used: &BTreeSet<ToolCallId>) -> Vec<ToolCall> {
    let mut used = used.clone();
    let apart = |mut call: ToolCall| {
        let mut suffix = used.len();
        while used.contains(&call.id) {
            let id = call.id.as_str();
            // Room for the longest suffix.
            let stem = &id[..id.floor_char_boundary(ToolCallId::MAX_BYTES - 24)];
            call.id = format!("{stem}-{suffix}").parse().unwrap_or(call.id);
            suffix += 1;
        }
        used.insert(call.id.clone());
        call
    };
    calls.into_iter().map(apart).collect()
}
