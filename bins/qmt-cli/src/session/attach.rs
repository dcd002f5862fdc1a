//! Watching a session: all of its events, whoever caused them.

use mesh_control::{Client, EndReason, EventsQuery, Followed, Happened, SessionEvent, SessionItem};

use super::begun;
use super::teller::Teller;
use super::turn::{address, at_first, ended, interrupts};
use crate::failure::Failure;
use crate::screen::Screen;

pub(super) async fn attach(
    client: &Client,
    screen: &Screen,
    session: &str,
    after: u64,
    past: bool,
) -> Result<(), Failure> {
    let view = at_first(|text| screen.note(text), || client.session(session)).await?;
    screen.note(&begun(&view));
    let mut session = address(&view.id, &view.node);
    let mut teller = Teller::new(screen);
    if past {
        let shown = all_past(client, screen, &mut teller, EventsQuery { session, after, past }).await;
        teller.end()?;
        return shown;
    }
    let mut interrupts = interrupts()?;
    let mut follow = client.follow_session(&session, after);
    loop {
        let followed = tokio::select! {
            followed = follow.next() => followed?,
            _ = interrupts.recv() => {
                teller.end()?;
                return Err(Failure::shown().with_exit(crate::failure::INTERRUPTED));
            }
        };
        match followed {
            Followed::Event(event) => tell(client, screen, &mut teller, &session, &event).await?,
            Followed::Lost(why) => teller.note(&format!("{why}; waiting for the session"))?,
            Followed::End(end) if end.end == EndReason::Moved && end.node.is_some() => {
                session = address(&view.id, &end.node.unwrap_or_default());
                follow = client.follow_session(&session, follow.at());
            }
            Followed::End(end) => {
                teller.end()?;
                return if end.end == EndReason::Archived {
                    Ok(())
                } else {
                    Err(ended(end.end, end.why.as_deref()))
                };
            }
        }
    }
}

async fn all_past(
    client: &Client,
    screen: &Screen,
    teller: &mut Teller<'_>,
    query: EventsQuery,
) -> Result<(), Failure> {
    let mut events = client.session_events(&query).await?;
    while let Some(item) = events.next().await? {
        match item {
            SessionItem::Event(event) => tell(client, screen, teller, &query.session, &event).await?,
            SessionItem::End(end) if matches!(end.end, EndReason::Past | EndReason::Archived) => {
                return Ok(());
            }
            SessionItem::End(end) => return Err(ended(end.end, end.why.as_deref())),
        }
    }
    Err(Failure::new("broken", "the events broke off before their end"))
}

/// One event: for people, or as a line of JSON.
async fn tell(
    client: &Client,
    screen: &Screen,
    teller: &mut Teller<'_>,
    session: &str,
    event: &SessionEvent,
) -> Result<(), Failure> {
    if !screen.is_json() {
        let happened = event.happened();
        teller.tell(client, session, &happened).await?;
        // Where a fork may begin: whoever wants one needs the number.
        let may_fork_here = matches!(happened, Happened::Prompted { .. } | Happened::TurnEnded { .. });
        return if may_fork_here { teller.note(&format!("(event {})", event.number)) } else { Ok(()) };
    }
    let line = serde_json::to_string(event)
        .map_err(|error| Failure::new("internal", format!("the event is no JSON: {error}")))?;
    screen.print(&format!("{line}\n"))
}
