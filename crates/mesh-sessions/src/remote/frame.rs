//! Frames of `session/1`.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use mesh_transport::{FrameError, FrameReader, RecvStream, SendStream, write_frame};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncBufRead;
use tokio_util::io::StreamReader;

use crate::proto::wire::{FRAME_BYTES_MAX, PIECE, PIECE_BYTES_MAX};

/// A stream whose other side is not there, or does not follow the protocol.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// Nothing came in time, or nothing could be written.
    #[error("nothing was heard or taken for {0:?}")]
    Silent(Duration),
    /// The stream ended.
    #[error("the stream ended")]
    Ended,
    /// Other bytes than the protocol has.
    #[error("a frame that does not follow the protocol")]
    Malformed,
    /// Reading or writing failed.
    #[error("stream")]
    Frame(#[from] FrameError),
}

/// Reads frames, each within its time. Cancel safe.
pub(super) struct Reader(FrameReader<RecvStream>);

impl Reader {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self(FrameReader::new(stream, FRAME_BYTES_MAX))
    }

    /// The next frame; `None` at a proper end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        Ok(self.0.next().await?)
    }

    pub(super) async fn message<T: DeserializeOwned>(&mut self, within: Duration) -> Result<T, Broken> {
        let frame = tokio::time::timeout(within, self.next()).await.map_err(|_| Broken::Silent(within))??;
        parse(&frame.ok_or(Broken::Ended)?)
    }

    /// A content of that length, in pieces.
    pub(super) async fn content(&mut self, bytes: u64, within: Duration) -> Result<Bytes, Broken> {
        let wanted = usize::try_from(bytes).map_err(|_| Broken::Malformed)?;
        // Grows with what has come, not with what was claimed.
        let mut content = Vec::new();
        while content.len() < wanted {
            let frame =
                tokio::time::timeout(within, self.next()).await.map_err(|_| Broken::Silent(within))??;
            let frame = frame.ok_or(Broken::Ended)?;
            match frame.split_first() {
                Some((&PIECE, piece)) if !piece.is_empty() && content.len() + piece.len() <= wanted => {
                    content.extend_from_slice(piece);
                }
                _ => return Err(Broken::Malformed),
            }
        }
        Ok(content.into())
    }
}

impl Reader {
    /// Pieces up to an empty one, as one reader. What breaks off is an error of it.
    pub(super) fn pieces(&mut self, within: Duration) -> impl AsyncBufRead + Send + '_ {
        let pieces = stream::unfold(self, move |frames| async move {
            let frame = tokio::time::timeout(within, frames.next()).await.map_err(|_| Broken::Silent(within));
            let piece = match frame.flatten() {
                Ok(Some(frame)) if frame == [PIECE] => return None,
                Ok(Some(frame)) if frame.first() == Some(&PIECE) => Ok(Bytes::from(frame).slice(1..)),
                Ok(Some(_)) => Err(Broken::Malformed),
                Ok(None) => Err(Broken::Ended),
                Err(broken) => Err(broken),
            };
            Some((piece.map_err(io::Error::other), frames))
        });
        StreamReader::new(Box::pin(pieces))
    }
}

pub(super) fn parse<T: DeserializeOwned>(frame: &[u8]) -> Result<T, Broken> {
    serde_json::from_slice(frame).map_err(|_| Broken::Malformed)
}

/// Writes one message. Not cancel safe: a dropped future may leave half a frame.
pub(super) async fn write<T: Serialize>(
    to: &mut SendStream,
    message: &T,
    within: Duration,
) -> Result<(), Broken> {
    let frame = serde_json::to_vec(message).map_err(|error| Broken::Frame(io::Error::other(error).into()))?;
    timed(write_frame(to, &frame, FRAME_BYTES_MAX), within).await
}

/// Writes a content in pieces. Not cancel safe.
pub(super) async fn write_content(
    to: &mut SendStream,
    content: &[u8],
    within: Duration,
) -> Result<(), Broken> {
    let mut frame = Vec::with_capacity(PIECE_BYTES_MAX + 1);
    for piece in content.chunks(PIECE_BYTES_MAX) {
        frame.clear();
        frame.push(PIECE);
        frame.extend_from_slice(piece);
        timed(write_frame(to, &frame, FRAME_BYTES_MAX), within).await?;
    }
    Ok(())
}

pub(super) async fn timed(
    writing: impl Future<Output = Result<(), FrameError>>,
    within: Duration,
) -> Result<(), Broken> {
    Ok(tokio::time::timeout(within, writing).await.map_err(|_| Broken::Silent(within))??)
}
