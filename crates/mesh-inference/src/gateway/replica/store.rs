//! The answers kept here: own ones, and copies of other gateways'.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mesh_identity::{NodeId, ScopeId};
use tokio::time::Instant;

use super::AnswerId;
use crate::gateway::endpoint::Endpoint;

/// Answers kept for one peer at a time: as many as it may have under way here.
const PEER_ANSWERS_MAX: usize = 64;
/// A peer's part of the memory: one in so many.
const PEER_PART: usize = 4;
/// What an event costs beside its bytes.
const EVENT_BYTES: usize = 64;

/// Answers by id, within a bound of memory.
pub(crate) struct Store {
    table: Mutex<Table>,
    bytes_max: usize,
    ttl: Duration,
}

#[derive(Default)]
struct Table {
    answers: HashMap<AnswerId, Log>,
    bytes: usize,
}

/// The request behind an answer.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    pub(crate) endpoint: Endpoint,
    pub(crate) model: Arc<str>,
    pub(crate) body: Bytes,
}

/// One answer.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) question: Question,
    pub(crate) events: Vec<Bytes>,
    pub(crate) over: bool,
    /// Whose copy it is; None for an answer of this gateway.
    owner: Option<(ScopeId, NodeId)>,
    bytes: usize,
    /// Which of its writers may write: the last one.
    turn: Turn,
    /// While somebody writes it, it is not forgotten.
    written: bool,
    touched: Instant,
}

/// The right to write one answer, until another one takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn(u64);

/// Why events were not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwritten {
    /// Another writer has taken over, or the answer is forgotten.
    Superseded,
    /// The memory is full. The answer is forgotten.
    NoRoom,
}

impl Store {
    /// `ttl`: how long an answer is kept once nobody writes it.
    pub(crate) fn new(bytes_max: usize, ttl: Duration) -> Self {
        Self { table: Mutex::default(), bytes_max, ttl }
    }

    /// Begins to keep an answer; None when there is no room for it, or one of this id is known.
    pub(crate) fn insert(
        &self,
        answer: AnswerId,
        question: Question,
        owner: Option<(ScopeId, NodeId)>,
    ) -> Option<Turn> {
        let mut table = self.table();
        let bytes = question.body.len() + EVENT_BYTES;
        if table.answers.contains_key(&answer) || !self.has_room(&table, owner.as_ref(), bytes, 1) {
            return None;
        }
        let turn = Turn(0);
        let (events, touched) = (Vec::new(), Instant::now());
        let log = Log { question, events, over: false, owner, bytes, turn, written: true, touched };
        table.bytes += bytes;
        table.answers.insert(answer, log);
        Some(turn)
    }

    /// The answer as it stands, and the right to write it from now on. `scope`: where the asker is a member; None for
    /// this node's own callers.
    pub(crate) fn take(&self, answer: &AnswerId, scope: Option<&ScopeId>) -> Option<(Log, Turn)> {
        let mut table = self.table();
        let log = table.answers.get_mut(answer)?;
        if scope.is_some_and(|scope| log.owner.as_ref().is_none_or(|(of, _)| of != scope)) {
            return None;
        }
        log.turn.0 += 1;
        (log.written, log.touched) = (true, Instant::now());
        Some((log.clone(), log.turn))
    }

    /// The answer as far as it is written, for whoever may write it.
    pub(crate) fn written(&self, answer: &AnswerId, turn: Turn) -> Option<(Question, Vec<Bytes>)> {
        let table = self.table();
        let log = table.answers.get(answer).filter(|log| log.turn == turn)?;
        Some((log.question.clone(), log.events.clone()))
    }

    /// Adds events; returns how many there are. An answer that outgrows the memory is forgotten.
    pub(crate) fn append(
        &self,
        answer: &AnswerId,
        turn: Turn,
        events: Vec<Bytes>,
    ) -> Result<usize, Unwritten> {
        let mut table = self.table();
        let more = events.iter().map(|event| event.len() + EVENT_BYTES).sum::<usize>();
        let log = table.answers.get(answer).filter(|log| log.turn == turn).ok_or(Unwritten::Superseded)?;
        if !self.has_room(&table, log.owner.as_ref(), more, 0) {
            table.forget(answer);
            return Err(Unwritten::NoRoom);
        }
        table.bytes += more;
        let log = table.answers.get_mut(answer).ok_or(Unwritten::Superseded)?;
        log.bytes += more;
        log.touched = Instant::now();
        log.events.extend(events);
        Ok(log.events.len())
    }

    /// Notes that the answer is complete.
    pub(crate) fn over(&self, answer: &AnswerId, turn: Turn) {
        if let Some(log) = self.table().answers.get_mut(answer).filter(|log| log.turn == turn) {
            log.over = true;
        }
    }

    /// The writer is gone: from now on the answer is kept for the time to live.
    pub(crate) fn leave(&self, answer: &AnswerId, turn: Turn) {
        if let Some(log) = self.table().answers.get_mut(answer).filter(|log| log.turn == turn) {
            (log.written, log.touched) = (false, Instant::now());
        }
    }

    /// Forgets what nobody has asked for in time. Called about once a second.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        let mut table = self.table();
        let old = |log: &Log| !log.written && now.duration_since(log.touched) >= self.ttl;
        let gone: Vec<_> = table.answers.iter().filter(|(_, log)| old(log)).map(|(id, _)| *id).collect();
        gone.iter().for_each(|id| table.forget(id));
    }

    /// Answers kept, and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        let table = self.table();
        (table.answers.len(), table.bytes)
    }

    fn has_room(
        &self,
        table: &Table,
        owner: Option<&(ScopeId, NodeId)>,
        bytes: usize,
        answers: usize,
    ) -> bool {
        if table.bytes + bytes > self.bytes_max {
            return false;
        }
        let Some((_, peer)) = owner else { return true };
        // By node and not by scope: a peer in many scopes is one peer.
        let of_peer =
            table.answers.values().filter(|log| log.owner.as_ref().is_some_and(|(_, of)| of == peer));
        let (count, held) = of_peer.fold((0, 0), |(count, held), log| (count + 1, held + log.bytes));
        count + answers <= PEER_ANSWERS_MAX && held + bytes <= self.bytes_max / PEER_PART
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn forget(&mut self, answer: &AnswerId) {
        if let Some(log) = self.answers.remove(answer) {
            self.bytes -= log.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_identity::NodeKey;

    fn question(bytes: usize) -> Question {
        Question { endpoint: Endpoint::Chat, model: "m".into(), body: vec![b'x'; bytes].into() }
    }

    fn peer(number: u8) -> Option<(ScopeId, NodeId)> {
        Some((ScopeId::from_bytes([1; 32]), NodeKey::from_seed([number; 32]).node_id()))
    }

    fn id(number: u8) -> AnswerId {
        AnswerId([number; 16])
    }

    #[test]
    fn the_last_writer_writes() {
        let store = Store::new(100_000, Duration::from_secs(60));
        let first = store.insert(id(1), question(10), None).unwrap();
        assert!(store.insert(id(1), question(10), None).is_none(), "known already");
        assert_eq!(store.append(&id(1), first, vec!["a".into(), "b".into()]), Ok(2));
        let (log, second) = store.take(&id(1), None).unwrap();
        assert_eq!((log.events.len(), log.over), (2, false));
        assert_eq!(store.append(&id(1), first, vec!["c".into()]), Err(Unwritten::Superseded));
        assert_eq!(store.append(&id(1), second, vec!["c".into()]), Ok(3));
        store.over(&id(1), first);
        assert!(!store.take(&id(1), None).unwrap().0.over);
    }

    #[test]
    fn copies_are_for_members_of_their_scope() {
        let store = Store::new(100_000, Duration::from_secs(60));
        store.insert(id(1), question(10), peer(1)).unwrap();
        store.insert(id(2), question(10), None).unwrap();
        let (own, other) = (ScopeId::from_bytes([1; 32]), ScopeId::from_bytes([2; 32]));
        assert!(store.take(&id(1), Some(&own)).is_some() && store.take(&id(1), None).is_some());
        assert!(store.take(&id(1), Some(&other)).is_none());
        assert!(store.take(&id(2), Some(&own)).is_none(), "not a copy");
    }

    #[test]
    fn memory_is_bounded_for_each_peer_and_in_total() {
        let store = Store::new(40_000, Duration::from_secs(60));
        assert!(store.insert(id(1), question(20_000), peer(1)).is_none(), "more than a peer's part");
        let turn = store.insert(id(1), question(9_000), peer(1)).unwrap();
        assert!(store.insert(id(2), question(9_000), peer(1)).is_none());
        assert!(store.insert(id(2), question(9_000), peer(2)).is_some());
        assert!(store.insert(id(3), question(30_000), None).is_none());
        assert_eq!(store.append(&id(1), turn, vec![vec![b'x'; 2_000].into()]), Err(Unwritten::NoRoom));
        assert_eq!(store.size(), (1, 9_000 + EVENT_BYTES), "an answer too long is forgotten whole");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_forgotten_a_while_after_its_writer_left() {
        let store = Store::new(100_000, Duration::from_secs(60));
        let turn = store.insert(id(1), question(10), None).unwrap();
        tokio::time::advance(Duration::from_secs(100)).await;
        store.sweep();
        assert_eq!(store.size().0, 1, "somebody writes it");
        store.leave(&id(1), turn);
        tokio::time::advance(Duration::from_secs(59)).await;
        store.sweep();
        assert_eq!(store.size().0, 1);
        tokio::time::advance(Duration::from_secs(2)).await;
        store.sweep();
        assert_eq!(store.size(), (0, 0));
    }
}
