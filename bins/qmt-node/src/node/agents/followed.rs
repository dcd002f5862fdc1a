//! Reading a session for the node's user, wherever it is.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mesh_control::{ApiError, EndReason, ErrorCode, ImportedSession, StreamEnd};
use mesh_identity::NodeId;
use mesh_sessions::event::{Body, Event};
use mesh_sessions::host::{CommandError, Following};
use mesh_sessions::ids::{EventNumber, SessionId};
use mesh_sessions::proto::Refusal;
use mesh_sessions::proto::wire::Code;
use mesh_sessions::remote::{RemoteError, RemoteFollowing, RemoteSession};
use mesh_sessions::store::{State as ListedState, StorageError, Store};
use tokio::io::{AsyncBufRead, AsyncWrite};
use tokio::time::Instant;

use super::super::Node;
use super::held::{Held, refused, refused_there};

/// Between two looks for a session that is on its way to this node.
const LOOK: Duration = Duration::from_millis(100);

/// A reader of a session: each event once, in order.
pub(crate) struct Followed {
    node: Node,
    session: SessionId,
    from: From,
    /// Another node may go on with it.
    is_leaving: bool,
    /// Since when it is on its way to this node.
    comes: Option<Instant>,
    /// The last that was read.
    at: EventNumber,
    /// The last that there was when the reading began.
    last: EventNumber,
    is_archived: bool,
}

/// A session, wherever it is.
pub(crate) enum Exported {
    Here(Store, SessionId),
    There(RemoteSession),
}

enum From {
    Here(Following),
    There(RemoteSession, RemoteFollowing),
}

impl Node {
    /// Reads a session from an event on.
    pub(crate) async fn follow_session(
        &self,
        session: &str,
        after: EventNumber,
    ) -> Result<Followed, ApiError> {
        let held = self.hold(session).await?;
        let session = held.id();
        let mut is_leaving = false;
        let (from, last, is_archived) = match held {
            Held::Here { sessions, by, id } => {
                let following = sessions.follow(id, &by, after).await.map_err(|error| refused(&error))?;
                let listed = sessions.store().session(id).await;
                let listed = listed.map_err(|error| refused(&error.into()))?;
                is_leaving = listed.host.is_some_and(|host| host != self.id());
                (From::Here(following), listed.last, listed.state == ListedState::Archived)
            }
            Held::There(session) => {
                let facts = session.show().await.map_err(|error| refused_there(&error))?;
                if after > facts.last {
                    let what = "the session has no such event";
                    return Err(ApiError::new(ErrorCode::UnknownEvent, what));
                }
                let is_archived = facts.state == ListedState::Archived.word();
                let following = session.follow(after);
                (From::There(session, following), facts.last, is_archived)
            }
        };
        let node = self.clone();
        Ok(Followed { node, session, from, is_leaving, comes: None, at: after, last, is_archived })
    }

    /// A session that is to be exported.
    pub(crate) async fn exported(&self, session: &str) -> Result<Exported, ApiError> {
        Ok(match self.hold(session).await? {
            Held::Here { sessions, id, .. } => Exported::Here(sessions.store().clone(), id),
            Held::There(session) => {
                session.show().await.map_err(|error| refused_there(&error))?;
                Exported::There(session)
            }
        })
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

impl Exported {
    /// Writes its log; one that ends early lacks its last line.
    pub(crate) async fn write<W: AsyncWrite + Unpin>(self, to: &mut W) -> anyhow::Result<()> {
        match self {
            Self::Here(store, id) => drop(store.export(id, to).await?),
            Self::There(session) => session.export(to).await?,
        }
        Ok(())
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
            event = self.read() => event?,
        };
        self.at = event.number;
        if let Body::HandedOver { to, .. } = &event.body {
            self.is_leaving = *to != self.node.id();
        }
        if self.at > self.last {
            self.is_archived = matches!(event.body, Body::Archived { .. });
        }
        Ok(event)
    }

    /// The next event, wherever the session is by now. Cancel safe.
    async fn read(&mut self) -> Result<Arc<Event>, StreamEnd> {
        loop {
            let moved_to = match &mut self.from {
                From::Here(following) => {
                    let sessions =
                        self.node.sessions().await.map_err(|_| StreamEnd::new(EndReason::Stopping))?;
                    tokio::select! {
                        biased;
                        event = following.next() => return event.map_err(|error| ended_here(&error)),
                        settled = sessions.settled(self.session), if self.is_leaving => {
                            settled.map_err(|error| ended_here(&error))?
                        }
                    }
                }
                From::There(_, following) => match following.next().await {
                    Ok(event) => return Ok(Arc::new(event)),
                    Err(RemoteError::Moved { to }) => Some(to),
                    Err(error) => return Err(ended_there(&error)),
                },
            };
            match moved_to {
                // It came back.
                None => self.is_leaving = false,
                Some(to) if to == self.node.id() => self.from = self.arrived().await?,
                Some(to) => match self.node.host_of(&to.to_string()) {
                    Ok(Some(host)) => {
                        let session = self.node.keep_remote(host.session(self.session));
                        let following = session.follow(self.at);
                        self.from = From::There(session, following);
                    }
                    _ => return Err(moved(to)),
                },
            }
        }
    }

    /// A session that was another node's is to be here soon. Cancel safe.
    async fn arrived(&mut self) -> Result<From, StreamEnd> {
        let until = *self.comes.get_or_insert_with(Instant::now) + self.node.config().mesh.stream_grace;
        let sessions = self.node.sessions().await.map_err(|_| StreamEnd::new(EndReason::Stopping))?;
        loop {
            if self.node.has_taken(&sessions, self.session).await {
                let following = sessions.follow(self.session, &self.node.owner(), self.at).await;
                (self.comes, self.is_leaving) = (None, false);
                return following.map(From::Here).map_err(|error| ended_here(&error));
            }
            if let From::There(session, _) = &self.from
                && let Ok(facts) = session.show().await
                && facts.moved_to.is_none()
            {
                // This node did not take it.
                self.comes = None;
                return Ok(From::There(session.clone(), session.follow(self.at)));
            }
            if Instant::now() >= until {
                return Err(moved(self.node.id()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn moved(to: NodeId) -> StreamEnd {
    StreamEnd { node: Some(to.to_string()), ..StreamEnd::new(EndReason::Moved) }
}

fn ended_here(error: &CommandError) -> StreamEnd {
    match error {
        CommandError::Refused(Refusal::NoSuchSession) => StreamEnd::new(EndReason::Gone),
        CommandError::Refused(Refusal::Moved { to }) => moved(*to),
        CommandError::Closed | CommandError::Storage(StorageError::Closed) => {
            StreamEnd::new(EndReason::Stopping)
        }
        error => StreamEnd { why: Some(error.to_string()), ..StreamEnd::new(EndReason::Failed) },
    }
}

fn ended_there(error: &RemoteError) -> StreamEnd {
    match error {
        RemoteError::Refused { code: Code::NoSuchSession, .. } => StreamEnd::new(EndReason::Gone),
        RemoteError::Moved { to } => moved(*to),
        error => StreamEnd { why: Some(error.to_string()), ..StreamEnd::new(EndReason::Failed) },
    }
}
