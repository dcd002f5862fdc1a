//! What travels on one libp2p stream: records, so that an end is told from a loss and codes reach the other side.
//!
//! libp2p's streams know neither codes nor the difference between an end and a reset (a yamux stream that was reset
//! reads as one that ended), hence each direction is a sequence of records. A record is a kind byte and
//! - `0`, data: a length of two bytes, most significant first, and that many bytes;
//! - `1`, end: nothing; the direction is complete;
//! - `2`, reset: a code of four bytes; the direction was abandoned;
//! - `3`, stop: a code of four bytes; the sender of it no longer reads the *other* direction.

use bytes::{Buf, Bytes, BytesMut};

use crate::error::ResetCode;

const DATA: u8 = 0;
const END: u8 = 1;
const RESET: u8 = 2;
const STOP: u8 = 3;

/// The most bytes in one record: what its length can say.
pub(super) const DATA_BYTES_MAX: usize = u16::MAX as usize;

/// What a reader finds, piece by piece: the bytes of a data record may come in several.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Data(Bytes),
    End,
    Reset(ResetCode),
    Stop(ResetCode),
}

/// A kind that no version knows.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown record {0}")]
pub(super) struct UnknownRecord(u8);

/// Appends a data record with as much of `bytes` as fits into one; returns how much that was.
pub(super) fn put_data(out: &mut Vec<u8>, bytes: &[u8]) -> usize {
    let taken = bytes.len().min(DATA_BYTES_MAX);
    let length = u16::try_from(taken).expect("cut to what two bytes can say");
    out.push(DATA);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&bytes[..taken]);
    taken
}

pub(super) fn put_end(out: &mut Vec<u8>) {
    out.push(END);
}

pub(super) fn put_reset(out: &mut Vec<u8>, code: ResetCode) {
    out.push(RESET);
    out.extend_from_slice(&code.0.to_be_bytes());
}

pub(super) fn put_stop(out: &mut Vec<u8>, code: ResetCode) {
    out.push(STOP);
    out.extend_from_slice(&code.0.to_be_bytes());
}

/// Takes records apart; holds nothing but how much of a data record is still to come.
#[derive(Debug, Default)]
pub(super) struct Reader {
    data_left: usize,
}

impl Reader {
    /// The next piece of what was read; `None` when more must be read first. Takes what it returns out of `read`.
    pub(super) fn next(&mut self, read: &mut BytesMut) -> Result<Option<Piece>, UnknownRecord> {
        loop {
            if self.data_left > 0 {
                if read.is_empty() {
                    return Ok(None);
                }
                let bytes = read.split_to(self.data_left.min(read.len())).freeze();
                self.data_left -= bytes.len();
                return Ok(Some(Piece::Data(bytes)));
            }
            let Some(kind) = read.first().copied() else { return Ok(None) };
            match kind {
                DATA if read.len() >= 3 => {
                    read.advance(1);
                    self.data_left = usize::from(read.get_u16());
                }
                END => {
                    read.advance(1);
                    return Ok(Some(Piece::End));
                }
                RESET | STOP if read.len() >= 5 => {
                    read.advance(1);
                    let code = ResetCode(read.get_u32());
                    return Ok(Some(if kind == RESET { Piece::Reset(code) } else { Piece::Stop(code) }));
                }
                DATA | RESET | STOP => return Ok(None),
                unknown => return Err(UnknownRecord(unknown)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything in `bytes`, fed in parts of `step`, data joined.
    fn pieces(bytes: &[u8], step: usize) -> Result<Vec<Piece>, UnknownRecord> {
        let (mut reader, mut read, mut found) = (Reader::default(), BytesMut::new(), Vec::new());
        for part in bytes.chunks(step.max(1)) {
            read.extend_from_slice(part);
            while let Some(piece) = reader.next(&mut read)? {
                match (found.last_mut(), piece) {
                    (Some(Piece::Data(before)), Piece::Data(more)) => {
                        *before = [before.as_ref(), more.as_ref()].concat().into();
                    }
                    (_, piece) => found.push(piece),
                }
            }
        }
        Ok(found)
    }

    #[test]
    fn the_bytes_are_golden() {
        let mut out = Vec::new();
        assert_eq!(put_data(&mut out, b"abc"), 3);
        put_stop(&mut out, ResetCode(5));
        put_reset(&mut out, ResetCode(0x0102_0304));
        put_end(&mut out);
        assert_eq!(out, b"\x00\x00\x03abc\x03\x00\x00\x00\x05\x02\x01\x02\x03\x04\x01");
    }

    #[test]
    fn a_long_write_is_cut_at_what_a_record_holds() {
        let mut out = Vec::new();
        assert_eq!(put_data(&mut out, &[7; 70_000]), 65_535);
        assert_eq!(out.len(), 65_538);
        assert_eq!(pieces(&out, 1000), Ok(vec![Piece::Data(vec![7; 65_535].into())]));
    }

    #[test]
    fn an_unknown_kind_is_an_error() {
        assert_eq!(pieces(&[1, 9], 2), Err(UnknownRecord(9)));
    }

    proptest! {
        #[test]
        fn records_survive_any_cutting(writes in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..20),
            step in 1..64usize, code in any::<u32>()) {
            let mut out = Vec::new();
            for write in &writes {
                put_data(&mut out, write);
            }
            put_stop(&mut out, ResetCode(code));
            put_end(&mut out);
            let mut wanted = vec![Piece::Stop(ResetCode(code)), Piece::End];
            if !writes.is_empty() {
                wanted.insert(0, Piece::Data(writes.concat().into()));
            }
            prop_assert_eq!(pieces(&out, step), Ok(wanted));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), step in 1..20usize) {
            drop(pieces(&bytes, step));
        }
    }
}
