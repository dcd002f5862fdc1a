//! Log lines of the answering node.

use serde::{Deserialize, Serialize};

use super::node::words;
use super::session::uri;

/// Which lines of `GET /api/logs` and `GET /api/logs/events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogQuery {
    /// Lines with a greater number, the first ones; without it the last ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Lines of this level or a graver one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// Lines in which this stands, whatever the case of its letters: in the message, the module or a field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The most lines of one answer. Default 500, at most 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

impl LogQuery {
    pub(crate) fn to_uri(&self, path: &str) -> String {
        uri(
            path,
            [
                ("after", self.after.map(|after| after.to_string())),
                ("level", self.level.map(|level| level.to_string())),
                ("text", self.text.clone()),
                ("limit", self.limit.map(|limit| limit.to_string())),
            ],
        )
    }
}

/// Lines, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogPage {
    /// The lines that fit the query.
    pub lines: Vec<LogLine>,
    /// Everything up to this number was looked at: where to go on.
    pub through: u64,
    /// Lines behind `after` that are not kept any more.
    #[serde(default)]
    pub lost: u64,
}

/// One line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LogLine {
    /// Counts up by one with every line since the node started.
    pub number: u64,
    /// When, Unix milliseconds of the node's clock.
    pub at_ms: u64,
    /// How grave it is.
    pub level: LogLevel,
    /// The module that says it.
    #[serde(default)]
    pub target: String,
    /// What it says.
    #[serde(default)]
    pub message: String,
    /// Its values by name, in order.
    #[serde(default)]
    pub fields: Vec<(String, String)>,
}

/// How grave a log line is, the least first; what a later version calls graver than an error is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Per frame.
    Trace,
    /// Per connection or request.
    Debug,
    /// A change that a user would name.
    Info,
    /// Worth a human's look.
    Warn,
    /// The node, or a part of it, cannot go on.
    Error,
    /// A level that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

words!(LogLevel {
    Unknown => "unknown", Trace => "trace", Debug => "debug", Info => "info", Warn => "warn", Error => "error",
});
