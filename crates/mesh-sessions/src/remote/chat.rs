//! A prompt and its answer as one call.

use uuid::Uuid;

use super::call::{RemoteError, RemoteSession};
use super::follow::RemoteFollowing;
use crate::content::Text;
use crate::event::{Body, TurnOutcome};
use crate::ids::PromptId;
use crate::model::Shown;

/// A chat got no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The host refused, or was lost. The prompt may stand in its log and be answered there; read the session to see.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The turn ended another way than by an answer; the session holds what was said until then.
    #[error("the turn ended without an answer: {}", how(outcome))]
    Ended {
        /// How.
        outcome: TurnOutcome,
    },
}

fn how(outcome: &TurnOutcome) -> String {
    match outcome {
        TurnOutcome::Done => "the agent is done".to_owned(),
        TurnOutcome::Cancelled { by } => format!("node {} cancelled it", by.node.short()),
        TurnOutcome::LimitReached { limit } => format!("its limit of {limit:?} was reached"),
        TurnOutcome::Failed { why } => why.clone(),
    }
}

impl RemoteSession {
    /// Prompts the agent with a text and returns its answer, whatever happens to links and nodes meanwhile. A dropped future
    /// leaves the prompt to be answered: who may want to stop waiting and come back uses [`RemoteSession::prompt`] and
    /// [`RemoteSession::follow`].
    ///
    /// # Errors
    /// [`ChatError`].
    pub async fn chat(&self, text: impl Into<String>) -> Result<String, ChatError> {
        self.chat_with(vec![Shown::Text(text.into())]).await
    }

    /// [`RemoteSession::chat`] with any parts, such as images.
    ///
    /// # Errors
    /// [`ChatError`].
    pub async fn chat_with(&self, parts: Vec<Shown>) -> Result<String, ChatError> {
        let prompt = PromptId::from(Uuid::now_v7());
        let number = self.prompt(prompt.clone(), parts).await?;
        let answer = answer(&mut self.follow(number), &prompt).await?;
        match answer {
            Text::Inline(text) => Ok(text),
            Text::Blob { blob, .. } => Ok(String::from_utf8_lossy(&self.content(blob).await?).into_owned()),
        }
    }
}

/// The last that the agent says in the turn that answers the prompt.
async fn answer(following: &mut RemoteFollowing, prompt: &PromptId) -> Result<Text, ChatError> {
    let mut mine = None;
    let mut said = Text::Inline(String::new());
    loop {
        match following.next().await?.body {
            Body::TurnStarted { turn, prompt: answered } if answered == *prompt => mine = Some(turn),
            Body::Answered { turn, text, .. } if Some(turn) == mine => said = text,
            Body::TurnEnded { turn, outcome, .. } if Some(turn) == mine => {
                return match outcome {
                    TurnOutcome::Done => Ok(said),
                    outcome => Err(ChatError::Ended { outcome }),
                };
            }
            _ => {}
        }
    }
}
