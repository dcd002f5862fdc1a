//! What happens at a node, as numbered events.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::invite::Revoked;
use crate::types::model::ModelView;
use crate::types::node::{NodeView, PathKind};
use crate::types::status::Status;

/// A node sends [`HEARTBEAT_FRAME`] when it had nothing else to say for this long; a reader that heard nothing for three
/// times as long takes the stream for dead.
pub const HEARTBEAT: Duration = Duration::from_secs(10);

/// The heartbeat on the wire: a comment, which readers skip.
pub const HEARTBEAT_FRAME: &str = ": heartbeat\n\n";

/// Longest event that a reader takes, bytes. A snapshot of 2,000 nodes at about 1 KiB each fits four times.
pub const EVENT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// One event. The first of a stream is always a [`EventKind::Snapshot`]; a reader that fell behind the node's bounded buffer
/// gets a new snapshot instead of what it missed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Event {
    /// Counts up by one with every event of the node since it started; a gap means that a snapshot follows or preceded.
    pub number: u64,
    /// When it happened, Unix milliseconds of the node's clock.
    pub at_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// How everything stands; replaces what the reader knew.
    Snapshot {
        /// The node itself.
        status: Box<Status>,
        /// The nodes it knows, itself included.
        nodes: Vec<NodeView>,
        /// The models it can reach.
        models: Vec<ModelView>,
    },
    /// A node appeared, or something about it changed (state, path, models, memory).
    Node {
        /// The node as it is now.
        node: Box<NodeView>,
    },
    /// A node was forgotten, or its scope left.
    NodeGone {
        /// Its id.
        id: String,
        /// Id of the scope, 64 hex digits.
        scope: String,
    },
    /// A link opened, closed (`none`) or took another path.
    Link {
        /// Id of the peer.
        id: String,
        /// Id of the scope, 64 hex digits.
        scope: String,
        /// Its path now.
        path: PathKind,
        /// Round trip in milliseconds; none when unknown.
        #[serde(default)]
        rtt_ms: Option<f64>,
    },
    /// A model appeared or changed.
    Model {
        /// The model as it is now.
        model: Box<ModelView>,
    },
    /// Nobody provides this model any more.
    ModelGone {
        /// Its name.
        name: String,
    },
    /// A node used an invite of this node.
    InviteUsed {
        /// Id of the invite.
        invite: String,
        /// Id of the node that joined.
        id: String,
        /// Its name.
        name: String,
        /// Uses so far, this one included.
        uses: u32,
    },
    /// An invite or a node was revoked, here or elsewhere in the scope.
    Revoked {
        /// What was revoked.
        revoked: Revoked,
    },
    /// The node itself changed: a scope joined or left, an address, a warning.
    Status {
        /// The node as it is now.
        status: Box<Status>,
    },
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

impl Event {
    /// The event as a server-sent event: `id:`, `event:` (the type) and one `data:` line, ended by an empty line.
    pub fn to_sse(&self) -> String {
        let data = serde_json::to_string(self).expect("control types have string keys and finite numbers");
        format!("id: {}\nevent: {}\ndata: {data}\n\n", self.number, self.kind.word())
    }
}

impl EventKind {
    /// The value of `type` on the wire.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Snapshot { .. } => "snapshot",
            Self::Node { .. } => "node",
            Self::NodeGone { .. } => "node_gone",
            Self::Link { .. } => "link",
            Self::Model { .. } => "model",
            Self::ModelGone { .. } => "model_gone",
            Self::InviteUsed { .. } => "invite_used",
            Self::Revoked { .. } => "revoked",
            Self::Status { .. } => "status",
            Self::Unknown => "unknown",
        }
    }
}
