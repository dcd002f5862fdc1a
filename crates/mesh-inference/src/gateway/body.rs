//! Taking in a request's body: bounded in size, time and in the memory that all bodies share.

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// What one permit of the shared memory stands for, in bytes.
const PERMIT_BYTES: usize = 1024;

/// Memory that request bodies share. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct BodyMemory(Arc<Semaphore>);

/// A body and its share of the memory.
#[derive(Debug)]
pub(crate) struct TakenBody {
    pub(crate) bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

impl TakenBody {
    pub(crate) fn new(bytes: Bytes, share: Option<OwnedSemaphorePermit>) -> Self {
        Self { bytes, _share: share }
    }
}

impl BodyMemory {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Semaphore::new((bytes_max / PERMIT_BYTES).clamp(1, Semaphore::MAX_PERMITS))))
    }

    /// Reads a body of at most `limit` bytes within `time`. A longer one that announces itself is refused unread.
    ///
    /// Cancel safe in that nothing stays taken; what was read is lost.
    pub(crate) async fn take(
        &self,
        headers: &HeaderMap,
        body: Incoming,
        limit: usize,
        time: Duration,
    ) -> Result<TakenBody, ApiError> {
        let announced = announced(headers)?;
        if announced.is_some_and(|bytes| bytes > limit as u64) {
            return Err(ApiError::too_large(limit));
        }
        tokio::time::timeout(time, self.read(body, announced, limit))
            .await
            .map_err(|_| ApiError::slow_body())?
    }

    async fn read(
        &self,
        mut body: Incoming,
        announced: Option<u64>,
        limit: usize,
    ) -> Result<TakenBody, ApiError> {
        let announced = announced.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
        let mut share = self.share(announced)?;
        let mut shared_bytes = announced;
        let mut only: Option<Bytes> = None;
        let mut joined = BytesMut::new();
        let mut len = 0;
        while let Some(frame) = body.frame().await {
            let Ok(piece) = frame.map_err(|_| ApiError::broken_body())?.into_data() else { continue };
            len += piece.len();
            if len > limit {
                return Err(ApiError::too_large(limit));
            }
            if len > shared_bytes {
                // Without an announced length memory is taken by doubling, as the buffer grows.
                let more = shared_bytes.max(piece.len());
                let permit = self.share(more)?;
                match (&mut share, permit) {
                    (Some(share), Some(permit)) => share.merge(permit),
                    (share, permit) => *share = permit,
                }
                shared_bytes += more;
            }
            match only.take() {
                None if joined.is_empty() => only = Some(piece),
                first => {
                    if let Some(first) = first {
                        joined.reserve(announced.max(first.len() + piece.len()));
                        joined.extend_from_slice(&first);
                    }
                    joined.extend_from_slice(&piece);
                }
            }
        }
        Ok(TakenBody { bytes: only.unwrap_or_else(|| joined.freeze()), _share: share })
    }

    /// Takes memory for `bytes`; None for none.
    pub(crate) fn share(&self, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).map_err(|_| ApiError::no_memory())?;
        if permits == 0 {
            return Ok(None);
        }
        self.0.clone().try_acquire_many_owned(permits).map(Some).map_err(|_| ApiError::no_memory())
    }
}

/// The announced length. Hyper has refused requests whose lengths contradict each other.
fn announced(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(header::CONTENT_LENGTH) else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .and_then(|value| value.trim().parse().ok())
        .map(Some)
        .ok_or_else(ApiError::broken_body)
}
