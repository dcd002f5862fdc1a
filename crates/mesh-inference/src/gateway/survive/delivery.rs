//! The last step of a made answer: numbered, logged and copied if its caller wants to be able to resume it.

use std::sync::Arc;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::mpsc;

use super::events::{data_of, events};
use crate::gateway::replica::{AnswerId, Lost, Replica, Turn, Unwritten};
use crate::gateway::serve::Core;
use crate::gateway::stats::Stats;

/// Where the events of an answer go.
pub(crate) struct Delivery {
    out: mpsc::Sender<Bytes>,
    log: Option<Logged>,
}

/// An answer that is logged here, and copied while there is a replica.
pub(crate) struct Logged {
    core: Arc<Core>,
    answer: AnswerId,
    turn: Turn,
    replica: Option<Replica>,
}

/// The caller has left, or resumes the answer elsewhere.
#[derive(Debug)]
pub(crate) struct Left;

impl Delivery {
    /// To the caller alone.
    pub(crate) fn plain(out: mpsc::Sender<Bytes>) -> Self {
        Self { out, log: None }
    }

    pub(crate) fn logged(out: mpsc::Sender<Bytes>, log: Logged) -> Self {
        Self { out, log: Some(log) }
    }

    /// For comments, which are neither numbered nor kept.
    pub(crate) fn comments(&self) -> mpsc::Sender<Bytes> {
        self.out.clone()
    }

    /// Sends whole events. Those of a logged answer go when the log and the copy have them.
    pub(crate) async fn send(&mut self, whole: Bytes) -> Result<(), Left> {
        if whole.is_empty() {
            return Ok(());
        }
        let numbered = match &mut self.log {
            Some(log) => log.keep(&whole).await?,
            None => None,
        };
        if numbered.is_none() {
            self.log = None;
        }
        self.out.send(numbered.unwrap_or(whole)).await.map_err(|_| Left)
    }

    /// Sends events that are logged already, the first of them with number `first`.
    pub(crate) async fn replay(&self, logged: &[Bytes], first: usize) -> Result<(), Left> {
        for (number, event) in (first..).zip(logged) {
            let mut numbered = BytesMut::new();
            put(&mut numbered, number, event);
            self.out.send(numbered.freeze()).await.map_err(|_| Left)?;
        }
        Ok(())
    }
}

impl Logged {
    pub(crate) fn new(core: Arc<Core>, answer: AnswerId, turn: Turn, replica: Option<Replica>) -> Self {
        Self { core, answer, turn, replica }
    }

    pub(crate) fn set_replica(&mut self, replica: Replica) {
        self.replica = Some(replica);
    }

    /// The same log, with a later right to write it.
    pub(crate) fn with_turn(mut self, turn: Turn) -> Self {
        self.turn = turn;
        self
    }

    /// Logs and copies what stands in `whole`; returns it with numbers, or None when there is no log any more.
    async fn keep(&mut self, whole: &Bytes) -> Result<Option<Bytes>, Left> {
        let kept: Vec<Bytes> = events(whole)
            .filter(|event| data_of(event).is_some())
            .map(|event| whole.slice_ref(event))
            .collect();
        // A slice would keep all of a large piece alive for one event of it.
        let copied = kept.iter().map(|event| Bytes::copy_from_slice(event)).collect();
        let behind = match self.core.replicas.append(&self.answer, self.turn, copied) {
            Ok(behind) => behind,
            Err(Unwritten::Superseded) => return Err(Left),
            Err(Unwritten::NoRoom) => {
                tracing::warn!("an answer is too long to be resumed");
                return Ok(None);
            }
        };
        self.copy(&kept).await?;
        if kept.iter().any(|event| ends(event)) {
            self.core.replicas.over(&self.answer, self.turn);
            if let Some(replica) = &mut self.replica {
                let _ = replica.over().await;
            }
        }
        let mut number = behind - kept.len();
        let mut out = BytesMut::with_capacity(whole.len() + kept.len() * 12);
        for event in events(whole) {
            if data_of(event).is_some() {
                number += 1;
                put(&mut out, number, event);
            } else {
                out.extend_from_slice(event);
            }
        }
        Ok(Some(out.freeze()))
    }

    async fn copy(&mut self, kept: &[Bytes]) -> Result<(), Left> {
        let Some(replica) = &mut self.replica else { return Ok(()) };
        let began = Instant::now();
        match replica.append(kept).await {
            Ok(()) => {
                let stats = &self.core.stats;
                Stats::add_many(&stats.replicated, kept.len() as u64);
                let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                Stats::add_many(&stats.replication_micros, micros);
            }
            Err(Lost::Superseded) => return Err(Left),
            Err(Lost::Holder(why)) => {
                tracing::warn!(why, "the copy of an answer is lost; it can be resumed at this gateway only");
                Stats::add(&self.core.stats.replicas_lost);
                self.replica = None;
            }
        }
        Ok(())
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.core.replicas.leave(&self.answer, self.turn);
    }
}

fn put(out: &mut BytesMut, number: usize, event: &[u8]) {
    out.put_slice(format!("id: {number}\n").as_bytes());
    out.put_slice(event);
}

/// Whether nothing follows this event.
fn ends(event: &[u8]) -> bool {
    data_of(event).is_some_and(|data| &*data == b"[DONE]" || data.starts_with(b"{\"error\""))
}
