//! The connections that are open, by the certificates that their other ends showed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

/// What the other end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// It called.
    Client,
    /// It was called.
    Server,
}

/// All open connections of a node, those that it opened too.
#[derive(Default)]
pub(crate) struct Open(Mutex<Table>);

#[derive(Default)]
struct Table {
    last: u64,
    connections: HashMap<u64, Connection>,
}

struct Connection {
    side: Side,
    chain: Arc<[CertificateDer<'static>]>,
    close: CancellationToken,
}

/// A connection's place in the table, for as long as it is open.
pub(crate) struct Entered {
    open: Arc<Open>,
    number: u64,
    /// Cancelled when the certificate is accepted no more.
    pub(crate) close: CancellationToken,
}

impl Open {
    /// A connection whose other end has shown this chain, its own certificate first.
    pub(crate) fn enter(self: &Arc<Self>, side: Side, chain: Arc<[CertificateDer<'static>]>) -> Entered {
        let close = CancellationToken::new();
        let mut table = self.lock();
        table.last += 1;
        let number = table.last;
        table.connections.insert(number, Connection { side, chain, close: close.clone() });
        Entered { open: self.clone(), number, close }
    }

    /// Closes every connection whose chain is accepted no more, and returns how many.
    pub(crate) fn close_unless(&self, accepts: impl Fn(Side, &[CertificateDer<'static>]) -> bool) -> usize {
        // Verified outside the lock: a thousand signatures take a while.
        let all: Vec<_> = {
            let table = self.lock();
            let connections = table.connections.values();
            connections.map(|one| (one.side, one.chain.clone(), one.close.clone())).collect()
        };
        let refused = all.into_iter().filter(|(side, chain, _)| !accepts(*side, chain));
        refused.map(|(_, _, close)| close.cancel()).count()
    }

    pub(crate) fn count(&self, side: Side) -> usize {
        self.lock().connections.values().filter(|connection| connection.side == side).count()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.open.lock().connections.remove(&self.number);
    }
}
