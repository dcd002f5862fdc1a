//! Findings of `GET /api/doctor`.

use serde::{Deserialize, Serialize};

use super::node::words;

/// One thing that was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Finding {
    /// Short name of the check, such as `llama-server`.
    pub check: String,
    /// How it stands.
    #[serde(rename = "state")]
    pub verdict: Verdict,
    /// What was found, one sentence.
    #[serde(default)]
    pub detail: String,
    /// The command or step that mends it; none when nothing is to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// Outcome of a check; ordered from good to bad.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing to do.
    Ok,
    /// Works, with a limit worth knowing.
    Warn,
    /// Does not work.
    Fail,
    /// A word that this version does not know.
    #[default]
    #[serde(other)]
    Unknown,
}

words!(Verdict { Ok => "ok", Warn => "warn", Fail => "fail", Unknown => "unknown" });
