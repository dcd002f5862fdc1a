//! Length-delimited frames: `u32` big endian, then that many bytes, with a bound on both sides.

use std::io;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Memory for a frame grows with the bytes that arrived, at most by this much ahead of them.
const GROWTH_BYTES: usize = 16 * 1024;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The prefix names, or the caller passed, more than allowed. Nothing was allocated for it.
    #[error("frame of {bytes} bytes, {max} allowed")]
    TooLong {
        /// Length in question.
        bytes: u64,
        /// The bound.
        max: usize,
    },
    /// The stream ended inside a frame.
    #[error("stream ended inside a frame")]
    Half,
    /// The bytes are no such message, or more than it.
    #[error("frame does not hold the expected message")]
    Malformed,
    /// Reading or writing failed.
    #[error("frame i/o")]
    Io(#[from] io::Error),
}

/// Reads frames from a stream; keeps a half-read frame between calls.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    bytes_max: usize,
    prefix: [u8; 4],
    prefix_filled: usize,
    body: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames of at most `bytes_max` bytes each.
    pub fn new(inner: R, bytes_max: usize) -> Self {
        Self { inner, bytes_max, prefix: [0; 4], prefix_filled: 0, body: Vec::new() }
    }

    /// The next frame, or `None` at a clean end. Cancel safe: a partly read frame is kept.
    /// After an error the position in the stream is lost; drop the reader.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        while self.prefix_filled < 4 {
            let read = self.inner.read(&mut self.prefix[self.prefix_filled..]).await?;
            match (read, self.prefix_filled) {
                (0, 0) => return Ok(None),
                (0, _) => return Err(FrameError::Half),
                (n, _) => self.prefix_filled += n,
            }
        }
        let claimed = u32::from_be_bytes(self.prefix);
        let wanted = match usize::try_from(claimed) {
            Ok(wanted) if wanted <= self.bytes_max => wanted,
            _ => return Err(FrameError::TooLong { bytes: claimed.into(), max: self.bytes_max }),
        };
        while self.body.len() < wanted {
            let ahead = (wanted - self.body.len()).min(GROWTH_BYTES);
            self.body.reserve(ahead);
            // `take` keeps the read inside this frame.
            let read = (&mut self.inner).take(ahead as u64).read_buf(&mut self.body).await?;
            if read == 0 {
                return Err(FrameError::Half);
            }
        }
        self.prefix_filled = 0;
        Ok(Some(std::mem::take(&mut self.body)))
    }

    /// The next frame as a message. Cancel safe like [`FrameReader::next`].
    pub async fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        self.next().await?.map(|bytes| decode(&bytes)).transpose()
    }

    /// The stream below. A partly read frame is lost.
    pub fn into_inner(self) -> R {
        self.inner
    }
}

/// Writes one frame. Not cancel safe: a dropped future may leave half a frame in the stream.
pub async fn write_frame<W: AsyncWrite + Unpin>(
    to: &mut W,
    body: &[u8],
    bytes_max: usize,
) -> Result<(), FrameError> {
    let framed = frame(body, bytes_max)?;
    to.write_all(&framed).await?;
    Ok(to.flush().await?)
}

/// Encodes one message at once and writes it as a frame. Not cancel safe, like [`write_frame`].
pub fn write_message<'w, W: AsyncWrite + Unpin, T: Serialize>(
    to: &'w mut W,
    message: &T,
    bytes_max: usize,
) -> impl Future<Output = Result<(), FrameError>> + use<'w, W, T> {
    let encoded = encode(message);
    async move { write_frame(to, &encoded?, bytes_max).await }
}

/// The bytes of one frame.
pub(crate) fn frame(body: &[u8], bytes_max: usize) -> Result<Vec<u8>, FrameError> {
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= bytes_max);
    let Some(length) = length else {
        return Err(FrameError::TooLong { bytes: body.len() as u64, max: bytes_max });
    };
    let mut framed = Vec::with_capacity(4 + body.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(body);
    Ok(framed)
}

/// A message as postcard.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    postcard::to_stdvec(message).map_err(|_| FrameError::Malformed)
}

/// A message from postcard; trailing bytes are an error.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
    }

    #[test]
    fn frame_bytes_are_golden() {
        assert_eq!(frame(b"abc", 3).expect("fits"), [0, 0, 0, 3, b'a', b'b', b'c']);
        assert!(matches!(frame(b"abcd", 3), Err(FrameError::TooLong { bytes: 4, max: 3 })));
    }

    #[test]
    fn tells_a_clean_end_from_half_a_frame() {
        runtime().block_on(async {
            assert!(matches!(FrameReader::new(&b""[..], 9).next().await, Ok(None)));
            for half in [&b"\0"[..], b"\0\0\0\x03", b"\0\0\0\x03ab"] {
                assert!(matches!(FrameReader::new(half, 9).next().await, Err(FrameError::Half)), "{half:?}");
            }
            let huge = FrameReader::new(&[0xff; 8][..], 9).next().await;
            assert!(matches!(huge, Err(FrameError::TooLong { bytes: 0xffff_ffff, max: 9 })));
        });
    }

    #[test]
    fn a_dropped_read_keeps_what_it_has() {
        runtime().block_on(async {
            let (mut writer, reader) = tokio::io::duplex(64);
            let mut frames = FrameReader::new(reader, 9);
            for byte in [0, 0, 0, 2, b'h'] {
                writer.write_all(&[byte]).await.expect("writes");
                tokio::select! { biased; _ = frames.next() => panic!("not yet whole"), () = std::future::ready(()) => {} }
            }
            writer.write_all(b"i\0\0\0\0").await.expect("writes");
            assert_eq!(frames.next().await.expect("reads").as_deref(), Some(&b"hi"[..]));
            assert_eq!(frames.next().await.expect("reads").as_deref(), Some(&b""[..]));
        });
    }

    #[test]
    fn a_long_claim_costs_no_memory_before_its_bytes() {
        runtime().block_on(async {
            let mut frames = FrameReader::new(&b"\0\x0f\xff\xffsome"[..], 1 << 20);
            assert!(matches!(frames.next().await, Err(FrameError::Half)));
            assert!(frames.body.capacity() <= 2 * GROWTH_BYTES);
        });
    }

    proptest! {
        #[test]
        fn reads_back_what_was_written(bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8)) {
            let bytes: Vec<u8> = bodies.iter().flat_map(|body| frame(body, 300).expect("fits")).collect();
            runtime().block_on(async {
                let mut frames = FrameReader::new(&bytes[..], 300);
                for body in &bodies {
                    assert_eq!(frames.next().await.expect("reads").as_ref(), Some(body));
                }
                assert!(frames.next().await.expect("reads").is_none());
            });
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            runtime().block_on(async {
                let mut frames = FrameReader::new(&bytes[..], 256);
                while let Ok(Some(frame)) = frames.next().await {
                    assert!(frame.len() <= 256);
                }
            });
        }
    }
}
