//! Links that were lost as the network changed, dialed again at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_identity::{NodeId, ScopeId};
use tokio::{sync::Semaphore, time::Instant};

use super::{Inner, dial, links::LinkConn};
use crate::{
    backoff,
    error::{CloseCode, ClosedWhy},
};

/// A peer in a scope.
pub(super) type Key = (ScopeId, NodeId);

/// Lost links remembered at once; beyond that the application's own dials must do.
const LOST_MAX: usize = 1024;
/// How long a lost link is dialed again when the network changes: as long as somebody who used it may still want it.
const REMEMBERED: Duration = Duration::from_secs(60);
/// How long after a change a loss is taken to come from it: longer than any driver's silence lasts.
const AFTERMATH: Duration = Duration::from_secs(10);
/// Dials of this kind at once.
const AT_ONCE: usize = 8;
/// Tries for one link: with the waits between them, a network has some ten seconds to come up.
const TRIES: u32 = 14;
/// The wait before the second try.
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
const WAIT_LONGEST: Duration = Duration::from_secs(1);

/// What was lost lately, and what is being dialed for that.
pub(super) struct Redial {
    state: Mutex<State>,
    room: Semaphore,
}

#[derive(Default)]
struct State {
    changed: Option<Instant>,
    lost: BTreeMap<Key, Instant>,
    running: BTreeSet<Key>,
}

impl Default for Redial {
    fn default() -> Self {
        Self { state: Mutex::default(), room: Semaphore::new(AT_ONCE) }
    }
}

impl Redial {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection has ended: remembered if it was lost and nothing is left to the peer.
pub(super) fn ended(inner: &Arc<Inner>, conn: &LinkConn, why: &ClosedWhy) {
    let is_lost = match why {
        ClosedWhy::TimedOut | ClosedWhy::Failed(_) | ClosedWhy::Local(CloseCode::AddressGone) => true,
        ClosedWhy::Local(_) | ClosedWhy::Peer { .. } | ClosedWhy::Gone => false,
    };
    let key = (conn.peer.scope, conn.peer.id);
    if !is_lost || inner.links.linked(&key.0, &key.1).is_some() {
        return;
    }
    let now = Instant::now();
    let mut state = inner.redial.lock();
    state.lost.retain(|_, since| now.duration_since(*since) < REMEMBERED);
    if state.lost.len() < LOST_MAX {
        state.lost.insert(key, now);
    }
    let is_aftermath = state.changed.is_some_and(|changed| now.duration_since(changed) < AFTERMATH)
        || *why == ClosedWhy::Local(CloseCode::AddressGone);
    drop(state);
    if is_aftermath {
        soon(inner, key);
    }
}

/// The network has changed: what was lost lately may be reached now.
pub(super) fn network_changed(inner: &Arc<Inner>) {
    let now = Instant::now();
    let lost: Vec<_> = {
        let mut state = inner.redial.lock();
        state.changed = Some(now);
        state.lost.retain(|_, since| now.duration_since(*since) < REMEMBERED);
        state.lost.keys().copied().collect()
    };
    for key in lost {
        soon(inner, key);
    }
}

/// Dials the peer until there is a link that answers, or some tries have failed.
pub(super) fn soon(inner: &Arc<Inner>, key: Key) {
    if inner.redial.lock().running.insert(key) {
        inner.tasks.spawn(again(inner.clone(), key));
    }
}

async fn again(inner: Arc<Inner>, key: Key) {
    tokio::select! {
        () = inner.stop_accepting.cancelled() => {}
        () = until_linked(&inner, key) => {}
    }
    let mut state = inner.redial.lock();
    state.running.remove(&key);
    state.lost.remove(&key);
}

async fn until_linked(inner: &Arc<Inner>, (scope, node): Key) {
    let mut network = inner.network.subscribe();
    for tries in 1..=TRIES {
        let Ok(room) = inner.redial.room.acquire().await else { return };
        let linked = dial::link(inner, &scope, &node).await;
        drop(room);
        match linked {
            Ok(conn) if !conn.is_silent() => return,
            Err(error) if !error.is_transient() => return,
            Ok(_) | Err(_) => {}
        }
        let wait = backoff::wait_before(tries, WAIT_FIRST, WAIT_LONGEST, rand::random());
        // Another change is a reason not to wait.
        drop(tokio::time::timeout(wait, network.changed()).await);
    }
}
