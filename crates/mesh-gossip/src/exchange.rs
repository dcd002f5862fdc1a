//! The receiving side: streams of `gossip/2`, handed to the scope that they are in.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use mesh_identity::{NodeId, Role, ScopeId};
use mesh_transport::{FrameReader, Peer, Protocol, ResetCode, Stream, Transport, handler_fn};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::limits;
use crate::metrics::Metrics;

/// What gossip's streams speak.
pub const GOSSIP: Protocol = Protocol::new("gossip/2");

/// Takes the gossip streams of one transport for every scope that gossips over it. Make one per transport: a transport
/// has one handler for a protocol, and a second exchange would take the first one's streams.
#[derive(Clone)]
pub struct Exchange {
    pub(crate) transport: Transport,
    scopes: Arc<Scopes>,
}

/// The scopes that gossip here. The handler holds this and not the transport, which holds the handler.
#[derive(Default)]
struct Scopes(Mutex<BTreeMap<ScopeId, Inbox>>);

/// Where a scope's frames go.
#[derive(Clone)]
pub(crate) struct Inbox {
    pub(crate) frames: mpsc::Sender<Inbound>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) cancel: CancellationToken,
}

/// A frame and who sent it.
pub(crate) struct Inbound {
    pub(crate) from: NodeId,
    pub(crate) role: Role,
    pub(crate) frame: Bytes,
}

impl Exchange {
    /// Serves `gossip/2` on the transport from now on. Until a scope starts, its streams are reset.
    #[must_use]
    pub fn new(transport: Transport) -> Self {
        let scopes = Arc::new(Scopes::default());
        let served = Arc::clone(&scopes);
        transport
            .serve(GOSSIP, handler_fn(move |peer: Peer, stream| serve(Arc::clone(&served), peer, stream)));
        Self { transport, scopes }
    }

    /// Takes the scope's frames from now on; `false` when somebody does already.
    pub(crate) fn register(&self, scope: ScopeId, inbox: Inbox) -> bool {
        let mut scopes = self.scopes.lock();
        if scopes.get(&scope).is_some_and(|held| !held.cancel.is_cancelled()) {
            return false;
        }
        scopes.insert(scope, inbox);
        true
    }

    /// Takes them no more.
    pub(crate) fn unregister(&self, scope: &ScopeId, cancel: &CancellationToken) {
        let mut scopes = self.scopes.lock();
        // A scope that was started again in between is the new one's.
        if scopes.get(scope).is_some_and(|held| held.cancel.is_cancelled() && cancel.is_cancelled()) {
            scopes.remove(scope);
        }
    }
}

impl Scopes {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ScopeId, Inbox>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(scopes: Arc<Scopes>, peer: Peer, stream: Stream) {
    let inbox = scopes.lock().get(&peer.scope).cloned();
    let Some(inbox) = inbox else {
        stream.reset(ResetCode::UNKNOWN_PROTOCOL);
        return;
    };
    let (_send, recv) = stream.split();
    let mut frames = FrameReader::new(recv, limits::FRAME_BYTES_MAX);
    loop {
        // Waiting for room in the inbox slows this peer's stream down, and no other.
        let next =
            tokio::select! { biased; () = inbox.cancel.cancelled() => return, next = frames.next() => next };
        match next {
            Ok(Some(frame)) => {
                inbox.metrics.received(&frame);
                let inbound = Inbound { from: peer.id, role: peer.role, frame: Bytes::from(frame) };
                let sent = tokio::select! {
                    () = inbox.cancel.cancelled() => return,
                    sent = inbox.frames.send(inbound) => sent,
                };
                if sent.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(mesh_transport::FrameError::Io(_)) => return,
            Err(error) => {
                inbox.metrics.fault();
                tracing::debug!(peer = %peer.id.short(), %error, "gossip stream broken");
                frames.into_inner().stop(ResetCode::FAULT);
                return;
            }
        }
    }
}
