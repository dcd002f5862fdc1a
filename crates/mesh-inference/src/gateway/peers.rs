//! Other nodes' requests: HTTP/1.1 on a mesh stream, answered by this node's own backends.

use std::convert::Infallible;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_transport::{Callers, Handler, Peer, Stream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::ApiError;
use super::relay::chain;
use super::serve::{Caller, Core};
use super::settle::settled;
use super::stats::Stats;

/// Largest request head, and largest read, in bytes.
const BUFFER_MAX: usize = 64 * 1024;

/// Serves `gateway/1`.
pub(crate) struct PeerHandler {
    pub(crate) core: Arc<Core>,
    pub(crate) stop: CancellationToken,
    pub(crate) open: TaskTracker,
}

impl Handler for PeerHandler {
    /// Clients too: each backend says with whom it is shared.
    fn callers(&self) -> Callers {
        Callers::Everyone
    }

    fn serve(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()> {
        let core = self.core.clone();
        let stop = self.stop.clone();
        let served = self.open.track_future(async move {
            let over = async {
                stop.cancelled().await;
                tokio::time::sleep(core.config.drain).await;
            };
            tokio::select! {
                () = settled(serve(core.clone(), peer, stream)) => {}
                () = over => {}
            }
        });
        Box::pin(served)
    }
}

async fn serve(core: Arc<Core>, peer: Peer, stream: Stream) {
    Stats::add(&core.stats.peer_requests);
    let from = peer.id;
    let entered = core.from_peers.enter(&from, core.config.peer_requests_max);
    let full = entered.is_none();
    let caller = Caller::Peer(peer);
    let service = service_fn(|request: Request<Incoming>| {
        let (core, caller) = (&core, &caller);
        async move {
            Ok::<_, Infallible>(if full {
                ApiError::full("This node, for yours,", std::time::Duration::from_secs(1)).into_response()
            } else {
                core.answer(caller, request).await
            })
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(core.config.header_timeout)
        .max_buf_size(BUFFER_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(peer = from.short(), error = chain(&error), "a peer's request ended early");
    }
}
