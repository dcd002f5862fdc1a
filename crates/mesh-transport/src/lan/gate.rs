//! Which peers have passed hello on some connection: only they may hold more than a stranger may.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use libp2p::PeerId;
use tokio::sync::watch;

/// One gate for each peer that has a connection, all of whose connections share it.
#[derive(Clone, Default)]
pub(super) struct Gates(Arc<Mutex<HashMap<PeerId, Weak<Gate>>>>);

/// Opens once, when a hello has proved that the peer may be here.
pub(super) struct Gate {
    open: watch::Sender<bool>,
    /// Connections of the peer that have passed hello and are not over.
    links: AtomicUsize,
}

impl Gates {
    /// The peer's gate: the one that its other connections have, or a closed one.
    pub(super) fn of(&self, peer: PeerId) -> Arc<Gate> {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gate) = gates.get(&peer).and_then(Weak::upgrade) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(Gate { open: watch::Sender::new(false), links: AtomicUsize::new(0) });
        gates.insert(peer, Arc::downgrade(&gate));
        gate
    }

    /// Whether the peer has passed hello on a connection that is still there.
    pub(super) fn is_linked(&self, peer: &PeerId) -> bool {
        let gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gates.get(peer).and_then(Weak::upgrade).is_some_and(|gate| gate.links.load(Ordering::SeqCst) > 0)
    }
}

impl Gate {
    /// A connection of the peer has passed hello.
    pub(super) fn open(&self) {
        self.links.fetch_add(1, Ordering::SeqCst);
        self.open.send_replace(true);
    }

    /// A connection that had passed hello is over.
    pub(super) fn leave(&self) {
        self.links.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Resolves when it is open. Cancel safe.
    pub(super) async fn opened(&self) {
        let mut open = self.open.subscribe();
        // The sender is in self: this ends only with the value.
        drop(open.wait_for(|open| *open).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_one_peer_share_a_gate_as_long_as_one_is_there() {
        let gates = Gates::default();
        let (peer, other) = (PeerId::random(), PeerId::random());
        let (first, second) = (gates.of(peer), gates.of(peer));
        first.open();
        assert!(second.is_open() && !gates.of(other).is_open());
        assert!(gates.is_linked(&peer) && !gates.is_linked(&other));
        first.leave();
        assert!(second.is_open() && !gates.is_linked(&peer), "open for good, and linked no more");
        drop((first, second));
        assert!(!gates.of(peer).is_open());
    }
}
