//! Nodes as the answering node sees them, and pings.

use serde::{Deserialize, Serialize};

/// One node in one scope; a node that shares two scopes with us appears once for each.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NodeView {
    /// Its id (`12D3KooW…`).
    pub id: String,
    /// The name that its grant carries.
    pub name: String,
    /// Id of the scope, 64 hex digits.
    pub scope: String,
    /// Name of the scope; may be empty.
    #[serde(default)]
    pub scope_name: String,
    /// Its role there.
    pub role: Role,
    /// Whether it lives.
    pub state: NodeState,
    /// How a link to it runs, if one is open.
    #[serde(default)]
    pub path: PathKind,
    /// What carries that link: `lan` or `internet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// Why the last attempt to link with it failed, while there is no link: others may reach it all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreached: Option<String>,
    /// Round trip of the open link in milliseconds.
    #[serde(default)]
    pub rtt_ms: Option<f64>,
    /// Addresses it announces: `IP:PORT` and relay URLs.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Models it serves, by name.
    #[serde(default)]
    pub models: Vec<String>,
    /// Labels it publishes, such as `gpu`.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Memory for models, as it says itself; none when unknown.
    #[serde(default)]
    pub memory: Option<MemoryView>,
    /// Its software version; none when unknown.
    #[serde(default)]
    pub version: Option<String>,
    /// Since when it is in this state, Unix seconds of the answering node's clock.
    #[serde(default)]
    pub since: u64,
}

/// Memory that a node has for models.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemoryView {
    /// All of it, bytes.
    pub total_bytes: u64,
    /// What is free now, bytes.
    pub free_bytes: u64,
    /// The most it lends (`--max-vram`), bytes; none for no cap.
    #[serde(default)]
    pub cap_bytes: Option<u64>,
}

/// What a node may do in a scope.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything.
    Member,
    /// Use what is shared with clients. The default, being the narrower.
    #[default]
    Client,
    /// A word that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Whether a node lives, as far as the answering node knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// The answering node itself.
    #[serde(rename = "self")]
    Me,
    /// It answers.
    Alive,
    /// It stopped answering; it may still refute that.
    Suspect,
    /// It is gone, or it said goodbye.
    Down,
    /// A word that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// How the bytes to a node travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    /// Straight to it.
    Direct,
    /// Through a relay.
    Relayed,
    /// Inside one process (tests).
    Memory,
    /// No link is open now.
    #[default]
    None,
    /// A word that this version does not know.
    #[serde(other)]
    Unknown,
}

/// Body of `POST /api/ping`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PingRequest {
    /// A node's id, a unique prefix of it, or its name.
    pub node: String,
    /// How many pings, 1 to 100; 1 when absent.
    #[serde(default)]
    pub count: Option<u32>,
}

/// One answered ping.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Pong {
    /// Round trip in milliseconds.
    pub rtt_ms: f64,
    /// How it travelled.
    pub path: PathKind,
}

macro_rules! words {
    ($type:ty { $($variant:ident => $word:literal),* $(,)? }) => {
        impl std::fmt::Display for $type {
            /// Writes the word of the wire.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(match self { $(Self::$variant => $word),* })
            }
        }
    };
}
pub(crate) use words;

words!(Role { Member => "member", Client => "client", Unknown => "unknown" });
words!(NodeState { Me => "self", Alive => "alive", Suspect => "suspect", Down => "down", Unknown => "unknown" });
words!(PathKind { Direct => "direct", Relayed => "relayed", Memory => "memory", None => "none", Unknown => "unknown" });
