//! The last step of a made answer: numbered, logged and copied if its caller wants to be able to resume it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::mpsc;

use super::events::{data_of, events};
use crate::gateway::replica::{AnswerId, EventId, Holder, Lost, Replica, Turn, Unwritten};
use crate::gateway::serve::Core;
use crate::gateway::stats::Stats;

/// Between two attempts to find a member that keeps a copy, while there is none.
const RECRUIT_EVERY: Duration = Duration::from_secs(5);
/// How long text waits for such an attempt: as long as for the word of a holder.
const RECRUITED_WITHIN: Duration = Duration::from_secs(3);

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
    copy: Option<(Replica, Holder)>,
    /// Whom the caller's response id names. Another holder is named by the numbers of the events.
    named: Option<Holder>,
    /// When to look for a holder again.
    recruit_at: Option<Instant>,
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
        let holder = self.log.as_ref().and_then(Logged::unnamed_holder);
        for (number, event) in (first..).zip(logged) {
            let mut numbered = BytesMut::new();
            put(&mut numbered, EventId { number, holder }, event);
            self.out.send(numbered.freeze()).await.map_err(|_| Left)?;
        }
        Ok(())
    }
}

impl Logged {
    /// `named`: the holder in the response id that the caller has.
    pub(crate) fn new(core: Arc<Core>, answer: AnswerId, turn: Turn, named: Option<Holder>) -> Self {
        Self { core, answer, turn, copy: None, named, recruit_at: None }
    }

    /// `replica` is at `holder`, and has all that the log has.
    pub(crate) fn with_copy(mut self, replica: Replica, holder: Holder) -> Self {
        self.copy = Some((replica, holder));
        self
    }

    /// The answer had no holder a moment ago: another look would find none either.
    pub(crate) fn without_copy(mut self) -> Self {
        self.recruit_at = Some(Instant::now() + RECRUIT_EVERY);
        self
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
            if let Some((replica, _)) = &mut self.copy {
                let _ = replica.over().await;
            }
        }
        let holder = self.unnamed_holder();
        let mut number = behind - kept.len();
        let mut out = BytesMut::with_capacity(whole.len() + kept.len() * 12);
        for event in events(whole) {
            if data_of(event).is_some() {
                number += 1;
                put(&mut out, EventId { number, holder }, event);
            } else {
                out.extend_from_slice(event);
            }
        }
        Ok(Some(out.freeze()))
    }

    /// The holder, where the caller's response id does not name it.
    fn unnamed_holder(&self) -> Option<Holder> {
        let holder = self.copy.as_ref().map(|(_, holder)| *holder);
        holder.filter(|holder| self.named != Some(*holder))
    }

    async fn copy(&mut self, kept: &[Bytes]) -> Result<(), Left> {
        let Some((replica, holder)) = &mut self.copy else { return self.recruit(None).await };
        let began = Instant::now();
        match replica.append(kept).await {
            Ok(()) => {
                let stats = &self.core.stats;
                Stats::add_many(&stats.replicated, kept.len() as u64);
                let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                Stats::add_many(&stats.replication_micros, micros);
                Ok(())
            }
            Err(Lost::Superseded) => Err(Left),
            Err(Lost::Holder(why)) => {
                let lost = *holder;
                tracing::info!(peer = lost.node.short(), why, "the copy of an answer is lost");
                Stats::add(&self.core.stats.replicas_lost);
                self.copy = None;
                self.recruit_at = None;
                self.recruit(Some(lost)).await
            }
        }
    }

    /// Has another member keep the answer as far as it is logged, if it is time for that.
    async fn recruit(&mut self, lost: Option<Holder>) -> Result<(), Left> {
        if self.recruit_at.is_some_and(|at| Instant::now() < at) {
            return Ok(());
        }
        let (question, events) = self.core.replicas.written(&self.answer, self.turn).ok_or(Left)?;
        let found = async {
            let (mut replica, holder) = self.core.copied(self.answer, &question, lost).await?;
            match replica.append(&events).await {
                Ok(()) => Some((replica, holder)),
                Err(why) => {
                    tracing::debug!(peer = holder.node.short(), %why, "a member keeps no copy");
                    None
                }
            }
        };
        self.copy = tokio::time::timeout(RECRUITED_WITHIN, found).await.ok().flatten();
        match &self.copy {
            Some((_, holder)) => {
                tracing::info!(peer = holder.node.short(), "another member keeps the copy of an answer");
                Stats::add(&self.core.stats.replicas_replaced);
            }
            None => self.recruit_at = Some(Instant::now() + RECRUIT_EVERY),
        }
        Ok(())
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.core.replicas.leave(&self.answer, self.turn);
    }
}

fn put(out: &mut BytesMut, id: EventId, event: &[u8]) {
    out.put_slice(format!("id: {id}\n").as_bytes());
    out.put_slice(event);
}

/// Whether nothing follows this event.
fn ends(event: &[u8]) -> bool {
    data_of(event).is_some_and(|data| &*data == b"[DONE]" || data.starts_with(b"{\"error\""))
}
