//! What sessions and their parts are called by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A session, named by its first host and by nobody else again.
///
/// A UUID of version 7: ids in order are sessions in order of their making, as far as clocks agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(Uuid);

/// The text is no session id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a session id (expected a UUID such as 0197a5c2-…)")]
pub struct InvalidSessionId;

impl SessionId {
    /// The session of this UUID.
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// Its 16 bytes, as stores and wires keep them.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SessionId {
    type Err = InvalidSessionId;

    fn from_str(text: &str) -> Result<Self, InvalidSessionId> {
        Uuid::try_parse(text).map(Self).map_err(|_| InvalidSessionId)
    }
}

/// The place of an event in its session's log: the first has 1, each next one more, without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventNumber(pub u64);

impl EventNumber {
    /// Before the first event: who has read nothing has read up to here.
    pub const START: Self = Self(0);

    /// The number of the event that follows.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for EventNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A turn of a session: the first is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TurnNumber(pub u32);

impl fmt::Display for TurnNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "turn {}", self.0)
    }
}

/// A content by the BLAKE3 hash of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobId(pub [u8; 32]);

impl BlobId {
    /// The id of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobId({self})")
    }
}

/// The text is no blob id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a blob id (expected 64 hex digits)")]
pub struct InvalidBlobId;

impl FromStr for BlobId {
    type Err = InvalidBlobId;

    fn from_str(text: &str) -> Result<Self, InvalidBlobId> {
        let hash = blake3::Hash::from_hex(text).map_err(|_| InvalidBlobId)?;
        Ok(Self(*hash.as_bytes()))
    }
}

impl Serialize for BlobId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlobId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A short text that a caller chose, bounded and printable.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $error:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        #[doc = concat!("The text is no ", $what, ".")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
        #[error("not {} (expected 1 to {} bytes without control characters)", $what, $max)]
        pub struct $error;

        impl $name {
            /// The longest, in bytes.
            pub const MAX_BYTES: usize = $max;

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, $error> {
                let fits = (1..=$max).contains(&text.len());
                (fits && !text.chars().any(char::is_control)).then_some(Self(text)).ok_or($error)
            }
        }

        impl FromStr for $name {
            type Err = $error;

            fn from_str(text: &str) -> Result<Self, $error> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// An agent, by the id of its configuration.
    AgentId, InvalidAgentId, "an agent id", 128
}

impl AgentId {
    /// What stands for the agent of a board: nobody, and no agent of a configuration, which has no `@` in its id.
    pub fn board() -> Self {
        Self("@board".to_owned())
    }

    /// Whether it is that one.
    pub fn is_board(&self) -> bool {
        self.0 == "@board"
    }
}

name! {
    /// A prompt, by the id that its caller chose: a prompt that comes twice under one id is one prompt.
    PromptId, InvalidPromptId, "a prompt id", 128
}
impl From<Uuid> for PromptId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid.to_string())
    }
}

name! {
    /// A tool call, by the id that the model gave it; unique within its turn.
    ToolCallId, InvalidToolCallId, "a tool call id", 128
}
name! {
    /// What people call a session.
    SessionName, InvalidSessionName, "a session name", 128
}
