//! Reading ahead of the frames.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

/// A buffer that grew beyond this for one frame is given back after it.
const KEPT_BYTES: usize = 1 << 20;

/// Reads once, with room for a chunk at least, and for no more than twice of what is there where a long frame is awaited.
/// Whether there was anything. Cancel safe.
pub(super) async fn fill<R>(from: &mut R, to: &mut BytesMut, needed: usize, chunk: usize) -> io::Result<bool>
where
    R: AsyncRead + Unpin,
{
    let missing = needed.saturating_sub(to.len());
    let room = missing.min(to.len().max(chunk)).max(chunk);
    if to.is_empty() && to.capacity() > KEPT_BYTES.max(room) {
        *to = BytesMut::with_capacity(room);
    }
    to.reserve(room);
    Ok(from.read_buf(to).await? > 0)
}
