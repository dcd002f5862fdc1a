//! What is said in a session: by people, by models and by tools.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{BlobId, ToolCallId};

/// The longest text that stands in an event itself, in bytes; longer ones are blobs. With it every event stays below a
/// quarter of the bound of a frame of `session/1`.
pub const INLINE_BYTES_MAX: usize = 64 * 1024;

/// A text: in its place, or a blob of the session's store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// The text itself, at most [`INLINE_BYTES_MAX`] bytes.
    Inline(String),
    /// UTF-8 in a blob.
    Blob {
        /// Which.
        blob: BlobId,
        /// Its length.
        bytes: u64,
    },
}

/// A part of a prompt or of a tool's result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Part {
    /// Plain text.
    Text {
        /// The text.
        text: Text,
    },
    /// An image for a model that sees.
    Image {
        /// Such as `image/png`.
        media_type: String,
        /// Its bytes.
        blob: BlobId,
        /// Their number.
        bytes: u64,
    },
}

/// A call of a tool as a model asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Unique within the turn.
    pub id: ToolCallId,
    /// The tool.
    pub name: String,
    /// The arguments; a model's answer that was no JSON stands here as a string, and the tool refuses it.
    pub arguments: Value,
}

/// What came of a call of a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolResult {
    /// Whether it did what was asked.
    pub outcome: ToolOutcome,
    /// What the model is told.
    pub parts: Vec<Part>,
}

/// How a call of a tool ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ToolOutcome {
    /// It ran and succeeded.
    Done,
    /// It ran and failed, or its arguments were wrong.
    Failed,
    /// The policy, or who was asked, did not allow it; it did not run.
    Denied,
    /// It was ended before it was done.
    Cancelled,
    /// The node went down while it ran: whether it did its work is unknown, and it is not run again by itself.
    Unknown,
}

/// What a model call used, as its provider counted it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub input_tokens: u64,
    /// Tokens of the answer, its reasoning included.
    pub output_tokens: u64,
    /// The price in millionths of the account's currency, when the configuration names prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_micros: Option<u64>,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, more: Self) {
        self.input_tokens = self.input_tokens.saturating_add(more.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(more.output_tokens);
        self.cost_micros = match (self.cost_micros, more.cost_micros) {
            (Some(one), Some(other)) => Some(one.saturating_add(other)),
            (one, other) => one.or(other),
        };
    }
}
