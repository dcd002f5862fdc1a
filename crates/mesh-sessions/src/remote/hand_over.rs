//! Bringing sessions that were handed over to their new hosts.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use mesh_identity::{NodeId, NodeKey};
use mesh_transport::{SendStream, write_frame};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::RemoteAgents;
use super::call::{RemoteError, RemoteHost, chain};
use super::frame::{Broken, timed, write};
use crate::host::{Sessions, WeakSessions};
use crate::ids::SessionId;
use crate::proto::wire::{Ask, FRAME_BYTES_MAX, PIECE, PIECE_BYTES_MAX, Tell};
use crate::store::{Sign, Store, Summary};

/// Sessions that are brought at a time.
const BROUGHT_MAX: usize = 4;
/// Before what could not be brought is tried again; doubled each time, up to the other.
const AGAIN_FIRST: Duration = Duration::from_millis(500);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Brings every session that this node hands over, its log signed with the node's key, or has handed over before a restart, to its new host, again and again until
/// that one has it; one that it refuses goes on here. To be spawned beside [`serve`](super::serve); ends with the sessions, or
/// dropped.
pub fn deliver(
    sessions: &Sessions,
    agents: RemoteAgents,
    key: NodeKey,
) -> impl Future<Output = ()> + Send + use<> {
    let (weak, ended) = (sessions.downgrade(), sessions.ended());
    async move {
        tokio::select! {
            () = ended => {}
            () = run(weak, agents, key) => {}
        }
    }
}

async fn run(sessions: WeakSessions, agents: RemoteAgents, key: NodeKey) {
    let mut wait = AGAIN_FIRST;
    loop {
        let Some(sessions) = sessions.upgrade() else { return };
        let is_done = match sessions.undelivered().await {
            Ok(undelivered) => {
                let bring = |(session, to)| bring(&sessions, &agents, &key, session, to);
                let brought = stream::iter(undelivered).map(bring).buffer_unordered(BROUGHT_MAX);
                brought.fold(true, |all, is_done| std::future::ready(all && is_done)).await
            }
            Err(error) => {
                tracing::warn!(%error, "sessions that were handed over could not be looked for");
                false
            }
        };
        if is_done {
            wait = AGAIN_FIRST;
            sessions.handing_over().await;
            continue;
        }
        tokio::select! {
            () = sessions.handing_over() => {}
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(AGAIN_MAX),
        }
    }
}

/// Brings one; whether nothing is left to do for it.
async fn bring(
    sessions: &Sessions,
    agents: &RemoteAgents,
    key: &NodeKey,
    session: SessionId,
    to: NodeId,
) -> bool {
    let brought = async {
        let (last, epoch, _) = sessions.handed_over(session).await.map_err(|error| chain(&error))?;
        let host = agents.node(&to.to_string()).map_err(|error| chain(&error))?;
        match host.give(sessions.store(), key, session, epoch).await {
            Ok(()) => sessions.delivered(session, last).await.map_err(|error| chain(&error)),
            // It says so itself: it has not taken it, and never will what is not brought again.
            Err(RemoteError::Refused { code, text }) if !code.is_transient() => {
                tracing::warn!(%session, peer = %to.short(), why = text, "session not taken over, and goes on here");
                sessions.take_back(session).await.map_err(|error| chain(&error))
            }
            Err(error) => Err(chain(&error)),
        }
    };
    match brought.await {
        Ok(()) => true,
        Err(why) => {
            tracing::debug!(%session, peer = %to.short(), why, "session not brought to its new host yet");
            false
        }
    }
}

impl RemoteHost {
    /// Brings the node a session that was handed over to it; it has it when this returns.
    async fn give(
        &self,
        store: &Store,
        key: &NodeKey,
        session: SessionId,
        epoch: u64,
    ) -> Result<(), RemoteError> {
        let until = Instant::now() + self.config.grace;
        let (mut send, mut frames) = self.open(until).await?;
        let (idle, to) = (self.config.idle, self.node);
        let sign =
            |last, log: &blake3::Hash| Some(Summary { session, last, epoch, to }.sign(key, &self.scope, log));
        let written = async {
            write(&mut send, &Ask::Take { session, epoch }, idle).await?;
            write_log(&mut send, store, session, &sign, idle).await
        };
        match self.told(&mut frames, written).await.map_err(|broken| self.broken(&broken))? {
            Tell::Done { .. } => Ok(()),
            Tell::Refused { code, text, .. } => Err(RemoteError::Refused { code, text }),
            other => Err(self.unexpected(&other)),
        }
    }
}

/// A session's whole log in pieces, and an empty one behind it.
pub(super) async fn write_log(
    to: &mut SendStream,
    store: &Store,
    session: SessionId,
    sign: Sign<'_>,
    within: Duration,
) -> Result<(), Broken> {
    let (mut log, mut lines) = tokio::io::duplex(PIECE_BYTES_MAX);
    let failed = |error: std::io::Error| Broken::Frame(error.into());
    let exporting = async move {
        let exported = store.export_signed(session, &mut log, sign).await;
        exported.map(drop).map_err(|error| failed(std::io::Error::other(error)))
    };
    let sending = async {
        let mut frame = vec![PIECE; PIECE_BYTES_MAX + 1];
        loop {
            let bytes = lines.read(&mut frame[1..]).await.map_err(failed)?;
            if bytes == 0 {
                return Ok::<_, Broken>(());
            }
            timed(write_frame(to, &frame[..=bytes], FRAME_BYTES_MAX), within).await?;
        }
    };
    // A log that could not be read is not ended as if that were all of it.
    tokio::try_join!(exporting, sending)?;
    timed(write_frame(to, &[PIECE], FRAME_BYTES_MAX), within).await
}
