//! One model call of a session: what the model is told, and what it says.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use tokio::sync::mpsc;

use super::content;
use crate::agent::Agent;
use crate::event::Party;
use crate::model::{Message, ModelCall, ModelClient, ModelError, ModelPiece, Shown, ToolSpec};
use crate::proto::{Asking, Input, ModelSaid, Said};
use crate::store::{StorageError, Store};

/// The most of one thing said that goes into the question for a summary, in bytes: what a tool printed is not to fill it.
const EXCERPT_BYTES_MAX: usize = 8 * 1024;

const SUMMARIZE: &str = "Below is a conversation between a user and an agent. Write a summary that takes its place for \
                         the agent: what the user wants and has decided, what was found out and done, with names, \
                         paths, values and errors word for word, what is under way and what remains. Write only the \
                         summary.";

/// A question in the making.
pub(super) struct Question {
    pub(super) store: Store,
    pub(super) client: Arc<dyn ModelClient>,
    pub(super) agent: Arc<Agent>,
    pub(super) call: u64,
    pub(super) asking: Asking,
    /// What was said, as far as it is part of the question.
    pub(super) context: Vec<Said>,
    pub(super) tools: Vec<ToolSpec>,
    pub(super) on_behalf_of: Party,
}

impl Question {
    /// Asks, and hands on what is said until the last piece; that or a failure comes exactly once, unless it is dropped.
    pub(super) async fn ask(self, heard: mpsc::Sender<Input>) {
        let call = self.call;
        let asked = AssertUnwindSafe(self.hear(&heard)).catch_unwind().await;
        let failure = match asked {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => ModelError::Unavailable("the model client failed unexpectedly".to_owned()),
        };
        // A session that is gone hears nothing.
        let _ = heard.send(Input::Model { call, said: ModelSaid::Failed(failure) }).await;
    }

    async fn hear(self, heard: &mpsc::Sender<Input>) -> Result<(), ModelError> {
        let call = self.call;
        let stored = |error: StorageError| ModelError::Unavailable(error.to_string());
        let messages = match self.asking {
            Asking::Answer => self.messages().await.map_err(stored)?,
            Asking::Summary { .. } => self.transcript().await.map_err(stored)?,
        };
        let question = ModelCall {
            agent: self.agent.id.clone(),
            model: self.agent.model.clone(),
            peer: self.agent.peer,
            messages,
            tools: self.tools,
            max_tokens: self.agent.max_tokens,
            temperature: self.agent.temperature,
            on_behalf_of: self.on_behalf_of,
        };
        let mut answer = self.client.call(question).await?;
        while let Some(piece) = answer.pieces.next().await {
            let piece = piece?;
            let is_last = matches!(piece, ModelPiece::Finished { .. });
            if heard.send(Input::Model { call, said: ModelSaid::Piece(piece) }).await.is_err() || is_last {
                return Ok(());
            }
        }
        Err(ModelError::BrokenOff("it ended without its end".to_owned()))
    }

    async fn messages(&self) -> Result<Vec<Message>, StorageError> {
        let mut messages = Vec::new();
        if !self.agent.instructions.is_empty() {
            messages.push(Message::System(self.agent.instructions.clone()));
        }
        for said in &self.context {
            match said {
                Said::Summary(text) => {
                    let summary = content::said(&self.store, text).await?;
                    messages.push(Message::System(format!("Summary of the conversation so far:\n{summary}")));
                }
                Said::User(parts) => {
                    let shown = content::shown(&self.store, parts).await?;
                    // Providers want user and assistant in turns.
                    match messages.last_mut() {
                        Some(Message::User(before)) => before.extend(shown),
                        _ => messages.push(Message::User(shown)),
                    }
                }
                Said::Assistant { text, tool_calls } => {
                    let text = content::said(&self.store, text).await?;
                    messages.push(Message::Assistant { text, tool_calls: tool_calls.clone() });
                }
                Said::Tool { call, parts } => {
                    let parts = content::shown(&self.store, parts).await?;
                    messages.push(Message::Tool { call: call.clone(), parts });
                }
            }
        }
        Ok(messages)
    }

    /// All of it as one text: no provider minds results of tools in it.
    async fn transcript(&self) -> Result<Vec<Message>, StorageError> {
        let mut text = String::new();
        let mut add = |who: &str, said: &str| {
            let excerpt = &said[..said.floor_char_boundary(EXCERPT_BYTES_MAX)];
            let more = if excerpt.len() < said.len() { " […]" } else { "" };
            text.push_str(&format!("{who}: {excerpt}{more}\n\n"));
        };
        for said in &self.context {
            match said {
                Said::Summary(summary) => add("EARLIER", &content::said(&self.store, summary).await?),
                Said::User(parts) => add("USER", &words(content::shown(&self.store, parts).await?)),
                Said::Assistant { text, tool_calls } => {
                    add("AGENT", &content::said(&self.store, text).await?);
                    for call in tool_calls {
                        add(&format!("AGENT CALLS {}", call.name), &call.arguments.to_string());
                    }
                }
                Said::Tool { parts, .. } => add("RESULT", &words(content::shown(&self.store, parts).await?)),
            }
        }
        Ok(vec![Message::System(SUMMARIZE.to_owned()), Message::User(vec![Shown::Text(text)])])
    }
}

fn words(shown: Vec<Shown>) -> String {
    let word = |shown: Shown| match shown {
        Shown::Text(text) => text,
        Shown::Image { media_type, .. } => format!("[{media_type}]"),
    };
    shown.into_iter().map(word).collect::<Vec<_>>().join("\n")
}
