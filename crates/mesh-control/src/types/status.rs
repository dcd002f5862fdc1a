//! What `GET /api/status` says about the answering node.

use serde::{Deserialize, Serialize};

use super::node::{Role, words};

/// The answering node at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Status {
    /// Version of the `qmt-node` that answers, such as `0.1.0`.
    pub version: String,
    /// The node's id: its public key in libp2p's text form (`12D3KooW…`).
    pub node_id: String,
    /// The name it gives itself; a scope's members know it by the name in its grant.
    pub node_name: String,
    /// Its process id.
    pub pid: u32,
    /// Whole seconds since it started.
    pub uptime_secs: u64,
    /// Root of its OpenAI-compatible gateway, such as `http://127.0.0.1:9337`, with the API below `/v1`; none when the
    /// gateway does not run.
    #[serde(default)]
    pub gateway_url: Option<String>,
    /// The console's address; none when it does not run.
    #[serde(default)]
    pub console_url: Option<String>,
    /// The scopes it is in, ordered by name, then id.
    #[serde(default)]
    pub scopes: Vec<ScopeStatus>,
    /// Its open links.
    #[serde(default)]
    pub links: LinkCounts,
    /// What its tunnels have carried since it started.
    #[serde(default)]
    pub tunnels: TunnelCounts,
    /// What became of the answers of its gateway since it started.
    #[serde(default)]
    pub answers: AnswerCounts,
    /// Names of the models that it serves itself, ready or loading.
    #[serde(default)]
    pub models: Vec<String>,
    /// Addresses at which peers can dial it: `IP:PORT` and relay URLs.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Things worth a human's look, each one sentence, such as a setting that this version does not act on.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// How well it goes, by measure.
    #[serde(default)]
    pub health: Vec<HealthView>,
}

/// One measure of how well it goes, graded.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HealthView {
    /// What is measured: `reconnections`, `latency`, `providers`, `errors`.
    pub name: String,
    /// The grade.
    pub grade: Grade,
    /// The value with its unit, for people.
    pub text: String,
    /// The value: a share from 0 to 1, or milliseconds of latency; none when nothing was measured yet.
    #[serde(default)]
    pub value: Option<f64>,
}

/// How good a measure is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Healthy,
    /// Worth a look.
    Warning,
    /// Something is broken.
    Critical,
    /// A word that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

words!(Grade { Healthy => "healthy", Warning => "warning", Critical => "critical", Unknown => "unknown" });

/// Answers that lost a host, and answers that can be resumed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AnswerCounts {
    /// Times that one lost its host in the middle and went on.
    #[serde(default)]
    pub continued: u64,
    /// Ended in a declared error, since nobody could go on.
    #[serde(default)]
    pub lost: u64,
    /// Asked for so that they can be resumed.
    #[serde(default)]
    pub resumable: u64,
    /// Resumed here.
    #[serde(default)]
    pub resumed: u64,
    /// Events that waited for their copy at another member.
    #[serde(default)]
    pub replicated_events: u64,
    /// How long they waited together, in microseconds.
    #[serde(default)]
    pub replication_micros: u64,
    /// Copies that were lost with the member that kept them.
    #[serde(default)]
    pub copies_lost: u64,
    /// Copies made at another member in their place.
    #[serde(default)]
    pub copies_replaced: u64,
    /// Answers kept here now, own ones and copies of others'.
    #[serde(default)]
    pub kept: u64,
}

/// Bytes that tunnels have carried between this node and its peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TunnelCounts {
    /// To peers.
    #[serde(default)]
    pub sent_bytes: u64,
    /// From peers.
    #[serde(default)]
    pub received_bytes: u64,
    /// Weights that crossed the network for a model that this node hosts.
    #[serde(default)]
    pub weights_sent_bytes: u64,
    /// Weights that did not, since the worker has them on its disk.
    #[serde(default)]
    pub weights_by_reference_bytes: u64,
}

/// One scope as the answering node is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ScopeStatus {
    /// The scope's id, 64 hex digits.
    pub id: String,
    /// Its name; empty when it was founded without one.
    pub name: String,
    /// The role of the answering node in it.
    pub role: Role,
    /// Whether the answering node founded it.
    #[serde(default)]
    pub founder: bool,
    /// Members believed alive, the answering node included.
    pub members_alive: u32,
    /// When the node's grant ends, Unix seconds; none for the founder, whose right does not end.
    #[serde(default)]
    pub grant_expires_at: Option<u64>,
    /// Bytes of gossip that the node handed to its links in this scope since it entered it.
    #[serde(default)]
    pub gossip_bytes_sent: u64,
    /// Bytes of gossip that came over its links.
    #[serde(default)]
    pub gossip_bytes_received: u64,
    /// For the scope of uninvited peers: the rule by which they are let in (`client`, `open`, `peers`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
}

/// Open links by path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LinkCounts {
    /// Links whose bytes go straight to the peer.
    pub direct: u32,
    /// Links that go through a relay.
    pub relayed: u32,
}
