//! What is asked, what is answered, and why.

use std::fmt;
use std::time::Duration;

use mesh_identity::{NodeId, Role, ScopeId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Health, Labels, Share};

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Target {
    /// A backend of this node.
    Local,
    /// A peer, over its link in this scope.
    Peer {
        /// The scope in which it offers the model.
        scope: ScopeId,
        /// The peer.
        node: NodeId,
    },
}

impl Target {
    /// The peer's id; `None` for this node.
    pub fn node(&self) -> Option<NodeId> {
        match self {
            Self::Local => None,
            Self::Peer { node, .. } => Some(*node),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("this node"),
            Self::Peer { node, .. } => write!(f, "peer {}", node.short()),
        }
    }
}

/// On whose behalf a route is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Caller {
    /// The node's own user or agents: everything local, and at peers what they share with this node's role in the scope.
    Owner,
    /// A peer. Only local models whose share admits its role: a peer's request makes no second hop.
    Peer {
        /// Its role in the scope of the link on which it asked.
        role: Role,
    },
}

/// Which nodes may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Provider {
    /// This node first, then peers.
    #[default]
    Any,
    /// This node only.
    Local,
    /// This peer only.
    Node(NodeId),
}

/// What is asked of [`Router::route`](crate::Router::route).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// The model, compared exactly.
    pub model: String,
    /// The scopes whose peers may serve. A scope not named here contributes nothing.
    pub scopes: Vec<ScopeId>,
    /// The scope that wins among equals.
    pub preferred_scope: Option<ScopeId>,
    /// Labels that the serving node or its offer must all have.
    pub labels: Labels,
    /// On whose behalf.
    pub caller: Caller,
    /// Which nodes may serve.
    pub provider: Provider,
}

impl Query {
    /// The owner asks for the model at any node of these scopes.
    pub fn new(model: impl Into<String>, scopes: Vec<ScopeId>) -> Self {
        Self {
            model: model.into(),
            scopes,
            preferred_scope: None,
            labels: Labels::new(),
            caller: Caller::Owner,
            provider: Provider::Any,
        }
    }
}

/// A decision: where to, where else in what order, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The first to try.
    pub target: Target,
    /// The others that could serve now, best first. Using them is for the caller's policy (see
    /// [`FallbackChain`](crate::FallbackChain)).
    pub fallbacks: Vec<Target>,
    /// Why the target, and why not the others. Displays as one line.
    pub why: Reason,
}

/// Why a route is what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Reason {
    /// What decided.
    pub decided_by: DecidedBy,
    /// Who was known to have the model and could not be used.
    pub passed_over: Vec<PassedOver>,
}

/// What decided for the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecidedBy {
    /// This node has the model ready.
    LocalReady,
    /// Nobody else could serve.
    OnlyCandidate,
    /// It has the best way to it: alive, direct, near.
    BestPath,
    /// It rested after failures, and this request tries it.
    Probe,
    /// Of two drawn at random it is less loaded.
    LessLoaded {
        /// The other.
        over: Target,
    },
}

/// A node that has the model and could not be used, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassedOver {
    /// The node.
    pub target: Target,
    /// Why it could not be used.
    pub because: Excluded,
}

/// Why a node that has the model cannot be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Excluded {
    /// The model is being loaded there.
    Loading {
        /// Expected time until ready.
        eta: Option<Duration>,
    },
    /// It has the model on disk only.
    Cold,
    /// Gossip says that it is down.
    Down,
    /// It failed too often and rests.
    Resting {
        /// How much longer.
        retry_in: Duration,
    },
    /// It serves as many requests as it can.
    Full,
    /// A label that was asked for is missing.
    Unlabelled,
}

/// Why there is no route.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NoRoute {
    /// Nobody who may serve this caller has the model (404). Models that are not shared with the caller are unknown to it.
    #[error("unknown model {model}{}", list(" (known: ", known, ")"))]
    UnknownModel {
        /// What was asked for.
        model: String,
        /// What this caller could ask for in these scopes, sorted.
        known: Vec<String>,
    },
    /// The model is known, but nobody can serve it now (503 with Retry-After).
    #[error("model {model} is not ready{}", list(": ", reasons, ""))]
    NotReady {
        /// What was asked for.
        model: String,
        /// Each node that has it, and why it cannot be used.
        reasons: Vec<PassedOver>,
        /// When to ask again.
        retry_after: Duration,
    },
    /// All that could serve are full (429 with Retry-After).
    #[error("all nodes that serve {model} are full{}", list(": ", reasons, ""))]
    Full {
        /// What was asked for.
        model: String,
        /// Each node that has it, and why it cannot be used.
        reasons: Vec<PassedOver>,
        /// When to ask again.
        retry_after: Duration,
    },
    /// The model is served, but by no node with these labels (404): waiting does not help.
    #[error("no node that serves {model} has the labels {}", list("", labels, ""))]
    Unlabelled {
        /// What was asked for.
        model: String,
        /// The labels asked for.
        labels: Vec<String>,
    },
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.target, self.because)
    }
}

impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loading { eta: Some(eta) } => {
                write!(f, "is loading it (about {} s left)", eta.as_secs().max(1))
            }
            Self::Loading { eta: None } => f.write_str("is loading it"),
            Self::Cold => f.write_str("has it on disk only"),
            Self::Down => f.write_str("is down"),
            Self::Resting { retry_in } => {
                write!(f, "failed and is tried again in {:.1} s", retry_in.as_secs_f64())
            }
            Self::Full => f.write_str("is full"),
            Self::Unlabelled => f.write_str("lacks a label that was asked for"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.decided_by {
            DecidedBy::LocalReady => f.write_str("this node has it ready")?,
            DecidedBy::OnlyCandidate => f.write_str("only node that can serve it")?,
            DecidedBy::BestPath => f.write_str("best path")?,
            DecidedBy::Probe => f.write_str("tries a node that failed before")?,
            DecidedBy::LessLoaded { over } => write!(f, "less loaded than {over}")?,
        }
        f.write_str(&list("; passed over: ", &self.passed_over, ""))
    }
}

/// The items separated by commas, or nothing at all.
fn list<T: fmt::Display>(before: &str, items: &[T], after: &str) -> String {
    if items.is_empty() {
        return String::new();
    }
    let items: Vec<_> = items.iter().map(T::to_string).collect();
    format!("{before}{}{after}", items.join(", "))
}

/// Why a candidate cannot be used, from its health.
pub(crate) fn resting(health: Health) -> Option<Excluded> {
    match health {
        Health::Down { retry_in } => Some(Excluded::Resting { retry_in }),
        Health::Up | Health::Probing => None,
    }
}

/// Whether what this node's owner or a peer asks for may be served under this share.
pub(crate) fn local_share_admits(caller: Caller, share: Share) -> bool {
    match caller {
        Caller::Owner => true,
        Caller::Peer { role } => share.admits(role),
    }
}
