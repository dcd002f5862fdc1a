//! Models for this node's own agents: a question goes in, the answer comes as pieces.
//!
//! [`Chat`] asks this node's own [`Gateway`], within the process, as a client of OpenAI's API asks it over HTTP. So routing,
//! survival, quotas and sharing hold for agents as they do for everybody else. It adds what an agent needs: answers read
//! to pieces, tool calls put together, errors sorted by what to do, and two wishes that no HTTP caller can have: which
//! node is to answer, and on whose behalf.
//!
//! It remembers nothing between calls, tries nothing twice, and runs no task: an answer that is dropped ends at the model.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod answer;
mod ask;
mod error;
mod pieces;
mod tool_calls;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::header::{self, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::Full;
use mesh_identity::NodeId;
use serde_json::Value;

use crate::gateway::{Gateway, OwnCall, OwnDoor, Wire};
pub use error::ChatError;

/// A client of this node's own gateway. Cheap to clone; it does not keep the gateway running.
#[derive(Clone)]
pub struct Chat {
    door: OwnDoor,
}

/// A question, complete: models remember nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The model's name.
    pub model: String,
    /// The node whose model is to answer, this one included; none for whatever routing prefers.
    pub peer: Option<NodeId>,
    /// What was said so far, oldest first.
    pub messages: Vec<Message>,
    /// The tools that the model may ask for.
    pub tools: Vec<Tool>,
    /// The most tokens of its answer; none for the provider's own bound.
    pub max_tokens: Option<u32>,
    /// How bold it is; none for the provider's own choice.
    pub temperature: Option<f32>,
    /// The other node that this is for, whose quota it counts against; none when it is for this one.
    pub on_behalf_of: Option<NodeId>,
}

/// Something said.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Instructions.
    System(String),
    /// A prompt.
    User(Vec<Part>),
    /// An answer of the model.
    Assistant {
        /// Its text.
        text: String,
        /// The tools that it asked for.
        tool_calls: Vec<ToolCall>,
    },
    /// The result of a tool.
    Tool {
        /// The id of its call.
        call: String,
        /// What it said.
        parts: Vec<Part>,
    },
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Text.
    Text(String),
    /// An image. One in a tool's result is shown in a message of the user behind the results, since OpenAI's API has no
    /// place for it there.
    Image {
        /// Such as `image/png`.
        media_type: String,
        /// The image itself.
        bytes: Bytes,
    },
}

/// A tool as models are told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name: letters, digits, `_` and `-`, at most 64.
    pub name: String,
    /// What it does and when to use it.
    pub description: String,
    /// The JSON Schema of its arguments, an object.
    pub parameters: Value,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolCall {
    /// Names it; never empty, at most 128 bytes.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its arguments. What the model said when it was no JSON stands here as a string.
    pub arguments: Value,
}

/// A model that answers.
pub struct Answer {
    /// The node whose model it is; none for this one when it is in no mesh.
    pub peer: Option<NodeId>,
    /// The answer as it comes. It is complete with [`Piece::Finished`], and ends with the first error.
    pub pieces: BoxStream<'static, Result<Piece, ChatError>>,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// More text, never empty.
    Text(String),
    /// More reasoning, never empty.
    Reasoning(String),
    /// A whole call of a tool. All of them come before the end, in the model's order.
    ToolCall(ToolCall),
    /// The end.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What was used, as far as the provider told.
        usage: Usage,
    },
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FinishReason {
    /// The model had said everything, or wants its tools called.
    Done,
    /// The most tokens were reached.
    Length,
    /// The provider held the rest back.
    Filtered,
}

/// What an answer used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the question.
    pub input_tokens: u64,
    /// Tokens of the answer, its reasoning included.
    pub output_tokens: u64,
    /// The price in millionths, when the provider's owner configured prices.
    pub cost_micros: Option<u64>,
}

impl Chat {
    /// Asks `gateway` from now on. Once it stops, calls fail with [`ChatError::Unavailable`].
    pub fn new(gateway: &Gateway) -> Self {
        Self { door: gateway.own_door() }
    }

    /// Asks a model. Returns once its answer begins, which takes as long as the gateway's deadlines allow.
    ///
    /// Dropping the future, or the answer, ends the work at the model at once.
    ///
    /// # Errors
    /// [`ChatError`] when nobody answers; the pieces of an answer fail with the same type.
    pub async fn call(&self, call: Call) -> Result<Answer, ChatError> {
        if self.door.is_stopping() {
            return Err(ChatError::Unavailable("this node is shutting down".into()));
        }
        let on_behalf_of = call.on_behalf_of.filter(|node| self.door.me() != Some(*node));
        let own = Arc::new(OwnCall::new(call.peer, on_behalf_of));
        let body = ask::body(call).await?;
        let mut wire = Wire::new(self.door.open(own.clone())).await.map_err(answer::broken_before)?;
        let head = wire.send(request(body)).await.map_err(answer::broken_before)?;
        let pieces = answer::read(head, wire).await?;
        Ok(Answer { peer: own.peer().or_else(|| self.door.me()), pieces })
    }
}

fn request(body: Vec<u8>) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static("/v1/chat/completions");
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
    request
}

impl std::fmt::Debug for Chat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chat").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer").field("peer", &self.peer).finish_non_exhaustive()
    }
}
