//! One call of a tool of a session.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::content;
use crate::content::{Part, Text, ToolCall, ToolOutcome, ToolResult};
use crate::event::Party;
use crate::ids::SessionId;
use crate::model::Shown;
use crate::proto::Input;
use crate::store::Store;
use crate::tool::{Ran, Tool, ToolRun};

/// A call of a tool in the making.
pub(super) struct Running {
    pub(super) store: Store,
    pub(super) session: SessionId,
    pub(super) tool: Option<Arc<dyn Tool>>,
    pub(super) call: ToolCall,
    pub(super) by: Party,
    pub(super) cancel: CancellationToken,
    /// How long it may take to end once it is cancelled.
    pub(super) grace: Duration,
}

impl Running {
    /// Runs it; its end comes exactly once, unless this is dropped.
    pub(super) async fn run(self, heard: mpsc::Sender<Input>) {
        let id = self.call.id.clone();
        let store = self.store.clone();
        let lost = Arc::new(AtomicUsize::new(0));
        let ran = AssertUnwindSafe(self.end(&heard, lost.clone())).catch_unwind().await;
        let ran = ran.unwrap_or_else(|_| Ran::failed("the tool failed unexpectedly"));
        let lost = lost.load(Ordering::Relaxed);
        if lost > 0 {
            let text = format!("\n[{lost} bytes were printed too fast to be shown]\n");
            let _ = heard.send(Input::Printed { call: id.clone(), text }).await;
        }
        let outcome = ran.outcome;
        let parts = content::parts(&store, ran.parts).await.unwrap_or_else(|error| {
            let text = Text::Inline(format!("[the tool's result could not be stored: {error}]"));
            vec![Part::Text { text }]
        });
        // A session that is gone hears nothing.
        let _ = heard.send(Input::ToolEnded { call: id, result: ToolResult { outcome, parts } }).await;
    }

    async fn end(self, heard: &mpsc::Sender<Input>, lost: Arc<AtomicUsize>) -> Ran {
        let Some(tool) = self.tool else { return Ran::failed("there is no such tool any more") };
        let (printing, call) = (heard.clone(), self.call.id.clone());
        let printed = move |text: &str| {
            let input = Input::Printed { call: call.clone(), text: text.to_owned() };
            if printing.try_send(input).is_err() {
                lost.fetch_add(text.len(), Ordering::Relaxed);
            }
        };
        let run = ToolRun {
            session: self.session,
            call: self.call.id,
            arguments: self.call.arguments,
            on_behalf_of: self.by,
            printed: Arc::new(printed),
            cancel: self.cancel.clone(),
        };
        let given_up = async {
            self.cancel.cancelled().await;
            tokio::time::sleep(self.grace).await;
        };
        tokio::select! {
            ran = tool.run(run) => ran,
            () = given_up => Ran {
                outcome: ToolOutcome::Cancelled,
                parts: vec![Shown::Text("it did not end when it was told to, and was ended".to_owned())],
            },
        }
    }
}
