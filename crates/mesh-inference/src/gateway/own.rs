//! Requests of this node's own agents. What they say beside HTTP can be said within the process alone: over a socket or a
//! link nobody can name a node, or ask on another one's behalf.

use std::sync::{Arc, OnceLock};

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_identity::NodeId;
use mesh_routing::Target;
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;

use super::Gateway;
use super::attempt::Maker;
use super::error::ApiError;
use super::inside::Inside;
use super::relay::chain;
use super::serve::{Caller, Core};
use super::settle::settled;
use crate::backend::Backend;

/// Largest request head, and largest read, in bytes.
const BUFFER_MAX: usize = 64 * 1024;

/// What an agent of this node wants beyond its request.
#[derive(Debug, Default)]
pub(crate) struct OwnCall {
    /// The one node whose model may answer; none for whatever routing prefers.
    pub(crate) only: Option<NodeId>,
    /// The node whose quota it counts against, when it is not this one.
    pub(crate) on_behalf_of: Option<NodeId>,
    /// Who answers, told by the gateway before the answer's head.
    maker: OnceLock<Option<NodeId>>,
}

impl OwnCall {
    pub(crate) fn new(only: Option<NodeId>, on_behalf_of: Option<NodeId>) -> Self {
        Self { only, on_behalf_of, maker: OnceLock::new() }
    }

    pub(crate) fn note_maker(&self, maker: Maker) {
        let node = match maker {
            Maker::Backend(_) => None,
            Maker::Peer(node) => Some(node),
        };
        // A second answer to one request does not exist.
        let _ = self.maker.set(node);
    }

    /// The peer that answers; none when it is this node, or nobody yet.
    pub(crate) fn peer(&self) -> Option<NodeId> {
        self.maker.get().copied().flatten()
    }
}

/// How agents of this node reach its gateway. Holds no gateway up: once it stops, connections end.
#[derive(Clone)]
pub(crate) struct OwnDoor {
    core: Arc<Core>,
    stop: CancellationToken,
}

impl Gateway {
    pub(crate) fn own_door(&self) -> OwnDoor {
        OwnDoor { core: self.running.core.clone(), stop: self.running.stop.clone() }
    }
}

impl OwnDoor {
    /// This node, when it is in a mesh.
    pub(crate) fn me(&self) -> Option<NodeId> {
        self.core.me()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// A connection for one request.
    pub(crate) fn open(&self, call: Arc<OwnCall>) -> Inside {
        let Self { core, stop } = self.clone();
        Inside::new(move |far| async move {
            let over = async {
                stop.cancelled().await;
                tokio::time::sleep(core.config.drain).await;
            };
            tokio::select! {
                () = settled(serve(core.clone(), call, far)) => {}
                () = over => {}
            }
        })
    }
}

async fn serve(core: Arc<Core>, call: Arc<OwnCall>, far: DuplexStream) {
    let caller = Caller::Own(call);
    let service = service_fn(|request: Request<Incoming>| {
        let (core, caller) = (&core, &caller);
        async move { Ok::<_, std::convert::Infallible>(core.answer(caller, request).await) }
    });
    let served = http1::Builder::new()
        .max_buf_size(BUFFER_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(far), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(error = chain(&error), "an agent's request ended early");
    }
}

impl Core {
    pub(crate) fn me(&self) -> Option<NodeId> {
        self.transport.as_ref().map(mesh_transport::Transport::node_id)
    }

    /// Where a request may go whose caller names the node.
    pub(crate) fn targets_at(
        &self,
        node: NodeId,
        model: &str,
        draw: u64,
        local: &[Arc<Backend>],
    ) -> Result<Vec<Target>, ApiError> {
        if self.me() == Some(node) {
            return if local.is_empty() {
                Err(ApiError::unknown_at(model, node))
            } else {
                Ok(vec![Target::Local])
            };
        }
        let mut targets = self
            .routes
            .route_to(node, model, draw)
            .map_err(|none| none.into_error(model, || ApiError::unknown_at(model, node)))?;
        targets.retain(|target| target.node() == Some(node));
        if targets.is_empty() { Err(ApiError::unknown_at(model, node)) } else { Ok(targets) }
    }
}
