//! Reading a session, past and live, for as long as one may.

use std::sync::Arc;

use super::{CommandError, Sessions};
use crate::event::{Body, Event, Party};
use crate::ids::{EventNumber, SessionId};
use crate::log::Follower;
use crate::proto::Refusal;

/// A reader of a session: each event once, in order.
pub struct Following {
    sessions: Sessions,
    follower: Follower,
    session: SessionId,
    by: Party,
    /// The rights may have changed with the event that was returned last.
    is_doubtful: bool,
}

impl Following {
    pub(super) fn new(sessions: Sessions, follower: Follower, session: SessionId, by: Party) -> Self {
        Self { sessions, follower, session, by, is_doubtful: false }
    }

    /// The next event, once there is one. Cancel safe: an event is lost by no dropped future.
    ///
    /// # Errors
    /// [`Refusal::NoSuchSession`] when the party may not watch any more, or the session was deleted; else
    /// [`CommandError::Storage`].
    pub async fn next(&mut self) -> Result<Arc<Event>, CommandError> {
        if self.is_doubtful {
            if self.sessions.right(self.session, &self.by).await?.is_none() {
                return Err(Refusal::NoSuchSession.into());
            }
            self.is_doubtful = false;
        }
        let event = self.follower.next().await?;
        self.is_doubtful = matches!(event.body, Body::Shared { .. });
        Ok(event)
    }

    /// The number of the last event that was returned.
    pub fn at(&self) -> EventNumber {
        self.follower.at()
    }

    /// Whether all events that there are have been returned.
    pub fn is_live(&self) -> bool {
        self.follower.is_live()
    }
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Following")
            .field("session", &self.session)
            .field("at", &self.at())
            .finish_non_exhaustive()
    }
}
