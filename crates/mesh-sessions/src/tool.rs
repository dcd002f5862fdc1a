//! Tools as turns see them.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::content::ToolOutcome;
use crate::event::Party;
use crate::ids::{SessionId, ToolCallId};
use crate::model::{Shown, ToolSpec};

/// Something that an agent can do beside talking.
pub trait Tool: Send + Sync {
    /// What models are told of it; asked again for each model call, so it may change.
    fn spec(&self) -> ToolSpec;

    /// Whether a call with these arguments only looks, and so may be repeated when nobody knows whether it ran.
    fn only_reads(&self, arguments: &Value) -> bool;

    /// Does it. Ends soon after the cancellation, with what it has; dropping the future ends it at once, its processes
    /// too.
    fn run(&self, run: ToolRun) -> BoxFuture<'static, Ran>;
}

/// One call of a tool.
pub struct ToolRun {
    /// The session.
    pub session: SessionId,
    /// The call.
    pub call: ToolCallId,
    /// The arguments as the model gave them, unchecked.
    pub arguments: Value,
    /// On whose behalf the turn runs.
    pub on_behalf_of: Party,
    /// Takes what the tool prints while it runs; it never blocks, and what is too much is dropped and counted.
    pub printed: Arc<dyn Fn(&str) + Send + Sync>,
    /// Ends the call early.
    pub cancel: CancellationToken,
}

/// What a tool did.
#[derive(Clone, Debug, PartialEq)]
pub struct Ran {
    /// [`ToolOutcome::Done`], [`ToolOutcome::Failed`] or [`ToolOutcome::Cancelled`].
    pub outcome: ToolOutcome,
    /// What the model is told, bounded by the tool.
    pub parts: Vec<Shown>,
}

impl Ran {
    /// It did what was asked.
    pub fn done(text: impl Into<String>) -> Self {
        Self { outcome: ToolOutcome::Done, parts: vec![Shown::Text(text.into())] }
    }

    /// It did not.
    pub fn failed(why: impl Into<String>) -> Self {
        Self { outcome: ToolOutcome::Failed, parts: vec![Shown::Text(why.into())] }
    }
}
