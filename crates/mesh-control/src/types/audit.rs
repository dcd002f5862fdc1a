//! The audit trail of `GET /api/audit`.

use serde::{Deserialize, Serialize};

use super::invite::RevokedKind;
use crate::paths::with_query;

/// What to show of the trail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AuditQuery {
    /// In one scope: its name, its id or a unique prefix of the id; a scope that was left too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// From then on, Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// About or by one node: its name, its id or a unique prefix of it; one that is gone too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How many rows at most, the newest. Default 100, at most 5,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Whether to check the chain of all rows too.
    #[serde(default)]
    pub verify: bool,
}

impl AuditQuery {
    pub(crate) fn to_uri(&self, path: &str) -> String {
        let mut uri = path.to_owned();
        let fields = [
            ("scope", self.scope.clone()),
            ("since", self.since.map(|since| since.to_string())),
            ("node", self.node.clone()),
            ("limit", self.limit.map(|limit| limit.to_string())),
            ("verify", self.verify.then(|| "true".to_owned())),
        ];
        for (key, value) in fields {
            if let Some(value) = value {
                uri = with_query(&uri, key, &value);
            }
        }
        uri
    }
}

/// The rows that fit, and how the chain stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AuditView {
    /// Oldest first.
    pub entries: Vec<AuditEntry>,
    /// The check of the chain, when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<AuditChain>,
}

/// One row of the trail.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AuditEntry {
    /// Its number: 1, 2, 3 and so on.
    pub number: u64,
    /// When, Unix seconds of the node's clock.
    pub at: u64,
    /// What: `founded`, `invited`, `ended`, `admitted`, `joined`, `seen`, `renewed`, `appointed`, `revoked`, `uncertified`, `expired`, `left`.
    pub kind: String,
    /// Id of the scope, 64 hex digits.
    pub scope: String,
    /// What the scope was called; may be empty.
    #[serde(default)]
    pub scope_name: String,
    /// Id of the node or invite that the row is about.
    pub subject: String,
    /// Which of both.
    pub subject_kind: RevokedKind,
    /// The subject's name then; may be empty.
    #[serde(default)]
    pub subject_name: String,
    /// Id of the node that did it, or whose signature says so; empty when not known.
    #[serde(default)]
    pub actor: String,
    /// The actor's name then; may be empty.
    #[serde(default)]
    pub actor_name: String,
    /// The rest. `docs/protocols/audit.md` lists the fields of each kind.
    #[serde(default)]
    pub details: serde_json::Map<String, serde_json::Value>,
    /// Hash of the row before it, 64 hex digits.
    pub previous: String,
    /// Its own hash, 64 hex digits.
    pub hash: String,
}

/// How the chain of rows stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AuditChain {
    /// Whether every row that is kept follows from the one before it.
    pub holds: bool,
    /// Number of the first row that is kept.
    pub first: u64,
    /// Number of the last row; 0 for an empty trail.
    pub last: u64,
    /// Hash of the last row, 64 hex digits. Noted elsewhere, it shows later whether everything up to it was rewritten.
    pub hash: String,
    /// At how many places it breaks.
    #[serde(default)]
    pub breaks: u64,
    /// Number of the first row that breaks it; none when it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<u64>,
    /// What is wrong there, for people; none when it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_only_what_was_asked() {
        assert_eq!(AuditQuery::default().to_uri("/api/audit"), "/api/audit");
        let all = AuditQuery {
            scope: Some("my home".into()),
            since: Some(7),
            node: Some("lap".into()),
            limit: Some(3),
            verify: true,
        };
        assert_eq!(all.to_uri("/a"), "/a?scope=my%20home&since=7&node=lap&limit=3&verify=true");
    }
}
