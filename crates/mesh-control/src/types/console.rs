//! Links that open the console.

use serde::{Deserialize, Serialize};

/// Asks for a link of `POST /api/console/link`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LinkRequest {
    /// The link lets its user look and change nothing.
    #[serde(default)]
    pub read_only: bool,
}

/// A link that opens the console of the answering node, once, in a browser of the same machine.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConsoleLink {
    /// The link. Whoever opens it first is let in: it is a secret until then.
    pub url: String,
    /// When it stops to be usable, Unix seconds.
    pub expires_at: u64,
    /// Whether it is a watcher's.
    #[serde(default)]
    pub read_only: bool,
}

impl std::fmt::Debug for ConsoleLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleLink").field("read_only", &self.read_only).finish_non_exhaustive()
    }
}

/// The answer of `POST /api/console/close`: nothing, every browser is signed out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ConsoleClosed {}
