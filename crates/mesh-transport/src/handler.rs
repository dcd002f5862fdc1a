//! What serves a protocol, and to whom.

use std::{future::Future, marker::PhantomData, sync::Arc};

use futures_util::future::BoxFuture;

use crate::{
    error::ResetCode,
    peer::{Caller, Callers, Peer},
    stream::Stream,
};

/// Serves the streams of one protocol. The caller's verified identity is a value in its hand.
pub trait Handler: Send + Sync + 'static {
    /// Who may call. Streams of anybody else are reset with [`ResetCode::NOT_ALLOWED`] before this handler sees them.
    fn callers(&self) -> Callers;

    /// Serves one stream. A stream dropped without `shutdown` reaches the caller as cut off.
    ///
    /// The future runs on a task of the link: once the link has ended it is dropped after
    /// [`crate::Config::handler_grace`], so it must be safe to drop at any await.
    fn serve(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()>;
}

struct HandlerFn<P, F>(F, PhantomData<fn(P)>);

impl<P, F, Fut> Handler for HandlerFn<P, F>
where
    P: Caller,
    F: Fn(P, Stream) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    fn callers(&self) -> Callers {
        P::CALLERS
    }

    fn serve(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()> {
        match P::of(peer) {
            Some(caller) => Box::pin((self.0)(caller, stream)),
            None => {
                stream.reset(ResetCode::NOT_ALLOWED);
                Box::pin(std::future::ready(()))
            }
        }
    }
}

/// A handler from a closure. The type of its first parameter says who may call: [`crate::Member`] or [`Peer`].
pub fn handler_fn<P, F, Fut>(serve: F) -> Arc<dyn Handler>
where
    P: Caller,
    F: Fn(P, Stream) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    Arc::new(HandlerFn(serve, PhantomData))
}
