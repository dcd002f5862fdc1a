//! Waiting for a turn on behalf of a caller that may lose patience.

use std::time::Duration;

use mesh_control::{CancelTurn, Client, EndReason, Followed, Happened};
use rmcp::RoleServer;
use rmcp::model::{ProgressNotificationParam, ProgressToken};
use rmcp::service::RequestContext;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use crate::failure::Failure;
use crate::session::seen::{Calls, TurnSeen};
use crate::session::turn::{address, ended};

/// The turn of a prompt.
pub(super) struct Waiting<'a> {
    pub(super) session: &'a str,
    pub(super) node: &'a str,
    pub(super) prompt: &'a str,
    pub(super) after: u64,
}

#[derive(Serialize)]
pub(super) struct Waited {
    #[serde(flatten)]
    seen: TurnSeen,
    /// The last event that was seen.
    last_event: u64,
    /// What is left to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

/// Waits until the turn has ended or the time is over. A caller that takes its request back ends the turn too.
pub(super) async fn wait(
    client: &Client,
    waiting: Waiting<'_>,
    limit: Duration,
    context: &RequestContext<RoleServer>,
) -> Result<Waited, Failure> {
    let mut seen = TurnSeen::of(waiting.session, waiting.node, waiting.prompt);
    let mut session = address(waiting.session, waiting.node);
    let mut follow = client.follow_session(&session, waiting.after);
    let mut calls = Calls::default();
    let token = context.meta.get_progress_token();
    let end = Instant::now() + limit;
    let note = loop {
        let followed = tokio::select! {
            followed = follow.next() => followed?,
            () = sleep_until(end) => break Some("it is still at work; read_session shows how it goes on".to_owned()),
            () = context.ct.cancelled() => {
                // As far as the node can still be told: nobody waits for the answer.
                let _ = client.cancel(&CancelTurn { session, turn: seen.turn }).await;
                return Err(Failure::new("cancelled", "the call was cancelled, and the turn with it"));
            }
        };
        match followed {
            Followed::Event(event) => {
                let happened = event.happened();
                if !seen.take(&happened) {
                    continue;
                }
                calls.take(&happened);
                if let Some(token) = &token {
                    progress(context, token.clone(), event.number, &happened, &calls).await;
                }
                if seen.outcome.is_some() {
                    break None;
                }
            }
            Followed::Lost(_) => {}
            Followed::End(end) if end.end == EndReason::Moved && end.node.is_some() => {
                seen.node = end.node.unwrap_or_default();
                session = address(&seen.session, &seen.node);
                follow = client.follow_session(&session, follow.at());
            }
            Followed::End(end) => return Err(ended(end.end, end.why.as_deref())),
        }
    };
    let asked = calls.asked().iter().map(|asked| calls.line(&asked.call)).collect::<Vec<_>>();
    let note = match note {
        Some(_) if !asked.is_empty() => Some(format!(
            "it waits until somebody allows {}, with `qmt-cli session allow {}`",
            asked.join(", "),
            seen.session
        )),
        note => note,
    };
    Ok(Waited { seen, last_event: follow.at(), note })
}

/// Says what the agent does, to callers that show it.
async fn progress(
    context: &RequestContext<RoleServer>,
    token: ProgressToken,
    number: u64,
    happened: &Happened,
    calls: &Calls,
) {
    let message = match happened {
        Happened::ToolStarted { call, .. } => calls.line(call),
        Happened::ToolAsked { call, .. } => format!("waits to be allowed: {}", calls.line(call)),
        Happened::ModelFailed { why, .. } => format!("the model failed: {why}"),
        Happened::ModelCalled { .. } => "thinks".to_owned(),
        _ => return,
    };
    // Numbers of events grow, as steps of progress must; fewer than 2^52 are exact.
    let said = ProgressNotificationParam::new(token, number as f64).with_message(message);
    let _ = context.peer.notify_progress(said).await; // a caller that is gone ends the server by itself
}
