//! The messages in front of `rpc/2`. Each is one frame: `u32` big endian, then postcard.

use serde::{Deserialize, Serialize};

use crate::{Weight, WeightId};

/// The longest message: a piece of the list of weights.
pub(crate) const FRAME_BYTES_MAX: usize = 8 + PIECE_WEIGHTS * 32;
/// Weights in a piece of the list: 32 KiB.
const PIECE_WEIGHTS: usize = 1024;
/// Weights in a list, as many as the GGUF reader takes of a file.
pub(crate) const WEIGHTS_MAX: usize = 65_536;
/// The longest description of a build, and the longest file name, in bytes.
const TEXT_BYTES_MAX: usize = 255;

/// The entry's only message; frames follow the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Open {
    /// A [`crate::ServiceName`], unchecked.
    pub(crate) service: String,
    /// Which llama.cpp the host runs.
    pub(crate) build: String,
    pub(crate) weights: Wanted,
}

/// Which list of weights the entry wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wanted {
    /// None: every tensor is sent.
    Nothing,
    /// Whatever there is.
    List,
    /// Only one other than that of this digest, which it has from before.
    Other([u8; 32]),
}

/// The exit's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Frames follow, after a list where one is said to.
    Accepted(Listed),
    /// The stream ends.
    Refused { code: u8, text: String },
}

/// Which weights the exit has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Listed {
    Nothing,
    /// Those that the entry named.
    Same,
    /// So many ids of a file, in [`Piece`]s.
    List {
        file: String,
        count: u32,
    },
}

/// Ids of weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece(pub(crate) Vec<[u8; 32]>);

/// The ids of a list, in the pieces in which they travel. What is beyond the bound is not offered.
pub(crate) fn pieces(weights: &[Weight]) -> impl Iterator<Item = Piece> {
    let weights = &weights[..weights.len().min(WEIGHTS_MAX)];
    weights.chunks(PIECE_WEIGHTS).map(|piece| Piece(piece.iter().map(|weight| weight.id.0).collect()))
}

/// What both ends call a list by.
pub(crate) fn digest(ids: impl Iterator<Item = WeightId>) -> [u8; 32] {
    let mut hash = blake3::Hasher::new();
    ids.take(WEIGHTS_MAX).for_each(|id| _ = hash.update(&id.0));
    *hash.finalize().as_bytes()
}

/// At most 255 bytes of a text.
pub(crate) fn bounded(text: &str) -> String {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text[..end.unwrap_or(0)].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes() {
        let open = Open { service: "rpc".into(), build: "b1".into(), weights: Wanted::List };
        assert_eq!(postcard::to_stdvec(&open).expect("encodes"), b"\x03rpc\x02b1\x01");
        let bytes = |answer: &Answer| postcard::to_stdvec(answer).expect("encodes");
        assert_eq!(bytes(&Answer::Accepted(Listed::Nothing)), [0, 0]);
        assert_eq!(bytes(&Answer::Accepted(Listed::Same)), [0, 1]);
        let list = Listed::List { file: "m".into(), count: 3 };
        assert_eq!(bytes(&Answer::Accepted(list)), b"\x00\x02\x01m\x03");
        assert_eq!(bytes(&Answer::Refused { code: 6, text: "no".into() }), b"\x01\x06\x02no");
    }

    #[test]
    fn the_longest_messages_fit_a_frame() {
        let weight = Weight { id: WeightId([0xff; 32]), fnv: 0, bytes: 0, name: String::new() };
        let all = vec![weight; WEIGHTS_MAX + 1];
        let pieces: Vec<_> = pieces(&all).collect();
        assert_eq!(pieces.iter().map(|piece| piece.0.len()).sum::<usize>(), WEIGHTS_MAX);
        assert!(
            pieces.iter().all(|piece| postcard::to_stdvec(piece).expect("encodes").len() <= FRAME_BYTES_MAX)
        );
        assert_eq!(bounded(&"ü".repeat(200)).len(), 254);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = postcard::from_bytes::<Open>(&bytes);
            let _ = postcard::from_bytes::<Answer>(&bytes);
            let _ = postcard::from_bytes::<Piece>(&bytes);
        }
    }
}
