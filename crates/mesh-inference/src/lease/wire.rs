//! The messages of `lease/1`. Each is one frame: `u32` big endian, then postcard.

use mesh_identity::NodeId;
use serde::{Deserialize, Serialize};

/// The longest frame: a name, a build and as many workers as a lease has at most.
pub(crate) const FRAME_BYTES_MAX: usize = 8 * 1024;
/// Longest name of a model, bytes.
pub(crate) const MODEL_BYTES_MAX: usize = 512;
/// Longest text of a build, bytes.
const BUILD_BYTES_MAX: usize = 256;
/// Workers of one model at most; llama.cpp itself knows 16 devices.
const WORKERS_MAX: usize = 64;
/// Longest reason, bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// What a host wants of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The model that is to be split.
    pub model: String,
    /// The host's election: of two hosts the one with the higher number has it.
    pub epoch: u64,
    /// Memory that the worker is to hold.
    pub bytes: u64,
    /// The host's build of llama.cpp; both must be one.
    pub build: String,
    /// The other workers of the model, which may use the same service.
    pub workers: Vec<NodeId>,
}

impl Ask {
    /// Whether all of it is within bounds.
    pub(crate) fn is_bounded(&self) -> bool {
        (1..=MODEL_BYTES_MAX).contains(&self.model.len())
            && self.build.len() <= BUILD_BYTES_MAX
            && self.workers.len() <= WORKERS_MAX
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// The first message, once.
    Ask(Ask),
    /// The host lives and wants the lease on.
    Beat,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToHost {
    /// The memory is the host's from now on, at this service of `rpc/2`, until either side ends the stream.
    Granted {
        /// A `ServiceName`, unchecked.
        service: String,
    },
    /// The stream ends.
    Refused(RefusalWire),
    /// The worker lives and lends on.
    Beat,
    /// The lease is over; the stream ends.
    Ended {
        /// For people.
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RefusalWire {
    /// See [`RefusalCode::to_wire`].
    pub(crate) code: u8,
    /// For people, bounded.
    pub(crate) text: String,
    /// Who has it instead, and its epoch.
    pub(crate) holder: Option<(NodeId, u64)>,
}

/// Why a worker does not lend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalCode {
    /// Another host has the model, by an epoch that is at least as high.
    Held,
    /// Not so much memory is free for others.
    Memory,
    /// Another build of llama.cpp.
    OtherBuild,
    /// This node does not lend, or lends to as many hosts as it may.
    NotLending,
    /// The rpc-server does not start here.
    NoServer,
    /// The question was no question: a fault of the host.
    Malformed,
    /// A code of a newer version.
    Other(u8),
}

impl RefusalCode {
    /// Stable for ever.
    pub(crate) fn to_wire(self) -> u8 {
        match self {
            Self::Held => 1,
            Self::Memory => 2,
            Self::OtherBuild => 3,
            Self::NotLending => 4,
            Self::NoServer => 5,
            Self::Malformed => 6,
            Self::Other(code) => code,
        }
    }

    pub(crate) fn from_wire(code: u8) -> Self {
        match code {
            1 => Self::Held,
            2 => Self::Memory,
            3 => Self::OtherBuild,
            4 => Self::NotLending,
            5 => Self::NoServer,
            6 => Self::Malformed,
            other => Self::Other(other),
        }
    }
}

/// A text cut to what may travel.
pub(crate) fn bounded(mut text: String) -> String {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn host() -> NodeId {
        mesh_identity::NodeKey::from_seed([7; 32]).node_id()
    }

    #[test]
    fn golden_bytes() {
        let ask = Ask { model: "m".into(), epoch: 300, bytes: 5, build: "b1".into(), workers: Vec::new() };
        assert_eq!(postcard::to_stdvec(&ToWorker::Ask(ask)).unwrap(), b"\x00\x01m\xac\x02\x05\x02b1\x00");
        assert_eq!(postcard::to_stdvec(&ToWorker::Beat).unwrap(), [1]);
        let bytes = |message: &ToHost| postcard::to_stdvec(message).unwrap();
        assert_eq!(bytes(&ToHost::Granted { service: "rpc:1".into() }), b"\x00\x05rpc:1");
        let refused = RefusalWire { code: 2, text: "no".into(), holder: None };
        assert_eq!(bytes(&ToHost::Refused(refused)), b"\x01\x02\x02no\x00");
        assert_eq!(bytes(&ToHost::Beat), [2]);
        assert_eq!(bytes(&ToHost::Ended { why: "x".into() }), b"\x03\x01x");
    }

    #[test]
    fn the_longest_messages_fit_a_frame() {
        let ask = Ask {
            model: "m".repeat(MODEL_BYTES_MAX),
            epoch: u64::MAX,
            bytes: u64::MAX,
            build: "b".repeat(BUILD_BYTES_MAX),
            workers: vec![host(); WORKERS_MAX],
        };
        assert!(ask.is_bounded());
        assert!(postcard::to_stdvec(&ToWorker::Ask(ask)).unwrap().len() <= FRAME_BYTES_MAX);
        let text = bounded("ü".repeat(2000));
        let refused = RefusalWire { code: 1, text, holder: Some((host(), u64::MAX)) };
        assert!(postcard::to_stdvec(&ToHost::Refused(refused)).unwrap().len() <= FRAME_BYTES_MAX);
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
            let _ = postcard::from_bytes::<ToWorker>(&bytes);
            let _ = postcard::from_bytes::<ToHost>(&bytes);
        }
    }
}
