//! Sessions on their way from one node to another.

use mesh_identity::{Domain, NodeId, NodeKey, ScopeId, Signature};
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

const DOMAIN: Domain = Domain::new("qmt-mesh/session-log/v1");

/// What the node that hands a session over says of its log, beside the log's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) session: SessionId,
    pub(crate) last: EventNumber,
    /// From then on.
    pub(crate) epoch: u64,
    pub(crate) to: NodeId,
}

impl Summary {
    pub(crate) fn sign(&self, key: &NodeKey, scope: &ScopeId, log: &blake3::Hash) -> Signature {
        key.sign(DOMAIN, scope, &self.statement(log))
    }

    pub(crate) fn is_signed_by(
        &self,
        node: &NodeId,
        scope: &ScopeId,
        log: &blake3::Hash,
        by: &Signature,
    ) -> bool {
        node.verify(DOMAIN, scope, &self.statement(log), by)
    }

    /// Of fields that all have their length.
    fn statement(&self, log: &blake3::Hash) -> Vec<u8> {
        let (last, epoch) = (self.last.0.to_be_bytes(), self.epoch.to_be_bytes());
        [self.session.as_bytes().as_slice(), &last, &epoch, self.to.as_bytes(), log.as_bytes()].concat()
    }
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
            let summary = Summary {
                session: says.session,
                last: says.last,
                epoch: says.host.map_or(0, |(epoch, _)| epoch),
                to: bringing.to,
            };
            let signature = says.signed.as_ref().filter(|(digest, signature)| {
                let scope = bringing.from.scope.as_ref();
                scope.is_some_and(|scope| summary.is_signed_by(&bringing.from.node, scope, digest, signature))
            });
            let Some((_, signature)) = signature else {
                return wrong("its log is not signed by the node that brings it");
            };
            let taken = Body::TakenOver { from: bringing.from.clone(), signature: Some(*signature) };
            match &says.agent {
                Some(agent) if is_wanted(agent) => Ok(Some(taken)),
                _ => wrong("its agent is not here, or not for who brings it"),
            }
        };
        self.import_if(&mut from.take(BROUGHT_BYTES_MAX), now_ms, &check).await
    }

    /// Resolves when all that was asked to be written before is, or is not.
    ///
    /// # Errors
    /// [`StorageError`].
    pub(crate) async fn caught_up(&self) -> Result<(), StorageError> {
        self.alone(|_| Box::pin(async { Ok(()) })).await
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
