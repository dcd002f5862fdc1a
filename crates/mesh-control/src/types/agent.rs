//! Agents that the answering node can hold sessions with.

use serde::{Deserialize, Serialize};

use super::node::words;

/// An agent, here or at a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AgentView {
    /// What it is called by.
    pub name: String,
    /// Id of the node that hosts it.
    pub node: String,
    /// That node's name.
    #[serde(default)]
    pub node_name: String,
    /// Whether that is the answering node.
    #[serde(default)]
    pub local: bool,
    /// What it is for, in its owner's words; may be empty.
    #[serde(default)]
    pub description: String,
    /// Its model; none when its node does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Names of its tools.
    #[serde(default)]
    pub tools: Vec<String>,
    /// Labels of its node and its own, such as `gpu`.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Whether it can be asked.
    #[serde(default)]
    pub state: AgentState,
}

/// Whether an agent can be asked; ordered from best to worst.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AgentState {
    /// It answers.
    Ready,
    /// It answers, and others are asking already.
    Busy,
    /// Its model does not answer.
    Unready,
    /// Its node does not answer.
    Unreachable,
    /// A word that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

words!(AgentState {
    Ready => "ready", Busy => "busy", Unready => "unready", Unreachable => "unreachable", Unknown => "unknown",
});
