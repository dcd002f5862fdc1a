//! Models as agents see them: one trait, behind which others own providers, keys and quotas.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use mesh_identity::NodeId;

use crate::content::{ToolCall, Usage};
use crate::event::Party;
use crate::ids::{AgentId, ToolCallId};

/// Where models are asked. `qmt-node` backs it with `mesh-inference`; tests with a script.
pub trait ModelClient: Send + Sync {
    /// Asks a model. Dropping the future or the answer ends the call at the model too.
    ///
    /// # Errors
    /// [`ModelError`] when it could not be asked or refused; pieces of the answer fail with the same type.
    fn call(&self, call: ModelCall) -> BoxFuture<'static, Result<ModelAnswer, ModelError>>;
}

/// A question to a model, complete: models remember nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCall {
    /// The agent that asks: routes are set for agents.
    pub agent: AgentId,
    /// The model's name; never an address or a key.
    pub model: String,
    /// The node to ask; none for whatever routing prefers.
    pub peer: Option<NodeId>,
    /// What was said so far, oldest first.
    pub messages: Vec<Message>,
    /// The tools that it may ask for.
    pub tools: Vec<ToolSpec>,
    /// The most tokens of its answer; none for the provider's own bound.
    pub max_tokens: Option<u32>,
    /// How bold it is; none for the provider's own choice.
    pub temperature: Option<f32>,
    /// On whose behalf, for quotas.
    pub on_behalf_of: Party,
}

/// Something said, as models are told it. Contents of blobs stand in it themselves.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The agent's instructions, and summaries of what is no longer told.
    System(String),
    /// A prompt.
    User(Vec<Shown>),
    /// An answer of the model.
    Assistant {
        /// Its text.
        text: String,
        /// The tools that it asked for.
        tool_calls: Vec<ToolCall>,
    },
    /// The result of a tool.
    Tool {
        /// The call.
        call: ToolCallId,
        /// What the tool said.
        parts: Vec<Shown>,
    },
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// Text.
    Text(String),
    /// An image.
    Image {
        /// Such as `image/png`.
        media_type: String,
        /// The bytes of the image.
        bytes: bytes::Bytes,
    },
}

/// A tool as models are told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolSpec {
    /// Its name: letters, digits, `_` and `-`, at most 64.
    pub name: String,
    /// What it does and when to use it.
    pub description: String,
    /// The JSON Schema of its arguments, an object.
    pub parameters: Value,
}

/// A model that answers.
pub struct ModelAnswer {
    /// The node whose model answers, when it is known.
    pub peer: Option<NodeId>,
    /// The answer as it comes; it is complete with [`ModelPiece::Finished`], and broken off when it ends before.
    pub pieces: BoxStream<'static, Result<ModelPiece, ModelError>>,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelPiece {
    /// More text.
    Text(String),
    /// More reasoning.
    Reasoning(String),
    /// A whole call of a tool.
    ToolCall(ToolCall),
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What was used.
        usage: Usage,
    },
}

/// Why a model's answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FinishReason {
    /// It had said everything, or wants its tools called.
    #[default]
    Done,
    /// The most tokens were reached.
    Length,
    /// The provider held the rest back.
    Filtered,
}

impl FinishReason {
    /// Whether nothing is missing.
    pub fn is_done(&self) -> bool {
        *self == Self::Done
    }
}

/// A model was not asked, or did not answer to the end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The question is wrong, or the model is unknown: repeating it is of no use.
    #[error("the model refused the call: {0}")]
    Refused(String),
    /// Full, or a quota is used up; tell no sooner than this, when it is known.
    #[error("the model is busy: {why}")]
    Busy {
        /// What is full.
        why: String,
        /// The wait that was asked for.
        retry_after: Option<Duration>,
    },
    /// Nobody could be reached who has the model, or it failed: worth another try.
    #[error("the model could not be reached: {0}")]
    Unavailable(String),
    /// The answer broke off: worth another try, from its beginning.
    #[error("the answer broke off: {0}")]
    BrokenOff(String),
}
