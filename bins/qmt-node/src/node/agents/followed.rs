//! Reading a session for the node's user, wherever it is.

use std::pin::Pin;
use std::sync::Arc;

use mesh_control::{ApiError, EndReason, ErrorCode, ImportedSession, StreamEnd};
use mesh_sessions::event::{Body, Event};
use mesh_sessions::host::{CommandError, Following};
use mesh_sessions::ids::{EventNumber, SessionId};
use mesh_sessions::proto::Refusal;
use mesh_sessions::proto::wire::Code;
use mesh_sessions::remote::{RemoteError, RemoteFollowing};
use mesh_sessions::store::{State as ListedState, StorageError, Store};
use tokio::io::AsyncBufRead;

use super::super::Node;
use super::held::{Held, refused, refused_there};

/// A reader of a session: each event once, in order.
pub(crate) struct Followed {
    node: Node,
    from: From,
    /// The last that was read.
    at: EventNumber,
    /// The last that there was when the reading began.
    last: EventNumber,
    is_archived: bool,
}

enum From {
    Here(Following),
    There(RemoteFollowing),
}

impl Node {
    /// Reads a session from an event on.
    pub(crate) async fn follow_session(
        &self,
        session: &str,
        after: EventNumber,
    ) -> Result<Followed, ApiError> {
        let (from, last, is_archived) = match self.hold(session).await? {
            Held::Here { sessions, by, id } => {
                let following = sessions.follow(id, &by, after).await.map_err(|error| refused(&error))?;
                let listed = sessions.store().session(id).await;
                let listed = listed.map_err(|error| refused(&error.into()))?;
                (From::Here(following), listed.last, listed.state == ListedState::Archived)
            }
            Held::There(session) => {
                let facts = session.show().await.map_err(|error| refused_there(&error))?;
                if after > facts.last {
                    let what = "the session has no such event";
                    return Err(ApiError::new(ErrorCode::UnknownEvent, what));
                }
                let is_archived = facts.state == ListedState::Archived.word();
                (From::There(session.follow(after)), facts.last, is_archived)
            }
        };
        Ok(Followed { node: self.clone(), from, at: after, last, is_archived })
    }

    /// The store and the id of a session that is to be exported.
    pub(crate) async fn exported(&self, session: &str) -> Result<(Store, SessionId), ApiError> {
        match self.hold(session).await? {
            Held::Here { sessions, id, .. } => Ok((sessions.store().clone(), id)),
            Held::There(_) => {
                Err(ApiError::new(ErrorCode::NotImplemented, "a session is exported at its own node"))
            }
        }
    }

    /// Takes in a session that was exported.
    pub(crate) async fn import_session(
        &self,
        mut lines: Pin<Box<dyn AsyncBufRead + Send>>,
    ) -> Result<ImportedSession, ApiError> {
        use mesh_sessions::store::ImportError;
        let store = self.sessions().await?.store().clone();
        let now_ms = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        let now_ms = u64::try_from(now_ms).unwrap_or(u64::MAX);
        // Reading and checking a long text is work for a thread of its own.
        let runtime = tokio::runtime::Handle::current();
        let imported =
            tokio::task::spawn_blocking(move || runtime.block_on(store.import(&mut lines, now_ms))).await;
        let imported = imported.map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
        let imported = imported.map_err(|error| {
            let code = match &error {
                ImportError::Storage(_) => ErrorCode::Storage,
                ImportError::InTheWay(_) => ErrorCode::Conflict,
                _ => ErrorCode::BadRequest,
            };
            ApiError::new(code, super::super::chain(&error))
        })?;
        Ok(ImportedSession {
            session: imported.session.to_string(),
            last: imported.last.0,
            added: imported.added,
        })
    }
}

impl Followed {
    /// Why nothing more comes, or is wanted, when that is known before anything else is read.
    pub(crate) fn end_at_once(&self, past: bool) -> Option<StreamEnd> {
        if self.is_archived && self.at >= self.last {
            return Some(StreamEnd::new(EndReason::Archived));
        }
        (past && self.at >= self.last).then(|| StreamEnd::new(EndReason::Past))
    }

    /// The next event, or why there is none. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Arc<Event>, StreamEnd> {
        let stopping = self.node.stopping();
        let event = tokio::select! {
            biased;
            () = stopping.cancelled() => return Err(StreamEnd::new(EndReason::Stopping)),
            event = self.from.next() => event?,
        };
        self.at = event.number;
        if self.at > self.last {
            self.is_archived = matches!(event.body, Body::Archived { .. });
        }
        Ok(event)
    }
}

impl From {
    async fn next(&mut self) -> Result<Arc<Event>, StreamEnd> {
        match self {
            Self::Here(following) => following.next().await.map_err(|error| ended_here(&error)),
            Self::There(following) => {
                following.next().await.map(Arc::new).map_err(|error| ended_there(&error))
            }
        }
    }
}

fn ended_here(error: &CommandError) -> StreamEnd {
    match error {
        CommandError::Refused(Refusal::NoSuchSession) => StreamEnd::new(EndReason::Gone),
        CommandError::Refused(Refusal::Moved { to }) => {
            StreamEnd { node: Some(to.to_string()), ..StreamEnd::new(EndReason::Moved) }
        }
        CommandError::Closed | CommandError::Storage(StorageError::Closed) => {
            StreamEnd::new(EndReason::Stopping)
        }
        error => StreamEnd { why: Some(error.to_string()), ..StreamEnd::new(EndReason::Failed) },
    }
}

fn ended_there(error: &RemoteError) -> StreamEnd {
    match error {
        RemoteError::Refused { code: Code::NoSuchSession, .. } => StreamEnd::new(EndReason::Gone),
        RemoteError::Refused { code: Code::Moved, .. } => StreamEnd::new(EndReason::Moved),
        error => StreamEnd { why: Some(error.to_string()), ..StreamEnd::new(EndReason::Failed) },
    }
}
