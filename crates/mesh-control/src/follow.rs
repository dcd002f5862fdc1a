//! Reading a session for as long as it lasts, over as many connections as it takes.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::client::{Client, ClientError};
use crate::paths::Endpoint;
use crate::session_client::SessionEvents;
use crate::session_events::{EndReason, SessionEvent, SessionItem, StreamEnd};
use crate::types::session::EventsQuery;

/// How long a reader tries to get back to a session that it lost, before it gives up: the same as nodes among themselves.
pub const GRACE: Duration = Duration::from_secs(120);

/// Between two attempts, doubled from one to the other.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A reader of a session that survives restarts of the node: each event once, in order, without gaps.
#[derive(Debug)]
pub struct SessionFollow {
    client: Client,
    query: EventsQuery,
    grace: Duration,
    stream: Option<Connected>,
    lost: Option<Lost>,
}

#[derive(Debug)]
struct Connected {
    since: Instant,
    events: SessionEvents,
}

#[derive(Debug)]
struct Lost {
    since: Instant,
    wait: Duration,
}

/// What a reader brings.
#[derive(Debug, Clone, PartialEq)]
pub enum Followed {
    /// An event.
    Event(SessionEvent),
    /// The connection is lost, for this reason, and is tried again; said once for each loss.
    Lost(String),
    /// The end: nothing follows.
    End(StreamEnd),
}

impl Client {
    /// Follows a session from the event after `after`. Address it by its id, since names can be given to others meanwhile.
    pub fn follow_session(&self, session: &str, after: u64) -> SessionFollow {
        let query = EventsQuery { session: session.to_owned(), after, past: false };
        SessionFollow { client: self.clone(), query, grace: GRACE, stream: None, lost: None }
    }
}

impl SessionFollow {
    /// The same reader with another patience than [`GRACE`].
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// The number of the last event that was returned.
    pub fn at(&self) -> u64 {
        self.query.after
    }

    /// What comes next. Cancel safe: no event is lost.
    ///
    /// # Errors
    /// [`ClientError`] when the node refuses, or could not be reached again within the grace period; then the reader is of
    /// no more use.
    pub async fn next(&mut self) -> Result<Followed, ClientError> {
        loop {
            let Some(stream) = &mut self.stream else {
                if let Some(lost) = &mut self.lost {
                    sleep(lost.wait).await;
                    lost.wait = (lost.wait * 2).min(RETRY.1);
                }
                match self.client.session_events(&self.query).await {
                    Ok(events) => self.stream = Some(Connected { since: Instant::now(), events }),
                    Err(error) => {
                        if let Some(lost) = self.lose(error)? {
                            return Ok(lost);
                        }
                    }
                }
                continue;
            };
            let lost = match stream.events.next().await {
                Ok(Some(SessionItem::Event(event))) if event.number <= self.query.after => continue,
                Ok(Some(SessionItem::Event(event))) if event.number == self.query.after + 1 => {
                    self.query.after = event.number;
                    self.lost = None;
                    return Ok(Followed::Event(event));
                }
                Ok(Some(SessionItem::Event(event))) => {
                    Reason::Text(format!("event {} came after {}", event.number, self.query.after))
                }
                Ok(Some(SessionItem::End(end))) if end.end != EndReason::Stopping => {
                    return Ok(Followed::End(end));
                }
                Ok(Some(SessionItem::End(_))) => Reason::Text("the node stops".to_owned()),
                Ok(None) => Reason::Text("the connection ended".to_owned()),
                Err(error) => Reason::Error(error),
            };
            // A connection that held is a new loss; one that ends at once, again and again, is still the old one.
            if self.stream.take().is_some_and(|stream| stream.since.elapsed() > RETRY.1) {
                self.lost = None;
            }
            let said = match lost {
                Reason::Text(_) if !self.is_patient() => return Err(self.deadline()),
                Reason::Text(why) => self.note(why),
                Reason::Error(error) => self.lose(error)?,
            };
            if let Some(said) = said {
                return Ok(said);
            }
        }
    }

    /// Takes an error that may pass for a loss; any other is the reader's end, and so is a loss that lasts too long.
    fn lose(&mut self, error: ClientError) -> Result<Option<Followed>, ClientError> {
        if self.is_patient() && error.may_pass() { Ok(self.note(error.to_string())) } else { Err(error) }
    }

    fn is_patient(&self) -> bool {
        self.lost.as_ref().is_none_or(|lost| lost.since.elapsed() < self.grace)
    }

    fn deadline(&self) -> ClientError {
        ClientError::Deadline { what: Endpoint::SessionEvents.path(), after: self.grace }
    }

    fn note(&mut self, why: String) -> Option<Followed> {
        if self.lost.is_some() {
            return None;
        }
        self.lost = Some(Lost { since: Instant::now(), wait: RETRY.0 });
        Some(Followed::Lost(why))
    }
}

enum Reason {
    Text(String),
    Error(ClientError),
}
