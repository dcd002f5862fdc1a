//! An answer as it comes from the gateway.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt};
use http::{Response, StatusCode};
use hyper::body::Incoming;

use super::pieces::Pieces;
use super::{ChatError, Piece};
use crate::gateway::{Wire, is_event_stream};

/// Largest error, and largest answer that came whole, in bytes.
const WHOLE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The connection to the gateway broke before an answer began: the node is about to end.
pub(super) fn broken_before(error: hyper::Error) -> ChatError {
    ChatError::Unavailable(format!("this node's gateway does not answer: {error}"))
}

/// Takes an answer over from its head on.
pub(super) async fn read(
    head: Response<Incoming>,
    wire: Wire,
) -> Result<BoxStream<'static, Result<Piece, ChatError>>, ChatError> {
    let (head, body) = head.into_parts();
    let mut reading = Reading { source: Some((wire, body)), pieces: Pieces::default(), failed: None };
    if head.status == StatusCode::OK && is_event_stream(&head.headers) {
        return Ok(reading.boxed());
    }
    let whole = reading.whole().await?;
    if head.status != StatusCode::OK {
        return Err(ChatError::of_status(head.status, &head.headers, &whole));
    }
    reading.pieces.read_whole(&whole)?;
    Ok(reading.boxed())
}

struct Reading {
    /// None once all was read, or the answer failed.
    source: Option<(Wire, Incoming)>,
    pieces: Pieces,
    /// Told behind the pieces that came before it.
    failed: Option<ChatError>,
}

impl Reading {
    async fn whole(&mut self) -> Result<Vec<u8>, ChatError> {
        let mut whole = Vec::new();
        while let Some(bytes) = poll_fn(|cx| self.poll_bytes(cx)).await? {
            if whole.len() + bytes.len() > WHOLE_BYTES_MAX {
                return Err(ChatError::Refused(format!("an answer of more than {WHOLE_BYTES_MAX} bytes")));
            }
            whole.extend_from_slice(&bytes);
        }
        self.source = None;
        Ok(whole)
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ChatError>> {
        let Some((wire, body)) = &mut self.source else { return Poll::Ready(Ok(None)) };
        loop {
            return Poll::Ready(match ready!(wire.poll_body(body, cx)) {
                None => Ok(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(_) => continue,
                },
                Some(Err(error)) => Err(ChatError::BrokenOff(error.to_string())),
            });
        }
    }
}

impl Stream for Reading {
    type Item = Result<Piece, ChatError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(piece) = this.pieces.pop() {
                return Poll::Ready(Some(Ok(piece)));
            }
            if let Some(error) = this.failed.take() {
                return Poll::Ready(Some(Err(error)));
            }
            if this.source.is_none() {
                return Poll::Ready(None);
            }
            let read = match ready!(this.poll_bytes(cx)) {
                Ok(Some(bytes)) => this.pieces.read(bytes),
                Ok(None) => this.pieces.end().inspect(|()| this.source = None),
                Err(error) => Err(error),
            };
            this.failed = read.err();
            if this.failed.is_some() || this.pieces.is_finished() {
                this.source = None;
            }
        }
    }
}
