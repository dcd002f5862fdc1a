//! Models and who provides them.

use serde::{Deserialize, Serialize};

use super::node::words;
use crate::error::ApiError;

/// A model that the answering node can reach, here or in any of its scopes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelView {
    /// The name to put into a request's `model`.
    pub name: String,
    /// The best state of any provider.
    pub state: ModelState,
    /// Who provides it: the answering node first, then by node id.
    #[serde(default)]
    pub providers: Vec<ProviderView>,
    /// Size of the weights in bytes; none when unknown.
    #[serde(default)]
    pub size_bytes: Option<u64>,
    /// Longest context in tokens; none when unknown.
    #[serde(default)]
    pub context_tokens: Option<u64>,
}

/// One provider of a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProviderView {
    /// Id of the node.
    pub node: String,
    /// Its name.
    #[serde(default)]
    pub node_name: String,
    /// Whether it is the answering node.
    #[serde(default)]
    pub local: bool,
    /// State of the model there.
    pub state: ModelState,
    /// Whether the node runs the model or passes requests on.
    #[serde(default)]
    pub kind: ProviderKind,
    /// Why it is in that state (a failure, the progress of loading); empty when there is nothing to say.
    #[serde(default)]
    pub detail: String,
    /// Names of the nodes whose memory it is split over; empty for a model that runs on one node.
    #[serde(default)]
    pub workers: Vec<String>,
}

/// How far a model is from answering; ordered from best to worst.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ModelState {
    /// It answers.
    Ready,
    /// It is being loaded.
    Loading,
    /// It is on disk and not loaded.
    Cold,
    /// Loading or running it failed.
    Failed,
    /// It was dropped or ended.
    Stopped,
    /// A word that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What stands behind a provider.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// A llama.cpp process of the node.
    Local,
    /// A `[[providers]]` entry of the node's configuration: another server.
    Provider,
    /// A word that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Body of `POST /api/models/load`. The answer comes at once; the state is followed by events or by asking again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LoadRequest {
    /// A model's name, a path to a GGUF file, or what can be downloaded: `org/repo/file.gguf` or a URL.
    pub model: String,
    /// At this node (id, unique prefix or name) instead of the answering one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether to split it over nodes even where one would do; none for what the node's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<bool>,
}

/// Body of `POST /api/models/plan`: nothing is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlanRequest {
    /// A model's name or a path to a GGUF file.
    pub model: String,
    /// Whether to split it over nodes even where one would do; none for what the node's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<bool>,
    /// Tokens of context of one request; none for what the node's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u32>,
}

/// Where a model would run, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PlanView {
    /// The model's name.
    pub model: String,
    /// The arithmetic and the alternatives, for people.
    pub text: String,
    /// The same as data; its fields are those of mesh-inference's `Plan`.
    #[serde(default)]
    pub plan: serde_json::Value,
}

/// Body of `POST /api/models/pull`, which begins or joins a download and answers at once, and of `POST /api/models/pull/stop`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PullRequest {
    /// `org/repo/file.gguf`, a URL, or the name of a model that a member has.
    pub model: String,
}

/// A download of a model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PullView {
    /// What was asked for, without what may be secret in a URL.
    pub model: String,
    /// What it does now.
    pub state: PullState,
    /// Bytes that are here.
    #[serde(default)]
    pub bytes: u64,
    /// Size of all its files; none until it is known.
    #[serde(default)]
    pub total_bytes: Option<u64>,
    /// Bytes that come in a second.
    #[serde(default)]
    pub bytes_per_second: u64,
    /// The same as a phrase for people, with where it comes from and what it waits for.
    #[serde(default)]
    pub detail: String,
    /// Paths of its files, once it is here.
    #[serde(default)]
    pub files: Vec<String>,
    /// What says that they are right, once it is here: `sha256`, `members`, `not` or `here` (it was here before).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

/// What a download does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum PullState {
    /// It waits for its turn, or asks what there is.
    Asking,
    /// It checks what is here already, or the whole.
    Checking,
    /// Bytes come.
    Downloading,
    /// It waits after a fault, and goes on by itself.
    Waiting,
    /// The model is here.
    Done,
    /// It ended without the model; what has come is kept.
    Failed,
    /// It was stopped; what has come is kept.
    Stopped,
    /// A word that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Body of `POST /api/models/drop`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DropRequest {
    /// The model's name.
    pub model: String,
    /// Only at this node (id, unique prefix or name); everywhere when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// What a drop stopped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Dropped {
    /// The model's name.
    pub model: String,
    /// Ids of the nodes that stopped serving it.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// Ids of the nodes that serve it and could not be told, with no promise that they stopped.
    #[serde(default)]
    pub unreached: Vec<String>,
}

words!(ModelState {
    Ready => "ready",
    Loading => "loading",
    Cold => "cold",
    Failed => "failed",
    Stopped => "stopped",
    Unknown => "unknown",
});
words!(PullState {
    Asking => "asking",
    Checking => "checking",
    Downloading => "downloading",
    Waiting => "waiting",
    Done => "done",
    Failed => "failed",
    Stopped => "stopped",
    Unknown => "unknown",
});
words!(ProviderKind { Local => "local", Provider => "provider", Unknown => "unknown" });
