//! The body of a response: a few own bytes, or a backend's answer passing through.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tracing::Span;

use super::relay::{Broken, Relay};
use super::socket::BusyGuard;
use super::survive::Survivor;

/// What the gateway sends back.
pub(crate) struct Reply {
    source: Source,
    /// Dropped with the reply, when it is sent or given up.
    _busy: Option<BusyGuard>,
    /// Ends with the reply.
    span: Span,
}

enum Source {
    /// Bytes made here. None once sent.
    Whole(Option<Bytes>),
    /// A backend's answer.
    Relay(Box<Relay>),
    /// An answer that may change its backend.
    Survivor(Box<Survivor>),
}

impl Reply {
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { source: Source::Whole((!bytes.is_empty()).then_some(bytes)), _busy: None, span: Span::none() }
    }

    pub(crate) fn relay(relay: Relay) -> Self {
        Self { source: Source::Relay(Box::new(relay)), _busy: None, span: Span::none() }
    }

    pub(crate) fn survivor(survivor: Survivor) -> Self {
        Self { source: Source::Survivor(Box::new(survivor)), _busy: None, span: Span::none() }
    }

    /// Keeps the connection marked as busy until this reply is over.
    pub(crate) fn until_sent(self, busy: BusyGuard) -> Self {
        Self { _busy: Some(busy), ..self }
    }

    /// Keeps the request's span open until this reply is over, and says in it what is said meanwhile.
    pub(crate) fn within(self, span: Span) -> Self {
        Self { span, ..self }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        let _within = this.span.enter();
        match &mut this.source {
            Source::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Relay(relay) => relay.poll_next(cx).map(|next| next.map(|piece| piece.map(Frame::data))),
            Source::Survivor(survivor) => {
                survivor.poll_next(cx).map(|next| next.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(bytes) => bytes.is_none(),
            Source::Relay(relay) => relay.is_done(),
            Source::Survivor(survivor) => survivor.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Source::Relay(relay) => relay.size_hint(),
            Source::Survivor(_) => SizeHint::default(),
        }
    }
}
