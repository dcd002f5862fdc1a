//! Sessions on their way from one node to another.

use mesh_identity::NodeId;
use sqlx::Row;
use tokio::io::{AsyncBufRead, AsyncReadExt};

use super::Store;
use super::error::{ReadError, StorageError};
use super::read::session_id;
use super::transfer::{ImportError, Imported, Says};
use crate::event::{Body, Party};
use crate::ids::{AgentId, EventNumber, SessionId};

/// The most that one hand-over brings.
const BROUGHT_BYTES_MAX: u64 = 1 << 30;

/// A session that a node brings to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bringing {
    /// The session.
    pub session: SessionId,
    /// Who brings it, as the link has proved it.
    pub from: Party,
    /// To whom.
    pub to: NodeId,
}

impl Store {
    /// Takes in a session that was handed over to a node by the one that brings it, when its agent is wanted there, and writes
    /// behind it that it is taken over, all at once.
    ///
    /// # Errors
    /// [`ImportError`], also for a session that the node hosts already; nothing has changed then.
    pub async fn import_handed_over<R: AsyncBufRead + Unpin>(
        &self,
        from: R,
        bringing: &Bringing,
        is_wanted: &(dyn Fn(&AgentId) -> bool + Send + Sync),
        now_ms: u64,
    ) -> Result<Imported, ImportError> {
        let host_here = match self.session(bringing.session).await {
            Ok(here) => Some(here.host.unwrap_or(bringing.to)),
            Err(ReadError::Storage(error)) => return Err(error.into()),
            Err(_) => None,
        };
        let check = |says: &Says| {
            let wrong = |why: &str| Err(why.to_owned());
            let taken = Body::TakenOver { from: bringing.from.clone() };
            if says.session != bringing.session {
                return wrong("it is another session");
            }
            if !says.is_handed_over || says.host.is_none_or(|(_, host)| host != bringing.to) {
                return wrong("it was not handed over to this node");
            }
            if says.host_before.is_some_and(|host| host != bringing.from.node) {
                return wrong("its host did not bring it");
            }
            if says.last > says.here && host_here == Some(bringing.to) {
                return wrong("this node is its host already");
            }
            if says.is_forged {
                return wrong("the delegations that led to it are not signed by their nodes");
            }
            match &says.agent {
                Some(agent) if is_wanted(agent) => Ok(Some(taken)),
                _ => wrong("its agent is not here, or not for who brings it"),
            }
        };
        self.import_if(&mut from.take(BROUGHT_BYTES_MAX), now_ms, &check).await
    }

    /// Sessions that were handed over by the node, and have not been found to be there yet: to which node.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn undelivered(&self, by: NodeId) -> Result<Vec<(SessionId, NodeId)>, StorageError> {
        let sql = "SELECT session, host FROM sessions WHERE undelivered = 1 AND hidden = 0 AND host IS NOT ? ORDER BY row";
        let rows = sqlx::query(sql).bind(by.as_bytes().to_vec()).fetch_all(&self.inner.read).await?;
        let found = |row: &sqlx::sqlite::SqliteRow| {
            let session = session_id(row.try_get(0)?)?;
            let host: Option<[u8; 32]> = row.try_get::<Vec<u8>, _>(1)?.try_into().ok();
            let host = host.and_then(|host| NodeId::from_bytes(&host).ok());
            let host = host.ok_or_else(|| StorageError::damaged(format!("the host of session {session}")))?;
            Ok((session, host))
        };
        rows.iter().map(found).collect()
    }

    /// The new host has the log, at least up to this event.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn delivered(&self, session: SessionId, last: EventNumber) -> Result<(), StorageError> {
        self.alone(move |writer| {
            Box::pin(async move {
                // It may have come back in the meantime.
                let Some(head) = writer.head(session).await?.filter(|head| head.last == last.0) else {
                    return Ok(());
                };
                let update = sqlx::query("UPDATE sessions SET undelivered = 0 WHERE row = ?").bind(head.row);
                update.execute(&mut writer.connection).await?;
                Ok(())
            })
        })
        .await
    }
}
