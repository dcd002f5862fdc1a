//! The messages of `tunnel/1`. Each is one frame: `u32` big endian, then postcard.

use serde::{Deserialize, Serialize};

/// The longest frame: a name of 64 bytes or a text of 200, and their lengths.
pub(crate) const FRAME_BYTES_MAX: usize = 256;

/// The longest text of a refusal in bytes.
const TEXT_BYTES_MAX: usize = 200;

/// The opener's only message; bytes follow the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Open {
    /// A [`ServiceName`](super::ServiceName), unchecked.
    pub(crate) service: String,
}

/// The acceptor's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Every byte from here on belongs to the connection.
    Accepted,
    /// The stream ends.
    Refused {
        /// See [`RefusalCode::to_wire`].
        code: u8,
        /// For a human, bounded.
        text: String,
    },
}

/// Why a peer refuses a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalCode {
    /// Only members open tunnels.
    NotAllowed,
    /// No service of that name is offered.
    UnknownService,
    /// The peer carries as many connections as it may; try later.
    Full,
    /// The service is offered, but nothing answers there.
    Unreachable,
    /// The question was no question: a fault of the opener.
    Malformed,
    /// The peer runs another build of llama.cpp, and two builds do not speak one protocol.
    OtherBuild,
    /// A code of a newer version.
    Other(u8),
}

impl RefusalCode {
    /// Stable for ever.
    pub(crate) fn to_wire(self) -> u8 {
        match self {
            Self::NotAllowed => 1,
            Self::UnknownService => 2,
            Self::Full => 3,
            Self::Unreachable => 4,
            Self::Malformed => 5,
            Self::OtherBuild => 6,
            Self::Other(code) => code,
        }
    }

    pub(crate) fn from_wire(code: u8) -> Self {
        match code {
            1 => Self::NotAllowed,
            2 => Self::UnknownService,
            3 => Self::Full,
            4 => Self::Unreachable,
            5 => Self::Malformed,
            6 => Self::OtherBuild,
            other => Self::Other(other),
        }
    }
}

impl Answer {
    pub(crate) fn refused(code: RefusalCode, text: impl Into<String>) -> Self {
        let mut text = text.into();
        let end =
            (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        Self::Refused { code: code.to_wire(), text }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes() {
        let bytes = |message: &Answer| postcard::to_stdvec(message).expect("encodes");
        let open = Open { service: "rpc".to_owned() };
        assert_eq!(postcard::to_stdvec(&open).expect("encodes"), b"\x03rpc");
        assert_eq!(bytes(&Answer::Accepted), [0]);
        assert_eq!(bytes(&Answer::refused(RefusalCode::Full, "no")), b"\x01\x03\x02no");
    }

    #[test]
    fn the_longest_messages_fit_a_frame() {
        let refused = Answer::refused(RefusalCode::Full, "ü".repeat(1000));
        assert!(postcard::to_stdvec(&refused).expect("encodes").len() <= FRAME_BYTES_MAX);
        let open = Open { service: "x".repeat(crate::SERVICE_NAME_BYTES_MAX) };
        assert!(postcard::to_stdvec(&open).expect("encodes").len() <= FRAME_BYTES_MAX);
    }

    #[test]
    fn codes_round_trip() {
        for code in 0..=u8::MAX {
            assert_eq!(RefusalCode::from_wire(code).to_wire(), code);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = postcard::from_bytes::<Open>(&bytes);
            let _ = postcard::from_bytes::<Answer>(&bytes);
        }
    }
}
