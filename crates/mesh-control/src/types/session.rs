//! Sessions: what they are, and what is asked of them.
//!
//! Wherever a request has a field `session`, it is an [`Address`] as text: an id, the beginning of one or a name, each with
//! `@NODE` behind it when the session is not of the answering node, or to say which node is meant. Without `@NODE` the
//! answering node looks among its own sessions first, then among those of its peers that it has seen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::node::{Role, words};
use crate::paths::with_query;

/// Longest request body that a node reads where prompts are sent, bytes: one part of 32 MiB as base64.
pub const PROMPT_BODY_BYTES_MAX: usize = 48 * 1024 * 1024;

/// Something at a node: `WHAT` or `WHAT@NODE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address<'a> {
    /// A session's id, the beginning of one or its name; or an agent's name.
    pub what: &'a str,
    /// The node's name, its id or a unique prefix of it; none without an `@`.
    pub node: Option<&'a str>,
}

impl<'a> Address<'a> {
    /// Reads an address. The last `@` divides it; one at either end is part of the name.
    pub fn of(text: &'a str) -> Self {
        match text.rsplit_once('@') {
            Some((what, node)) if !what.is_empty() && !node.is_empty() => Self { what, node: Some(node) },
            _ => Self { what: text, node: None },
        }
    }
}

/// A session as the answering node knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SessionView {
    /// Its id, a UUID.
    pub id: String,
    /// Id of its host.
    pub node: String,
    /// The host's name.
    #[serde(default)]
    pub node_name: String,
    /// The agent.
    pub agent: String,
    /// Who may do everything with it.
    #[serde(default)]
    pub owner: PartyView,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Where it stands.
    pub state: SessionState,
    /// The turn under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<u32>,
    /// Prompts that wait for their turn.
    #[serde(default)]
    pub waiting: u32,
    /// The session that it was forked from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentView>,
    /// How often it was handed from node to node, and one.
    #[serde(default)]
    pub epoch: u64,
    /// The number of its last event.
    pub last: u64,
    /// When it was made, Unix milliseconds of its host's clock.
    #[serde(default)]
    pub created_ms: u64,
    /// When its last event was written.
    #[serde(default)]
    pub updated_ms: u64,
    /// With whom it is shared; none where the answer does not say, as in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<Vec<ShareView>>,
    /// What the asking node may do with it; none where the answer does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right: Option<RightView>,
}

/// A node that did something to a session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PartyView {
    /// Its id.
    #[serde(default)]
    pub node: String,
    /// Id of the scope that it came by; none for the host's own user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Its role there; none for the host's own user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// Where a fork was cut.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ParentView {
    /// Id of the parent.
    pub session: String,
    /// The last event of it that counts.
    pub at: u64,
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// Nobody has prompted it.
    Created,
    /// A fork that nobody has prompted.
    Forked,
    /// It goes on; whether a model is asked, tools run or somebody is to decide is not known, as in lists.
    Active,
    /// A model has been asked, or tools run.
    Processing,
    /// It waits for a prompt or a decision.
    Waiting,
    /// The answer is coming.
    Streaming,
    /// It rests.
    Suspended,
    /// It is over.
    Archived,
    /// A word that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

words!(SessionState {
    Created => "created", Forked => "forked", Active => "active", Processing => "processing", Waiting => "waiting",
    Streaming => "streaming", Suspended => "suspended", Archived => "archived", Unknown => "unknown",
});

/// What somebody may do with a session; each right includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum RightView {
    /// Read and fork.
    Watch,
    /// Prompt, steer, cancel and resume too.
    Prompt,
    /// Everything.
    Own,
    /// A word that this version does not know.
    #[serde(other)]
    Unknown,
}

words!(RightView { Watch => "watch", Prompt => "prompt", Own => "own", Unknown => "unknown" });

/// With whom a session is shared, and how far: with one node, or with everybody of a role (or a greater one) in a scope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ShareView {
    /// The node. In answers its id; in requests its name or the beginning of its id too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The scope, with `role`. In answers its id; in requests its name or the beginning of its id too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The role, with `scope`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// How far.
    pub right: RightView,
}

/// Which sessions to list: those for which all that is given holds; the newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SessionQuery {
    /// Of this agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// With this label, as `key=value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// In this state: `created`, `forked`, `active`, `suspended` or `archived`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<SessionState>,
    /// Only those with a turn under way or a prompt that waits.
    #[serde(default)]
    pub unfinished: bool,
    /// Of this node: its name, its id or a unique prefix of it. Default the answering one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Of all nodes that can be reached.
    #[serde(default)]
    pub all: bool,
    /// The page after that of which [`SessionPage::next`] is this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// How many of each node at most. Default 100, at most 1,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

impl SessionQuery {
    pub(crate) fn to_uri(&self, path: &str) -> String {
        let flag = |set: bool| set.then(|| "true".to_owned());
        uri(
            path,
            [
                ("agent", self.agent.clone()),
                ("name", self.name.clone()),
                ("label", self.label.clone()),
                ("state", self.state.map(|state| state.to_string())),
                ("unfinished", flag(self.unfinished)),
                ("node", self.node.clone()),
                ("all", flag(self.all)),
                ("before", self.before.clone()),
                ("limit", self.limit.map(|limit| limit.to_string())),
            ],
        )
    }
}

/// A page of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SessionPage {
    /// The newest first; with `all`, node by node, the answering one first.
    pub sessions: Vec<SessionView>,
    /// For [`SessionQuery::before`] of the next page; none when there is none, and with `all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// With `all`: nodes that did not answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreached: Vec<UnreachedView>,
}

/// A node that was asked and did not answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct UnreachedView {
    /// Its id.
    pub node: String,
    /// Its name.
    #[serde(default)]
    pub node_name: String,
    /// Why.
    #[serde(default)]
    pub why: String,
}

/// Body of `POST /api/sessions`. The same body again is the same session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CreateSession {
    /// Chosen by the caller, once for each session: a UUID of version 7.
    pub id: String,
    /// `NAME@NODE`, or `NAME`: at the answering node when it hosts the agent, else at the peer that suits best.
    pub agent: String,
    /// What the node must be labelled with, such as `gpu`, when none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// What people call it, at most 128 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A part of a prompt.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "lowercase")]
#[non_exhaustive]
pub enum PromptPart {
    /// Text of any length.
    Text {
        /// The text.
        text: String,
    },
    /// An image for a model that sees, at most 32 MiB.
    Image {
        /// Such as `image/png`.
        media_type: String,
        /// Its bytes as base64 (RFC 4648 section 4, with padding).
        data: String,
    },
}

impl std::fmt::Debug for PromptPart {
    /// Leaves out what was said: prompts are never logged.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text { text } => write!(f, "Text({} bytes)", text.len()),
            Self::Image { media_type, data } => write!(f, "Image({media_type}, {} bytes)", data.len()),
        }
    }
}

/// Body of `POST /api/sessions/prompt`. The same body again is the same prompt. It waits at the answering node while the host
/// cannot be reached, at most for the grace period.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PromptSession {
    /// The session.
    pub session: String,
    /// Chosen by the caller, once for each prompt: 1 to 128 bytes.
    pub prompt: String,
    /// What is said, at most 64 parts.
    pub parts: Vec<PromptPart>,
}

/// Body of `POST /api/sessions/steer`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SteerSession {
    /// The session.
    pub session: String,
    /// The turn that is meant; none for the one under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<u32>,
    /// What is said, for the agent to hear before its next model call.
    pub parts: Vec<PromptPart>,
}

/// Body of `POST /api/sessions/cancel`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CancelTurn {
    /// The session.
    pub session: String,
    /// The turn that is meant; none for the one under way and all prompts that wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<u32>,
}

/// Body of `POST /api/sessions/decide`: the answer to a `tool_asked`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DecideTool {
    /// The session.
    pub session: String,
    /// The turn.
    pub turn: u32,
    /// The call.
    pub call: String,
    /// Whether it may run.
    pub allowed: bool,
}

/// Body of `POST /api/sessions/name`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NameSession {
    /// The session.
    pub session: String,
    /// What people call it from now on; none takes the name away.
    #[serde(default)]
    pub name: Option<String>,
}

/// Body of `POST /api/sessions/label`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LabelSession {
    /// The session.
    pub session: String,
    /// All of its labels from now on.
    pub labels: BTreeMap<String, String>,
}

/// Body of `POST /api/sessions/share`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ShareSession {
    /// The session.
    pub session: String,
    /// All of its shares from now on.
    pub shares: Vec<ShareView>,
}

/// Body of `POST /api/sessions/fork`. The same body again is the same fork.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ForkSession {
    /// The parent.
    pub session: String,
    /// The last event of it that counts; none for its last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<u64>,
    /// Chosen by the caller, once for each fork: a UUID of version 7.
    pub id: String,
    /// What people call the fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Body of `POST /api/sessions/suspend`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SuspendSession {
    /// The session.
    pub session: String,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Body of `POST /api/sessions/resume` and `POST /api/sessions/archive`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OneSession {
    /// The session.
    pub session: String,
}

/// Body of `POST /api/sessions/move`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MoveSession {
    /// The session.
    pub session: String,
    /// The node that is to host it: its name, its id or a unique prefix of it.
    pub to: String,
}

/// What was asked of a session stands in its log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Written {
    /// Id of the session.
    pub session: String,
    /// Id of its host.
    #[serde(default)]
    pub node: String,
    /// The number of the event that says it: reading after the one before it shows all that follows.
    pub number: u64,
}

/// An import that took effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ImportedSession {
    /// Id of the session.
    pub session: String,
    /// Its last event.
    pub last: u64,
    /// Events that were not here before.
    #[serde(default)]
    pub added: u64,
}

/// What to search for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SearchQuery {
    /// Words that all stand in one prompt, answer or name.
    pub words: String,
    /// At this node: its name, its id or a unique prefix of it. Default the answering one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How many at most. Default 20, at most 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

impl SearchQuery {
    pub(crate) fn to_uri(&self, path: &str) -> String {
        let limit = self.limit.map(|limit| limit.to_string());
        uri(path, [("words", Some(self.words.clone())), ("node", self.node.clone()), ("limit", limit)])
    }
}

/// An event in which all words stand.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HitView {
    /// Id of the session that wrote it.
    pub session: String,
    /// That session's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The event.
    pub number: u64,
    /// When it was written, Unix milliseconds of its host's clock.
    #[serde(default)]
    pub at_ms: u64,
    /// What stands around the first word; may be empty.
    #[serde(default)]
    pub excerpt: String,
}

/// The query of `GET /api/sessions/show` and `GET /api/sessions/export`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OneQuery {
    /// The session.
    pub session: String,
}

/// The query of `GET /api/sessions/content`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ContentQuery {
    /// The session.
    pub session: String,
    /// The content, which an event of it names: 64 hex digits.
    pub blob: String,
}

/// The query of `GET /api/sessions/events`. A header `Last-Event-ID` counts instead of `after`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EventsQuery {
    /// The session.
    pub session: String,
    /// The events after this number; 0 for all.
    #[serde(default)]
    pub after: u64,
    /// End with what there is, instead of waiting for more.
    #[serde(default)]
    pub past: bool,
}

impl EventsQuery {
    pub(crate) fn to_uri(&self, path: &str) -> String {
        uri(
            path,
            [
                ("session", Some(self.session.clone())),
                ("after", Some(self.after.to_string())),
                ("past", self.past.then(|| "true".to_owned())),
            ],
        )
    }
}

pub(crate) fn uri<const N: usize>(path: &str, fields: [(&str, Option<String>); N]) -> String {
    let set = fields.into_iter().filter_map(|(key, value)| Some((key, value?)));
    set.fold(path.to_owned(), |uri, (key, value)| with_query(&uri, key, &value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_at_sign_divides_what_from_where() {
        let read = |text| {
            let address = Address::of(text);
            (address.what, address.node)
        };
        assert_eq!(read("coder@gpu"), ("coder", Some("gpu")));
        assert_eq!(read("me@home@gpu"), ("me@home", Some("gpu")));
        assert_eq!(read("coder"), ("coder", None));
        assert_eq!(read("@gpu"), ("@gpu", None));
        assert_eq!(read("coder@"), ("coder@", None));
        assert_eq!(read(""), ("", None));
    }

    #[test]
    fn a_query_has_only_what_was_asked() {
        assert_eq!(SessionQuery::default().to_uri("/s"), "/s");
        let query = SessionQuery {
            label: Some("team=a&b".into()),
            state: Some(SessionState::Suspended),
            all: true,
            ..SessionQuery::default()
        };
        assert_eq!(query.to_uri("/s"), "/s?label=team%3Da%26b&state=suspended&all=true");
        let events = EventsQuery { session: "a b@c".into(), after: 7, past: false };
        assert_eq!(events.to_uri("/e"), "/e?session=a%20b%40c&after=7");
    }

    #[test]
    fn what_is_said_stays_out_of_debug_output() {
        let part = PromptPart::Text { text: "SECRET".into() };
        assert!(!format!("{part:?}").contains("SECRET"));
    }
}
