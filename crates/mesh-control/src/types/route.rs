//! Routes: where a request for a model would go now, and why.

use serde::{Deserialize, Serialize};

use super::model::ModelState;
use super::node::PathKind;

/// One candidate for a model's requests, best first within its model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RouteView {
    /// The model.
    pub model: String,
    /// Where the request would go.
    pub target: RouteTarget,
    /// Place in the order, 0 for the one that would be taken first.
    pub rank: u32,
    /// How the bytes travel; `none` for the node itself and for a link that opens on use.
    #[serde(default)]
    pub path: PathKind,
    /// Round trip in milliseconds; none when unknown.
    #[serde(default)]
    pub rtt_ms: Option<f64>,
    /// State of the model there.
    #[serde(default)]
    pub state: ModelState,
    /// Why it stands at this place, for a reader.
    #[serde(default)]
    pub why: String,
}

/// One way to a node: a scope that both are in, and the link there. In order, the one that is used first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PeerRouteView {
    /// Id of the node.
    pub node: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Id of the scope, 64 hex digits.
    pub scope: String,
    /// Name of the scope; may be empty.
    #[serde(default)]
    pub scope_name: String,
    /// What carries the link: `lan`, `internet`; none while no link is open.
    #[serde(default)]
    pub transport: Option<String>,
    /// How the bytes travel.
    #[serde(default)]
    pub path: PathKind,
    /// Round trip in milliseconds; none when unknown.
    #[serde(default)]
    pub rtt_ms: Option<f64>,
    /// Packets lost of a thousand; none when unknown.
    #[serde(default)]
    pub loss_per_mille: Option<u16>,
    /// Since when the link stands, Unix seconds; none while no link is open.
    #[serde(default)]
    pub since: Option<u64>,
    /// Whether the answering node dialed it.
    #[serde(default)]
    pub dialed_here: bool,
    /// Where the node can be dialed: `IP:PORT` and relay URLs, in the order in which they are tried.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Why it stands at this place, for a reader.
    #[serde(default)]
    pub why: String,
}

/// Where a request goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum RouteTarget {
    /// The answering node itself.
    Local,
    /// A peer.
    Peer {
        /// Id of the scope, 64 hex digits.
        scope: String,
        /// Id of the node.
        node: String,
        /// Its name.
        #[serde(default)]
        name: String,
    },
    /// A kind that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Whose model an agent of the node asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AgentRouteView {
    /// The agent.
    pub agent: String,
    /// Its model.
    #[serde(default)]
    pub model: String,
    /// `any` (this node first, then peers), `local` (this node alone), or a node as it was written.
    pub to: String,
    /// Id of the node that this means now; none for `any`, and for a name that no one node has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether it was set at runtime; else the configuration says so.
    #[serde(default)]
    pub set: bool,
}

/// Body of `POST /api/routes/agents`. It holds from the agent's next model call on, over restarts too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SetAgentRoute {
    /// The agent.
    pub agent: String,
    /// `any`, `local`, or a node: its name, its id or a unique prefix of it; none for what the configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}
