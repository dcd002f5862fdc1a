//! A session as text for a model.

use mesh_control::{Client, EndReason, EventsQuery, Happened, SessionItem, SessionView};

use crate::failure::Failure;
use crate::session::seen::Calls;
use crate::session::teller::{said, whole};
use crate::session::turn::ended;

/// Of one thing said, in bytes: what a tool printed is not to fill it all.
const EACH_BYTES_MAX: usize = 8 * 1024;

/// What is to be read.
pub(super) struct Reading {
    /// By its id.
    pub(super) session: String,
    pub(super) after: u64,
    pub(super) bytes_max: usize,
}

/// What was said and done after an event, as lines that begin with the number of theirs.
pub(super) async fn read(client: &Client, view: &SessionView, reading: Reading) -> Result<String, Failure> {
    let query = EventsQuery { session: reading.session.clone(), after: reading.after, past: true };
    let mut events = client.session_events(&query).await?;
    let mut text = format!("session {} with {}, {}\n", view.id, view.agent, view.state);
    let mut calls = Calls::default();
    let mut last = reading.after;
    while let Some(item) = events.next().await? {
        let event = match item {
            SessionItem::Event(event) => event,
            SessionItem::End(end) if matches!(end.end, EndReason::Past | EndReason::Archived) => {
                text.push_str(&format!("(that is all; the last event is {last})\n"));
                return Ok(text);
            }
            SessionItem::End(end) => return Err(ended(end.end, end.why.as_deref())),
        };
        let happened = event.happened();
        calls.take(&happened);
        if let Some(line) = line(client, &reading.session, &happened, &calls).await {
            let cut = &line[..line.floor_char_boundary(EACH_BYTES_MAX)];
            let more = if cut.len() < line.len() { " […]" } else { "" };
            text.push_str(&format!("{} {cut}{more}\n", event.number));
        }
        last = event.number;
        if text.len() >= reading.bytes_max {
            text.push_str(&format!("(there is more; read on after {last})\n"));
            return Ok(text);
        }
    }
    Err(Failure::new("broken", "the events broke off before their end"))
}

async fn line(client: &Client, session: &str, happened: &Happened, calls: &Calls) -> Option<String> {
    Some(match happened {
        Happened::Prompted { parts, .. } => format!("USER: {}", said(client, session, parts).await),
        Happened::Steered { parts, .. } => format!("USER, meanwhile: {}", said(client, session, parts).await),
        Happened::Answered { text, .. } => match whole(client, session, text).await {
            text if text.is_empty() => return None,
            text => format!("AGENT: {text}"),
        },
        Happened::ModelFailed { why, .. } => format!("MODEL FAILED: {why}"),
        Happened::ToolAsked { call, why, .. } => format!("WAITS TO BE ALLOWED: {} ({why})", calls.line(call)),
        Happened::ToolStarted { call, .. } => format!("TOOL: {}", calls.line(call)),
        Happened::ToolEnded { call, result, .. } => {
            let (name, _) = calls.named(call);
            format!("TOOL {name} {}: {}", result.outcome, said(client, session, &result.parts).await)
        }
        Happened::TurnEnded { outcome, .. } => {
            let why = outcome.why.as_deref().or(outcome.limit.as_deref());
            format!("TURN {}{}", outcome.word, why.map(|why| format!(": {why}")).unwrap_or_default())
        }
        Happened::Suspended { why } => format!("SUSPENDED: {why}"),
        Happened::Resumed => "RESUMED".to_owned(),
        Happened::Archived => "ARCHIVED".to_owned(),
        _ => return None,
    })
}
