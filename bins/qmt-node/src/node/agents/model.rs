//! Models for this node's agents: questions go to the node's own gateway, to the node that the agent's route names.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use mesh_identity::{NodeId, ScopeId};
use mesh_inference::chat::{self, Call, Chat, ChatError, Piece};
use mesh_routing::{NoRoute, Provider, ProviderTarget, Query, Router};
use mesh_sessions::content::{ToolCall, Usage};
use mesh_sessions::ids::ToolCallId;
use mesh_sessions::model::{
    FinishReason, Message, ModelAnswer, ModelCall, ModelClient, ModelError, ModelPiece, Shown, ToolSpec,
};

use super::super::scopes::{Scope, Scopes};

/// How often it is looked whether a model is there again.
const LOOK: Duration = Duration::from_millis(250);

/// How often a model that is coming is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The models that agents of this node ask. Cheap to clone.
#[derive(Clone)]
pub(super) struct Models(Arc<Asked>);

struct Asked {
    me: NodeId,
    chat: Chat,
    router: Router,
    scopes: Arc<Scopes>,
    /// So long a model that was there, or may come when the node has just started, is waited for.
    grace: Duration,
    /// Whether others may answer when the node that was named does not.
    may_fall_back: bool,
    started: Instant,
    /// Models that have answered.
    seen: Mutex<BTreeSet<String>>,
}

impl Models {
    pub(super) fn new(
        me: NodeId,
        chat: Chat,
        router: Router,
        scopes: Arc<Scopes>,
        grace: Duration,
        may_fall_back: bool,
    ) -> Self {
        let (started, seen) = (Instant::now(), Mutex::default());
        Self(Arc::new(Asked { me, chat, router, scopes, grace, may_fall_back, started, seen }))
    }
}

impl ModelClient for Models {
    fn call(&self, call: ModelCall) -> BoxFuture<'static, Result<ModelAnswer, ModelError>> {
        let asked = self.0.clone();
        Box::pin(async move { asked.ask(call).await })
    }
}

impl Asked {
    async fn ask(&self, call: ModelCall) -> Result<ModelAnswer, ModelError> {
        let peer = self.target(&call).await?;
        self.wait_for(&call.model, peer).await;
        let asked = to_call(call, peer, self.me);
        let model = asked.model.clone();
        let until = Instant::now() + self.grace;
        let answer = loop {
            match self.try_to_ask(&asked, peer).await {
                // It was asked for, so it comes: it is being loaded, or its node is on its way back.
                Err(ChatError::Busy { .. }) if self.is_coming(&model, peer) && Instant::now() < until => {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                answer => break answer,
            }
        };
        let answer = answer.map_err(to_error)?;
        self.seen().insert(model);
        let pieces = answer.pieces.map(|piece| piece.map_err(to_error).and_then(to_piece));
        Ok(ModelAnswer { peer: answer.peer, pieces: pieces.boxed() })
    }

    async fn try_to_ask(&self, asked: &Call, peer: Option<NodeId>) -> Result<chat::Answer, ChatError> {
        let first = match (self.chat.call(asked.clone()).await, peer) {
            (Err(first), Some(node)) if self.may_fall_back && node != self.me && is_elsewhere(&first) => {
                tracing::debug!(model = asked.model, peer = %node.short(), error = %first, "others are asked");
                (node, first)
            }
            (answer, _) => return answer,
        };
        let others = self.chat.call(Call { peer: None, ..asked.clone() }).await;
        others.map_err(|error| both(first.0, &first.1, error))
    }

    /// The node whose model is to be asked; none for whatever routing prefers. After a start names are not known for a while.
    async fn target(&self, call: &ModelCall) -> Result<Option<NodeId>, ModelError> {
        loop {
            let policy = self.router.snapshot().policy(call.agent.as_str());
            let name = match policy.provider_target {
                ProviderTarget::Any => return Ok(call.peer),
                ProviderTarget::Local => return Ok(Some(self.me)),
                ProviderTarget::Peer(name) => name,
            };
            if policy.resolved_provider_node_id.is_some() || self.may_fall_back {
                return Ok(policy.resolved_provider_node_id);
            }
            if self.started.elapsed() >= self.grace {
                return Err(ModelError::Unavailable(format!("no one node is called {name}")));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// After a start, or when its node has gone for a moment, a model is not known for a while. Whoever asks then is not told
    /// that there is no such model before that time is over.
    async fn wait_for(&self, model: &str, peer: Option<NodeId>) {
        let since = if self.seen().contains(model) { Instant::now() } else { self.started };
        let is_known = |peer| !matches!(self.route(model, peer), Err(NoRoute::UnknownModel { .. }));
        let may_be_asked = || is_known(peer) || (self.may_fall_back && is_known(None));
        while !may_be_asked() && since.elapsed() < self.grace {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn is_coming(&self, model: &str, peer: Option<NodeId>) -> bool {
        matches!(self.route(model, peer), Err(NoRoute::NotReady { .. }))
    }

    fn route(&self, model: &str, peer: Option<NodeId>) -> Result<(), NoRoute> {
        let scopes: Vec<ScopeId> = self.scopes.list().iter().map(Scope::id).collect();
        let provider = match peer {
            None => Provider::Any,
            Some(node) if node == self.me => Provider::Local,
            Some(node) => Provider::Node(node),
        };
        let query = Query { provider, ..Query::new(model, scopes) };
        self.router.route(&query, 0, Instant::now()).map(drop)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether another node may do better.
fn is_elsewhere(error: &ChatError) -> bool {
    !matches!(error, ChatError::BrokenOff(_))
}

fn both(node: NodeId, first: &ChatError, then: ChatError) -> ChatError {
    let told = |why: String| format!("node {}: {first}; others: {why}", node.short());
    match then {
        ChatError::Refused(why) => ChatError::Refused(told(why)),
        ChatError::Busy { why, retry_after } => ChatError::Busy { why: told(why), retry_after },
        ChatError::BrokenOff(why) => ChatError::BrokenOff(told(why)),
        ChatError::Unavailable(why) => ChatError::Unavailable(told(why)),
        other => other,
    }
}

fn to_call(call: ModelCall, peer: Option<NodeId>, me: NodeId) -> Call {
    let on_behalf_of = call.on_behalf_of.scope.map(|_| call.on_behalf_of.node).filter(|node| *node != me);
    Call {
        model: call.model,
        peer,
        messages: call.messages.into_iter().map(to_message).collect(),
        tools: call.tools.into_iter().map(to_tool).collect(),
        max_tokens: call.max_tokens,
        temperature: call.temperature,
        on_behalf_of,
    }
}

fn to_message(message: Message) -> chat::Message {
    match message {
        Message::System(text) => chat::Message::System(text),
        Message::User(parts) => chat::Message::User(parts.into_iter().map(to_part).collect()),
        Message::Assistant { text, tool_calls } => {
            let one = |call: ToolCall| chat::ToolCall {
                id: call.id.into(),
                name: call.name,
                arguments: call.arguments,
            };
            chat::Message::Assistant { text, tool_calls: tool_calls.into_iter().map(one).collect() }
        }
        Message::Tool { call, parts } => {
            chat::Message::Tool { call: call.into(), parts: parts.into_iter().map(to_part).collect() }
        }
    }
}

fn to_part(part: Shown) -> chat::Part {
    match part {
        Shown::Text(text) => chat::Part::Text(text),
        Shown::Image { media_type, bytes } => chat::Part::Image { media_type, bytes },
    }
}

fn to_tool(spec: ToolSpec) -> chat::Tool {
    chat::Tool { name: spec.name, description: spec.description, parameters: spec.parameters }
}

fn to_piece(piece: Piece) -> Result<ModelPiece, ModelError> {
    Ok(match piece {
        Piece::Text(text) => ModelPiece::Text(text),
        Piece::Reasoning(text) => ModelPiece::Reasoning(text),
        Piece::ToolCall(call) => {
            let id: Result<ToolCallId, _> = call.id.try_into();
            let id = id.map_err(|_| ModelError::BrokenOff("a tool call has no sound id".to_owned()))?;
            ModelPiece::ToolCall(ToolCall { id, name: call.name, arguments: call.arguments })
        }
        Piece::Finished { reason, usage } => ModelPiece::Finished {
            reason: match reason {
                chat::FinishReason::Length => FinishReason::Length,
                chat::FinishReason::Filtered => FinishReason::Filtered,
                _ => FinishReason::Done,
            },
            usage: Usage {
                input_tokens: usage.input_tokens,
                output_tokens: usage.output_tokens,
                cost_micros: usage.cost_micros,
            },
        },
    })
}

fn to_error(error: ChatError) -> ModelError {
    match error {
        ChatError::Refused(why) => ModelError::Refused(why),
        ChatError::Busy { why, retry_after } => ModelError::Busy { why, retry_after },
        ChatError::BrokenOff(why) => ModelError::BrokenOff(why),
        ChatError::Unavailable(why) => ModelError::Unavailable(why),
        other => ModelError::Unavailable(other.to_string()),
    }
}
