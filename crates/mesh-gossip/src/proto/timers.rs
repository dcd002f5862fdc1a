//! The core's alarm clock: one ordered set, so that the driver arms exactly one timer.

use std::collections::BTreeSet;
use std::time::Instant;

use mesh_identity::NodeId;

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Anti-entropy with a linked peer.
    Exchange,
    /// Push what changed.
    Push,
    /// Forget the long dead, end what has expired.
    Sweep,
    /// This node, held for dead by somebody, may contradict.
    Refute,
    /// A neighbour has to be looked after.
    Watch(NodeId),
    /// An accused node's case has to be weighed.
    Case(NodeId),
    /// A node may be dialed.
    Dial(NodeId),
    /// The link of a convicted node, which stays silent, may be closed.
    Close(NodeId),
}

/// Timers by time. An entry whose owner has moved on is ignored when it fires: owners remember their own time.
#[derive(Debug, Default)]
pub(crate) struct Timers(BTreeSet<(Instant, Timer)>);

impl Timers {
    pub(crate) fn set(&mut self, at: Instant, timer: Timer) {
        self.0.insert((at, timer));
    }

    pub(crate) fn unset(&mut self, at: Instant, timer: Timer) {
        self.0.remove(&(at, timer));
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }

    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        let (at, timer) = *self.0.first()?;
        if at > now {
            return None;
        }
        self.0.remove(&(at, timer));
        Some(timer)
    }
}
