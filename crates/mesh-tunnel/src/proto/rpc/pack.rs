//! Frames packed for the way: most of what stands in front of data is zeros.

use super::RpcFault;
use super::command::{HEAD_BYTES, Head, OWN_FIRST};

/// Instead of some frames: their length `u32 LE`, then they themselves as a block of LZ4.
pub(crate) const PACKED: u8 = OWN_FIRST + 2;
/// Of what is packed, and of the frame that it becomes. 4 MiB: a graph of 10,000 tensors, which holds three times those of a
/// model of 100 layers.
pub(crate) const PACKED_BYTES_MAX: usize = 4 << 20;
/// Less is sent as it is: it goes in one packet anyway.
const PACKED_BYTES_MIN: usize = 1024;
const LENGTH_BYTES: usize = 4;

/// The frame that brings whole frames; `None` where it would not be shorter by a quarter.
pub(crate) fn pack(frames: &[u8]) -> Option<Vec<u8>> {
    if !(PACKED_BYTES_MIN..=PACKED_BYTES_MAX).contains(&frames.len()) {
        return None;
    }
    let front = HEAD_BYTES + LENGTH_BYTES;
    let mut frame = vec![0; front + lz4_flex::block::get_maximum_output_size(frames.len())];
    let packed = lz4_flex::block::compress_into(frames, &mut frame[front..]).ok()?;
    if packed > frames.len() / 4 * 3 {
        return None;
    }
    frame.truncate(front + packed);
    let head = Head { command: PACKED, bytes: (LENGTH_BYTES + packed) as u64 };
    frame[..HEAD_BYTES].copy_from_slice(&head.to_bytes());
    frame[HEAD_BYTES..front].copy_from_slice(&u32::try_from(frames.len()).ok()?.to_le_bytes());
    Some(frame)
}

/// The frames that a payload brings.
///
/// # Errors
/// When it is none, or they would be longer than they may.
pub(crate) fn unpack(payload: &[u8]) -> Result<Vec<u8>, RpcFault> {
    let (length, packed) = payload.split_first_chunk::<LENGTH_BYTES>().ok_or(RpcFault::Malformed)?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > PACKED_BYTES_MAX {
        return Err(RpcFault::Malformed);
    }
    let mut frames = vec![0; length];
    let unpacked = lz4_flex::block::decompress_into(packed, &mut frames).map_err(|_| RpcFault::Malformed)?;
    if unpacked == length { Ok(frames) } else { Err(RpcFault::Malformed) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_come_back_and_only_what_becomes_shorter_is_packed() {
        let frames = [vec![1; 700], vec![2; 900]].concat();
        let packed = pack(&frames).expect("shorter");
        assert_eq!(Head::of(&packed), Some(Head { command: 0xE2, bytes: packed.len() as u64 - 9 }));
        assert!(packed.len() < 100);
        assert_eq!(unpack(&packed[HEAD_BYTES..]).expect("unpacks"), frames);
        let noise: Vec<u8> = (0..100u8).flat_map(|at| *blake3::hash(&[at]).as_bytes()).collect();
        assert_eq!(pack(&noise), None);
        assert_eq!(pack(&frames[..1000]), None);
        assert_eq!(pack(&vec![0; PACKED_BYTES_MAX + 1]), None);
    }

    #[test]
    fn golden_bytes() {
        // A literal zero, one copied 1018 times, five literal ones: how it is packed may change, what it means may not.
        let packed = [
            0xE2, 19, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 31, 0, 1, 0, 255, 255, 255, 233, 96, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(Head::of(&packed), Some(Head { command: PACKED, bytes: packed.len() as u64 - 9 }));
        assert_eq!(unpack(&packed[HEAD_BYTES..]).expect("unpacks"), [0; 1024]);
    }

    #[test]
    fn a_length_that_is_not_that_of_the_frames_is_refused() {
        let mut packed = pack(&[0; 2000]).expect("shorter");
        for length in [0, 1999, 2001, u32::MAX] {
            packed[9..13].copy_from_slice(&length.to_le_bytes());
            assert!(unpack(&packed[HEAD_BYTES..]).is_err(), "{length}");
        }
        assert!(unpack(&[0; 3]).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), length in 0..70_000u32) {
            let _ = unpack(&bytes);
            let _ = unpack(&[&length.to_le_bytes()[..], &bytes].concat());
        }
    }
}
