//! Bounded reading of little-endian values.

use std::io::{self, BufRead};

use super::error::Fault;

/// Metadata and tensor table together; the largest vocabularies of today take some 10 MB.
pub(crate) const METADATA_BYTES_MAX: u64 = 256 << 20;
/// One text: chat templates reach some 100 kB.
pub(crate) const STRING_BYTES_MAX: u64 = 4 << 20;

/// Reads at a known position, never beyond [`METADATA_BYTES_MAX`], and allocates only what it has read.
pub(crate) struct Cursor<R> {
    inner: R,
    offset: u64,
}

impl<R: BufRead> Cursor<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, offset: 0 }
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        let mut filled = 0;
        self.chunks(N as u64, |chunk| {
            bytes[filled..filled + chunk.len()].copy_from_slice(chunk);
            filled += chunk.len();
        })?;
        Ok(bytes)
    }

    /// The length of a text, checked.
    pub(crate) fn string_length(&mut self, max: u64) -> Result<u64, Fault> {
        let found = self.u64()?;
        if found > max { Err(Fault::TooLarge { found, max }) } else { Ok(found) }
    }

    pub(crate) fn string(&mut self, max: u64) -> Result<String, Fault> {
        let length = self.string_length(max)?;
        let mut bytes = Vec::new();
        self.chunks(length, |chunk| bytes.extend_from_slice(chunk))?;
        String::from_utf8(bytes).map_err(|_| Fault::Invalid("a text is not UTF-8".into()))
    }

    pub(crate) fn skip(&mut self, count: u64) -> Result<(), Fault> {
        self.chunks(count, |_| ())
    }

    /// Passes the next `count` bytes on in pieces.
    pub(crate) fn chunks(&mut self, count: u64, mut take: impl FnMut(&[u8])) -> Result<(), Fault> {
        let end = self.offset.checked_add(count).filter(|end| *end <= METADATA_BYTES_MAX);
        let end = end.ok_or(Fault::TooLarge { found: count, max: METADATA_BYTES_MAX })?;
        while self.offset < end {
            let buffer = match self.inner.fill_buf() {
                Ok([]) => return Err(Fault::CutOff { needed: end, found: self.offset }),
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let wanted = usize::try_from(end - self.offset).unwrap_or(usize::MAX).min(buffer.len());
            take(&buffer[..wanted]);
            self.inner.consume(wanted);
            self.offset += wanted as u64;
        }
        Ok(())
    }
}
