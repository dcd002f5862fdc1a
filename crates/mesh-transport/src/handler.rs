//! What serves a protocol.

use std::{future::Future, sync::Arc};

use futures_util::future::BoxFuture;

use crate::{peer::Peer, stream::Stream};

/// Serves the streams of one protocol. The caller's verified identity is a value in its hand.
pub trait Handler: Send + Sync + 'static {
    /// Serves one stream. A stream dropped without `shutdown` reaches the caller as cut off.
    ///
    /// The future runs on a task of the link: once the link has ended it is dropped after
    /// [`crate::Config::handler_grace`], so it must be safe to drop at any await.
    fn serve(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()>;
}

struct HandlerFn<F>(F);

impl<F, Fut> Handler for HandlerFn<F>
where
    F: Fn(Peer, Stream) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    fn serve(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()> {
        Box::pin((self.0)(peer, stream))
    }
}

/// A handler from a closure.
pub fn handler_fn<F, Fut>(serve: F) -> Arc<dyn Handler>
where
    F: Fn(Peer, Stream) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    Arc::new(HandlerFn(serve))
}
