//! A session goes from one node to another: what the old and the new host do about it.
//!
//! The old host's [`Body::HandedOver`] is the moment at which the session changes hands; nobody goes on with it before the new
//! host has the log up to it, which it gets together with its own [`Body::TakenOver`]. Until then the old host brings it, again and again. When the new host
//! says that it does not take it, and so has not, the old one hands it back to itself.

use mesh_identity::{NodeId, Role};
use tokio::io::AsyncBufRead;

use super::{CommandError, Request, Sessions, lock, now_ms};
use crate::event::{Body, Party};
use crate::ids::{AgentId, EventNumber, SessionId};
use crate::proto::{Command, Refusal};
use crate::store::{Append, AppendError, Bringing, ImportError, ReadError, ReadLimit, StorageError};

impl Sessions {
    /// Hands a session to another node: its turn rests, goes on there, and whoever asks here is told where it is. Returns when the
    /// log says so; the log is brought to the new host by [`deliver`](crate::remote::deliver).
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn hand_over(
        &self,
        session: SessionId,
        by: &Party,
        to: NodeId,
    ) -> Result<EventNumber, CommandError> {
        self.command(session, by, Command::HandOver { to }).await
    }

    /// A place to take the session over; none while it is being taken: who brings it over two links is not refused by one of
    /// them, and so takes it back, while it arrives over the other.
    pub(crate) fn taking(&self, session: SessionId) -> Option<Taking> {
        let is_free = lock(&self.inner.taking).insert(session);
        is_free.then(|| Taking { sessions: self.clone(), session })
    }

    /// Whether this node has taken the session over in this epoch, or had it later.
    pub(crate) async fn has_taken(&self, session: SessionId, epoch: u64) -> Result<bool, CommandError> {
        // One that came over a link which is gone may be at the disk still.
        self.inner.store.caught_up().await?;
        match self.inner.store.session(session).await {
            Ok(here) => {
                let waits = self.handed_over(session).await?.2 == Some(self.inner.me);
                Ok(here.host.is_some() && here.epoch >= epoch && !waits)
            }
            Err(ReadError::NoSuchSession(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes in a session that a member brings, and goes on with it.
    pub(crate) async fn take<R: AsyncBufRead + Unpin>(
        &self,
        session: SessionId,
        from: &Party,
        text: R,
    ) -> Result<(), CommandError> {
        let bringing = Bringing { session, from: from.clone(), to: self.inner.me };
        let is_wanted = |agent: &AgentId| self.inner.agent(agent).is_some_and(|agent| agent.is_open_to(from));
        let taken = self.inner.store.import_handed_over(text, &bringing, &is_wanted, now_ms()).await;
        match taken {
            Ok(imported) if imported.added > 0 => self.go_on_with(session).await,
            // It is here already, and at work.
            Ok(_) => Ok(()),
            Err(ImportError::Storage(error)) => Err(error.into()),
            // It broke off, and comes again.
            Err(ImportError::Read(_)) => Err(CommandError::Busy),
            Err(error) => Err(CommandError::NotTaken { why: error.to_string() }),
        }
    }

    /// The node that a session was handed to; none when it is this one's.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn host_of(&self, session: SessionId) -> Result<Option<NodeId>, CommandError> {
        Ok(self.elsewhere(self.inner.store.session(session).await?.host))
    }

    /// Waits until a session that was handed over is at its new host, and returns which; none when this node has it, perhaps
    /// because the other one refused it. Cancel safe.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn settled(&self, session: SessionId) -> Result<Option<NodeId>, CommandError> {
        loop {
            let delivered = self.inner.delivered.notified();
            tokio::pin!(delivered);
            delivered.as_mut().enable();
            let host = self.host_of(session).await?;
            if host.is_none() || self.is_delivered(session).await? {
                return Ok(host);
            }
            delivered.await;
        }
    }

    /// Whether the new host of a session has its log.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn is_delivered(&self, session: SessionId) -> Result<bool, CommandError> {
        Ok(!self.undelivered().await?.iter().any(|(waiting, _)| *waiting == session))
    }

    /// The new host has the log, at least up to this event.
    pub(crate) async fn delivered(&self, session: SessionId, last: EventNumber) -> Result<(), StorageError> {
        self.inner.store.delivered(session, last).await?;
        self.inner.delivered.notify_waiters();
        Ok(())
    }

    /// A host that is not this node.
    pub(crate) fn elsewhere(&self, host: Option<NodeId>) -> Option<NodeId> {
        host.filter(|host| *host != self.inner.me)
    }

    /// Whether the party may bring sessions at all.
    pub(crate) fn may_bring(&self, from: &Party) -> bool {
        from.role == Some(Role::Member)
    }

    /// Goes on with a session that its new host has refused to take.
    pub(crate) async fn take_back(&self, session: SessionId) -> Result<(), CommandError> {
        let me = self.inner.me;
        let (last, epoch, host) = self.handed_over(session).await?;
        if host.is_none_or(|host| host == me) {
            self.inner.delivered.notify_waiters();
            return Ok(());
        }
        let again = Body::HandedOver { epoch: epoch.saturating_add(1), to: me };
        let bodies = vec![again, Body::TakenOver { from: Party::local(me), signature: None }];
        let append = Append { session, epoch, after: Some(last), at_ms: now_ms(), bodies };
        let appended = self.inner.store.append(append).await;
        self.inner.delivered.notify_waiters();
        match appended {
            // Else somebody has done it at the same moment.
            Ok(_) | Err(AppendError::Conflict { .. } | AppendError::HandedOver { .. }) => {
                self.go_on_with(session).await
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The last event of a session, its epoch, and whom that event hands it to, if it does.
    pub(crate) async fn handed_over(
        &self,
        session: SessionId,
    ) -> Result<(EventNumber, u64, Option<NodeId>), CommandError> {
        let store = &self.inner.store;
        let last = store.last(session).await?;
        let before = EventNumber(last.0.saturating_sub(1));
        let limit = ReadLimit { events: 1, ..ReadLimit::default() };
        Ok(match store.read(session, before, limit).await?.pop().map(|event| event.body) {
            Some(Body::HandedOver { epoch, to }) => (last, epoch, Some(to)),
            _ => (last, store.session(session).await?.epoch, None),
        })
    }

    /// Has a session go on whose log was written by something else than its task.
    async fn go_on_with(&self, session: SessionId) -> Result<(), CommandError> {
        // Whoever has it in memory has it as it was before.
        let alive = lock(&self.inner.live).sessions.get(&session).cloned();
        if let Some(requests) = alive {
            let _ = requests.send(Request::Reload).await;
        }
        match self.command(session, &Party::local(self.inner.me), Command::Watch).await {
            Ok(_) | Err(CommandError::Closed | CommandError::Busy) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sessions that this node has handed over and still has to bring to their new hosts.
    pub(crate) async fn undelivered(&self) -> Result<Vec<(SessionId, NodeId)>, StorageError> {
        self.inner.store.undelivered(self.inner.me).await
    }

    /// Resolves when a session was handed over after the last call.
    pub(crate) async fn handing_over(&self) {
        self.inner.handing_over.notified().await;
    }
}

/// A session that is being taken over.
pub(crate) struct Taking {
    sessions: Sessions,
    session: SessionId,
}

impl Drop for Taking {
    fn drop(&mut self) {
        lock(&self.sessions.inner.taking).remove(&self.session);
    }
}

/// What a command gets that comes to the old host.
pub(crate) fn moved_to(error: &CommandError) -> Option<NodeId> {
    match error {
        CommandError::Refused(Refusal::Moved { to }) => Some(*to),
        _ => None,
    }
}
