//! The links that exist, and the rule for several connections of one pair.
//!
//! The rule: of the connections between the same two nodes in a scope, one of the best class is used for new streams, see
//! [`Class`]; of two such, the one dialed by the smaller [`NodeId`]. Each other one is closed by the node that dialed it
//! once its streams have ended. Of two of one class dialed by the same node the newer stays, and connections of an
//! earlier run of the peer are closed at once.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use mesh_identity::{Expiry, Grant, NodeId, ScopeId, SignedGrant, UnixTime};
use tokio::sync::{Notify, OwnedSemaphorePermit, broadcast, watch};

use super::{
    LinkEvent,
    rule::{self, Class, Standing},
};
use crate::{
    connection::{Connection, PathFacts},
    error::{CloseCode, ClosedWhy, DialError},
    peer::Peer,
    stream::Cut,
};

/// A connection that has passed hello.
pub(crate) struct LinkConn {
    pub(crate) conn: Arc<dyn Connection>,
    pub(crate) peer: Peer,
    pub(crate) class: Class,
    pub(crate) dialed_by_us: bool,
    /// The run of the peer that is at the other end.
    pub(crate) instance: u64,
    pub(crate) marks: Marks,
    pub(crate) shown: Shown,
    pub(crate) since: SystemTime,
    pub(crate) streams: Arc<StreamCount>,
    /// Cuts them all.
    pub(crate) cut: Arc<Cut>,
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// What the peer has shown: in hello, or later the next grant of the same kind.
pub(crate) struct Shown(Mutex<(Arc<SignedGrant>, Expiry)>);

impl Shown {
    pub(crate) fn new(signed: SignedGrant, grant: &Grant) -> Self {
        Self(Mutex::new((Arc::new(signed), Expiry::at(grant.expires_at))))
    }

    /// Puts the next grant in place of the present one, unless that ends later.
    pub(crate) fn renew(&self, signed: &Arc<SignedGrant>, grant: &Grant) {
        let next = Expiry::at(grant.expires_at);
        let mut shown = self.lock();
        if !next.is_within(shown.1) {
            *shown = (signed.clone(), next);
        }
    }

    /// To be judged again after a revocation.
    pub(crate) fn signed(&self) -> Arc<SignedGrant> {
        self.lock().0.clone()
    }

    /// When it ends.
    pub(crate) fn expires(&self) -> Expiry {
        self.lock().1
    }

    fn lock(&self) -> MutexGuard<'_, (Arc<SignedGrant>, Expiry)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has been noticed about a connection since it came up.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// It was asked whether it lives and has not answered in time. Changed under the lock of [`Links`] alone.
    silent: AtomicBool,
    /// Somebody waits to close it once it is idle. The same.
    retiring: AtomicBool,
    /// It is being asked whether it lives.
    pub(crate) probed: AtomicBool,
    /// It was asked so lately because the peer asked on another one.
    pub(crate) hinted: AtomicBool,
}

/// Streams alive on a connection, both directions together.
#[derive(Debug, Default)]
pub(crate) struct StreamCount {
    alive: AtomicUsize,
    changed: Notify,
}

/// Held by both halves of a stream.
#[derive(Debug)]
pub(crate) struct CountedStream(Arc<StreamCount>);

impl StreamCount {
    pub(crate) fn enter(self: &Arc<Self>) -> CountedStream {
        self.alive.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
        CountedStream(self.clone())
    }

    pub(crate) fn alive(&self) -> usize {
        self.alive.load(Ordering::SeqCst)
    }

    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

pub(crate) type DialResult = Result<Arc<LinkConn>, DialError>;
pub(crate) type DialWatch = watch::Receiver<Option<DialResult>>;

/// What changed with a registration, for the caller to act on after the lock is released.
pub(crate) struct Registered {
    /// The connection that is used from now on.
    pub(crate) primary: Arc<LinkConn>,
    /// Connections to close at once.
    pub(crate) replaced: Vec<Arc<LinkConn>>,
    /// Connections of ours that lost the rule just now, and are to be closed once idle.
    pub(crate) superseded: Vec<Arc<LinkConn>>,
    /// Connections that are still preferred to the new one.
    pub(crate) preferred: Vec<Arc<LinkConn>>,
}

#[derive(Default)]
struct Slot {
    conns: Vec<Arc<LinkConn>>,
    /// The dial that callers wait for, by its number.
    dialing: Option<(u64, watch::Sender<Option<DialResult>>)>,
}

/// All links of a transport. Events are sent under its lock, so that their order is the order of changes.
pub(crate) struct Links {
    me: NodeId,
    events: broadcast::Sender<LinkEvent>,
    slots: Mutex<HashMap<(ScopeId, NodeId), Slot>>,
    dials: AtomicU64,
}

/// How a caller gets its link.
pub(crate) enum Claim {
    /// It exists.
    Linked(Arc<LinkConn>),
    /// Somebody dials already.
    Wait(DialWatch),
    /// The caller must see to the dial and end it with [`Links::dialed`].
    Dial(u64, DialWatch),
}

impl Links {
    pub(crate) fn new(me: NodeId, events: broadcast::Sender<LinkEvent>) -> Self {
        Self { me, events, slots: Mutex::default(), dials: AtomicU64::new(0) }
    }

    fn emit(&self, event: LinkEvent) {
        // No subscriber is not an error.
        drop(self.events.send(event));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(ScopeId, NodeId), Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link, the dial in progress, or the task to dial.
    pub(crate) fn claim(&self, scope: &ScopeId, node: &NodeId) -> Claim {
        let mut slots = self.lock();
        let slot = slots.entry((*scope, *node)).or_default();
        if let Some(conn) = self.primary(slot).filter(|conn| !conn.is_silent()) {
            return Claim::Linked(conn);
        }
        if let Some((_, dialing)) = &slot.dialing {
            return Claim::Wait(dialing.subscribe());
        }
        let (sender, receiver) = watch::channel(None);
        let number = self.dials.fetch_add(1, Ordering::Relaxed);
        slot.dialing = Some((number, sender));
        Claim::Dial(number, receiver)
    }

    /// Ends a dial: tells those who wait (unless a link from the other side already did).
    pub(crate) fn dialed(&self, scope: &ScopeId, node: &NodeId, number: u64, result: DialResult) {
        let mut slots = self.lock();
        let Some(slot) = slots.get_mut(&(*scope, *node)) else { return };
        if let Some((_, dialing)) = slot.dialing.take_if(|(waited_for, _)| *waited_for == number) {
            dialing.send_replace(Some(result));
        }
        if slot.conns.is_empty() && slot.dialing.is_none() {
            slots.remove(&(*scope, *node));
        }
    }

    /// Adds a connection that has passed hello.
    pub(crate) fn register(&self, conn: Arc<LinkConn>) -> Registered {
        let mut slots = self.lock();
        let key = (conn.peer.scope, conn.peer.id);
        let slot = slots.entry(key).or_default();
        let before = self.primary(slot);
        let standing = conn.standing();
        let replaces = |old: &Arc<LinkConn>| old.standing().is_replaced_by(&standing);
        let (replaced, kept) = slot.conns.drain(..).partition(replaces);
        slot.conns = kept;
        slot.conns.push(conn.clone());
        let primary = self.primary(slot).expect("one was just added");
        let superseded = retire(slot, &primary);
        let preferred = match Arc::ptr_eq(&primary, &conn) {
            true => Vec::new(),
            false => slot.conns.iter().filter(|other| !Arc::ptr_eq(other, &conn)).cloned().collect(),
        };
        match &before {
            None => self.emit(LinkEvent::Up { peer: primary.peer.clone(), path: primary.path() }),
            Some(before) => self.tell_primary(before, &primary),
        }
        // After the event, so that whoever waited has it behind it; taken out, so that nobody finds this link here later.
        if let Some((_, dialing)) = slots.get_mut(&key).and_then(|slot| slot.dialing.take()) {
            dialing.send_replace(Some(Ok(primary.clone())));
        }
        Registered { primary, replaced, superseded, preferred }
    }

    /// Takes out a connection that has ended (nothing happens if it was replaced before).
    pub(crate) fn remove(&self, conn: &Arc<LinkConn>, why: ClosedWhy) {
        let mut slots = self.lock();
        let key = (conn.peer.scope, conn.peer.id);
        let Some(slot) = slots.get_mut(&key) else { return };
        let before = self.primary(slot);
        slot.conns.retain(|c| !Arc::ptr_eq(c, conn));
        match (before, self.primary(slot)) {
            (Some(_), None) => {
                if slot.dialing.is_none() {
                    slots.remove(&key);
                }
                self.emit(LinkEvent::Down { peer: conn.peer.clone(), why });
            }
            (Some(before), Some(now)) => self.tell_primary(&before, &now),
            _ => {}
        }
    }

    /// Notes whether the connection answers; what lost the rule by that and is to be closed once idle.
    pub(crate) fn set_silent(&self, conn: &Arc<LinkConn>, is_silent: bool) -> Vec<Arc<LinkConn>> {
        let mut slots = self.lock();
        let Some(slot) = slots.get_mut(&(conn.peer.scope, conn.peer.id)) else { return Vec::new() };
        let before = self.primary(slot);
        conn.marks.silent.store(is_silent, Ordering::SeqCst);
        let (Some(before), Some(now)) = (before, self.primary(slot)) else { return Vec::new() };
        self.tell_primary(&before, &now);
        retire(slot, &now)
    }

    /// Whether a connection that was to be closed once idle still is; if it is in use again, nobody waits for that any more.
    pub(crate) fn is_retired(&self, conn: &Arc<LinkConn>) -> bool {
        let slots = self.lock();
        let slot = slots.get(&(conn.peer.scope, conn.peer.id));
        let primary = slot.and_then(|slot| self.primary(slot));
        let is_retired = !primary.is_some_and(|primary| Arc::ptr_eq(&primary, conn));
        conn.marks.retiring.store(is_retired, Ordering::SeqCst);
        is_retired
    }

    fn tell_primary(&self, before: &Arc<LinkConn>, now: &Arc<LinkConn>) {
        if !Arc::ptr_eq(before, now) {
            self.emit(LinkEvent::Path { peer: now.peer.clone(), path: now.path() });
        }
    }

    /// Tells subscribers of another path, if the connection is the one in use.
    pub(crate) fn path_changed(&self, conn: &Arc<LinkConn>) {
        let slots = self.lock();
        let Some(slot) = slots.get(&(conn.peer.scope, conn.peer.id)) else { return };
        if self.primary(slot).is_some_and(|primary| Arc::ptr_eq(&primary, conn)) {
            self.emit(LinkEvent::Path { peer: conn.peer.clone(), path: conn.path() });
        }
    }

    /// The link to a peer, if there is one.
    pub(crate) fn linked(&self, scope: &ScopeId, node: &NodeId) -> Option<Arc<LinkConn>> {
        self.lock().get(&(*scope, *node)).and_then(|slot| self.primary(slot))
    }

    /// One connection per linked peer, in order of scope and id.
    pub(crate) fn primaries(&self) -> Vec<Arc<LinkConn>> {
        let slots = self.lock();
        let mut found: Vec<_> = slots.values().filter_map(|slot| self.primary(slot)).collect();
        found.sort_by_key(|conn| (conn.peer.scope, conn.peer.id));
        found
    }

    /// Every connection for which `which` holds.
    pub(crate) fn matching(&self, which: impl Fn(&LinkConn) -> bool) -> Vec<Arc<LinkConn>> {
        self.lock().values().flat_map(|slot| &slot.conns).filter(|conn| which(conn)).cloned().collect()
    }

    /// Whether the connection is the one in use for its peer.
    pub(crate) fn is_primary(&self, conn: &Arc<LinkConn>) -> bool {
        self.linked(&conn.peer.scope, &conn.peer.id).is_some_and(|primary| Arc::ptr_eq(&primary, conn))
    }

    /// Ends every dial in progress.
    pub(crate) fn fail_dials(&self) {
        for slot in self.lock().values_mut() {
            if let Some((_, dialing)) = slot.dialing.take() {
                dialing.send_replace(Some(Err(DialError::Closed)));
            }
        }
    }

    fn primary(&self, slot: &Slot) -> Option<Arc<LinkConn>> {
        let standings: Vec<_> = slot.conns.iter().map(|conn| conn.standing()).collect();
        let peer = slot.conns.first()?.peer.id;
        rule::chosen(&standings, self.me < peer).and_then(|at| slot.conns.get(at)).cloned()
    }
}

/// The connections that this node dialed and that are not used any more, each once.
fn retire(slot: &Slot, primary: &Arc<LinkConn>) -> Vec<Arc<LinkConn>> {
    let lost = slot.conns.iter().filter(|conn| !Arc::ptr_eq(conn, primary) && conn.dialed_by_us);
    lost.filter(|conn| !conn.marks.retiring.swap(true, Ordering::SeqCst)).cloned().collect()
}

impl LinkConn {
    fn standing(&self) -> Standing {
        let (class, dialed_by_us, instance) = (self.class, self.dialed_by_us, self.instance);
        Standing { class, dialed_by_us, instance, is_silent: self.is_silent() }
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.marks.silent.load(Ordering::SeqCst)
    }

    pub(crate) fn path(&self) -> PathFacts {
        self.conn.path()
    }

    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        // Who may not be here any more gets no byte more, and none of its bytes is taken.
        if matches!(code, CloseCode::Revoked | CloseCode::Expired) {
            self.cut.cut(code);
        }
        self.conn.close(code, reason);
    }

    /// Resolves when it has ended, with the cause. Cancel safe.
    pub(crate) async fn closed(&self) -> ClosedWhy {
        match self.conn.closed().await {
            ClosedWhy::Local(CloseCode::Gone) => ClosedWhy::Gone,
            why => why,
        }
    }

    pub(crate) fn is_expired(&self, now: UnixTime) -> bool {
        self.shown.expires().is_over(now)
    }
}
