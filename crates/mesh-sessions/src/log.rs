//! Following a session: the past from the file, then live, each event once and in order.
//!
//! The writer hands what it has written to a short memory that all followers of a session share, and waits for none of
//! them. A follower asks for the event after its last by number, in that memory or else in the file: so it can neither
//! miss one nor get one twice, however slow it is.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::watch;

use crate::event::Event;
use crate::ids::{EventNumber, SessionId};
use crate::store::{ReadError, ReadLimit, StorageError, Store};

/// Events that followers of a session share in memory: several seconds of a fast model.
const RECENT_MAX: usize = 256;

/// Bytes of such events.
const RECENT_BYTES_MAX: usize = 1024 * 1024;

/// What a follower takes at a time.
const TAKEN: ReadLimit = ReadLimit { events: 64, bytes: 256 * 1024 };

/// The sessions that are followed.
#[derive(Default)]
pub(crate) struct Topics(Mutex<HashMap<SessionId, Weak<Topic>>>);

/// A followed session.
struct Topic {
    session: SessionId,
    topics: Weak<Topics>,
    state: watch::Sender<State>,
    recent: Mutex<Recent>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    last: u64,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Deleted,
    Closed,
}

/// The newest events, one after the other.
#[derive(Default)]
struct Recent {
    events: VecDeque<(Arc<Event>, usize)>,
    bytes: usize,
}

impl Topics {
    /// Tells followers what was written; `bytes` is its size.
    pub(crate) fn publish(&self, session: SessionId, events: &[Arc<Event>], bytes: usize) {
        let (Some(topic), Some(last)) = (self.topic(session), events.last()) else { return };
        topic.recent().push(events, bytes);
        topic.state.send_modify(|state| state.last = state.last.max(last.number.0));
    }

    /// Tells followers that the session reaches up to here, in the file.
    pub(crate) fn reached(&self, session: SessionId, last: EventNumber) {
        if let Some(topic) = self.topic(session) {
            topic.recent().clear();
            topic.state.send_modify(|state| state.last = state.last.max(last.0));
        }
    }

    /// All followers of all sessions.
    pub(crate) fn followers(&self) -> usize {
        lock(&self.0).values().map(Weak::strong_count).sum()
    }

    /// Tells followers that the session is no more.
    pub(crate) fn delete(&self, session: SessionId) {
        let topic = lock(&self.0).remove(&session);
        if let Some(topic) = topic.and_then(|topic| topic.upgrade()) {
            topic.state.send_modify(|state| state.end = Some(End::Deleted));
        }
    }

    /// Tells all followers that the store was closed.
    pub(crate) fn close(&self) {
        let topics: Vec<_> = lock(&self.0).drain().collect();
        for topic in topics.iter().filter_map(|(_, topic)| topic.upgrade()) {
            topic.state.send_modify(|state| state.end = Some(End::Closed));
        }
    }

    fn topic(&self, session: SessionId) -> Option<Arc<Topic>> {
        lock(&self.0).get(&session)?.upgrade()
    }

    fn subscribe(self: &Arc<Self>, session: SessionId) -> Arc<Topic> {
        let mut topics = lock(&self.0);
        if let Some(topic) = topics.get(&session).and_then(Weak::upgrade) {
            return topic;
        }
        let state = watch::Sender::new(State::default());
        let topic =
            Arc::new(Topic { session, topics: Arc::downgrade(self), state, recent: Mutex::default() });
        topics.insert(session, Arc::downgrade(&topic));
        topic
    }
}

impl Topic {
    fn recent(&self) -> MutexGuard<'_, Recent> {
        lock(&self.recent)
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        let Some(topics) = self.topics.upgrade() else { return };
        let mut topics = lock(&topics.0);
        // Another may stand there already, for a follower that came in this moment.
        if topics.get(&self.session).is_some_and(|topic| topic.strong_count() == 0) {
            topics.remove(&self.session);
        }
    }
}

impl Recent {
    fn push(&mut self, events: &[Arc<Event>], bytes: usize) {
        let follows = |event: &Arc<Event>| match self.events.back() {
            Some((last, _)) => last.number.next() == event.number,
            None => true,
        };
        if !events.first().is_some_and(follows) {
            self.clear();
        }
        let each = bytes / events.len().max(1);
        self.events.extend(events.iter().map(|event| (event.clone(), each)));
        self.bytes += each * events.len();
        while self.events.len() > RECENT_MAX || self.bytes > RECENT_BYTES_MAX {
            let Some((_, bytes)) = self.events.pop_front() else { break };
            self.bytes -= bytes;
        }
    }

    fn clear(&mut self) {
        (self.events, self.bytes) = (VecDeque::new(), 0);
    }

    /// The events after a number, when the next one is still here.
    fn after(&self, number: u64) -> VecDeque<Arc<Event>> {
        let Some((first, _)) = self.events.front() else { return VecDeque::new() };
        let Some(skipped) = (number + 1).checked_sub(first.number.0) else { return VecDeque::new() };
        let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
        let taken = self.events.iter().skip(skipped).take(TAKEN.events as usize);
        taken.map(|(event, _)| event.clone()).collect()
    }
}

/// A lock whose holder panicked guards nothing that could be half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A reader of a session that waits for what is still to come.
pub struct Follower {
    store: Store,
    topic: Arc<Topic>,
    state: watch::Receiver<State>,
    session: SessionId,
    at: EventNumber,
    ready: VecDeque<Arc<Event>>,
}

impl Follower {
    pub(crate) async fn new(
        store: Store,
        topics: &Arc<Topics>,
        session: SessionId,
        after: EventNumber,
    ) -> Result<Self, ReadError> {
        // First the topic, then the file: what is written in between is told of, or found.
        let topic = topics.subscribe(session);
        let last = store.last(session).await?;
        if after > last {
            return Err(ReadError::NoSuchEvent { after, last });
        }
        topic.state.send_if_modified(|state| {
            let is_news = state.last < last.0;
            state.last = state.last.max(last.0);
            is_news
        });
        let state = topic.state.subscribe();
        Ok(Self { store, topic, state, session, at: after, ready: VecDeque::new() })
    }

    /// The event after the last one, once there is one. Cancel safe: an event is lost by no dropped future.
    ///
    /// # Errors
    /// [`ReadError`]; asking again goes on at the same event.
    pub async fn next(&mut self) -> Result<Arc<Event>, ReadError> {
        loop {
            if let Some(event) = self.next_ready() {
                return Ok(event);
            }
            let State { last, end } = *self.state.borrow_and_update();
            if self.at.0 < last {
                self.ready = self.topic.recent().after(self.at.0);
                if self.ready.is_empty() {
                    let read = self.store.read(self.session, self.at, TAKEN).await?;
                    if read.is_empty() {
                        let what = format!("event {} of session {} is missing", self.at.next(), self.session);
                        return Err(StorageError::Damaged { what }.into());
                    }
                    self.ready = read.into_iter().map(Arc::new).collect();
                }
                continue;
            }
            match end {
                Some(End::Deleted) => return Err(ReadError::NoSuchSession(self.session)),
                Some(End::Closed) => return Err(StorageError::Closed.into()),
                None => self.state.changed().await.map_err(|_| StorageError::Closed)?,
            }
        }
    }

    /// The event after the last one, when it is at hand without waiting.
    pub fn next_ready(&mut self) -> Option<Arc<Event>> {
        let event = self.ready.pop_front()?;
        self.at = event.number;
        Some(event)
    }

    /// The number of the last event that was returned.
    pub fn at(&self) -> EventNumber {
        self.at
    }

    /// Whether all events that there are have been returned.
    pub fn is_live(&self) -> bool {
        self.at.0 >= self.state.borrow().last
    }
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower")
            .field("session", &self.session)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}
