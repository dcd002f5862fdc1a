//! Yamux for strangers: before hello a peer may open a handful of streams, each of which could hold 256 KiB here.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use libp2p::core::{StreamMuxer, muxing::StreamMuxerEvent};

use super::gate::Gate;

/// Hello, and the streams of pings, identification and discovery, twice over.
pub(super) const STRANGER_STREAMS_MAX: usize = 16;

/// A muxer whose inbound streams are counted until the gate is open; beyond the limit the connection ends.
pub(super) struct Gated<M: StreamMuxer> {
    inner: M,
    gate: Arc<Gate>,
    streams: usize,
    /// Taken from `inner` while it was driven, not yet asked for.
    arrived: VecDeque<M::Substream>,
    waiting: Option<Waker>,
}

/// Why the muxer ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error<E: std::error::Error + 'static> {
    #[error("more than {STRANGER_STREAMS_MAX} streams before hello")]
    TooManyStreams,
    #[error(transparent)]
    Muxer(E),
}

impl<M: StreamMuxer> Gated<M> {
    pub(super) fn new(inner: M, gate: Arc<Gate>) -> Self {
        Self { inner, gate, streams: 0, arrived: VecDeque::new(), waiting: None }
    }
}

impl<M> Gated<M>
where
    M: StreamMuxer + Unpin,
    M::Error: 'static,
{
    /// Takes every stream that has arrived. Yamux moves all its bytes in here too.
    fn drive(&mut self, cx: &mut Context<'_>) -> Result<(), Error<M::Error>> {
        while let Poll::Ready(stream) = Pin::new(&mut self.inner).poll_inbound(cx) {
            self.arrived.push_back(stream.map_err(Error::Muxer)?);
            if !self.gate.is_open() {
                self.streams += 1;
                if self.streams > STRANGER_STREAMS_MAX {
                    return Err(Error::TooManyStreams);
                }
            }
            if let Some(waiting) = self.waiting.take() {
                waiting.wake();
            }
        }
        Ok(())
    }
}

impl<M> StreamMuxer for Gated<M>
where
    M: StreamMuxer + Unpin,
    M::Substream: Unpin,
    M::Error: 'static,
{
    type Substream = M::Substream;
    type Error = Error<M::Error>;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        self.drive(cx)?;
        match self.arrived.pop_front() {
            Some(stream) => Poll::Ready(Ok(stream)),
            None => {
                self.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        Pin::new(&mut self.inner).poll_outbound(cx).map_err(Error::Muxer)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.inner).poll_close(cx).map_err(Error::Muxer)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        self.drive(cx)?;
        Poll::Pending
    }
}
