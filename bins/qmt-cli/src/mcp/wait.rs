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

/// Waits, from an event on, until the turn has ended, a tool waits to be allowed, or the time is over. A caller that takes its
/// request back ends the turn too.
pub(super) async fn wait(
    client: &Client,
    mut seen: TurnSeen,
    after: u64,
    limit: Duration,
    context: &RequestContext<RoleServer>,
) -> Result<Waited, Failure> {
    let mut session = address(&seen.session, &seen.node);
    let mut follow = client.follow_session(&session, after);
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
                if let Some(token) = &token {
                    progress(context, token.clone(), event.number, &happened, seen.calls()).await;
                }
                if seen.outcome.is_some() {
                    break None;
                }
                if matches!(happened, Happened::ToolAsked { .. }) {
                    break Some(waits(&seen));
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
    Ok(Waited { seen, last_event: follow.at(), note })
}

/// What the turn waits for, and who can do something about it.
fn waits(seen: &TurnSeen) -> String {
    let calls = seen.calls();
    let asked = calls.asked().iter().map(|asked| calls.line(&asked.call)).collect::<Vec<_>>();
    format!(
        "it waits until somebody allows {}: decide_tool, or a person with `qmt-cli session allow {}`; read_session shows how it goes on",
        asked.join(", "),
        seen.session
    )
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
