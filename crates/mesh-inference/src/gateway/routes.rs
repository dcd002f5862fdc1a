//! What the gateway asks of routing, and mesh-routing's answer to it.

use std::time::{Duration, Instant};

use mesh_identity::{NodeId, ScopeId};
use mesh_routing::{InFlight, NoRoute, Provider, Query, Router, Target};

/// Why routing names no target for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoTarget {
    /// No node offers it.
    Unknown,
    /// Nodes offer it, none can serve it yet.
    NotReady {
        /// What it waits for, for the caller to read.
        reason: String,
        /// When asking again makes sense.
        retry_after: Duration,
    },
    /// Every node that serves it has all the requests it can hold.
    Full {
        /// When asking again makes sense.
        retry_after: Duration,
    },
}

/// A model that routing knows, for `/v1/models`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// The name that requests use.
    pub model: String,
    /// Whether some node could serve it now.
    pub ready: bool,
}

/// Routing as the gateway sees it. Calls are short and never wait.
pub trait PeerRoutes: Send + Sync + 'static {
    /// Targets for one request, best first, fallbacks behind; never empty. `draw` is random and picks among equals.
    fn route(&self, model: &str, draw: u64) -> Result<Vec<Target>, NoTarget>;

    /// Whether somebody ended the serving of a model on purpose, and nobody is left who would take it up again by himself.
    fn is_dropped(&self, _model: &str) -> bool {
        false
    }

    /// As [`PeerRoutes::route`], at this one peer alone.
    fn route_to(&self, node: NodeId, model: &str, draw: u64) -> Result<Vec<Target>, NoTarget>;

    /// All models known, in any order.
    fn models(&self) -> Vec<ModelFacts>;

    /// A request goes to a target: one more in flight there until the returned guard is dropped. The gateway notes the
    /// outcome at the guard, except when the caller left or the target only refused (full, not ready).
    fn begin(&self, target: &Target, model: &str) -> Option<InFlight>;
}

/// Routing of a node without a mesh: its own backends only.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPeers;

impl PeerRoutes for NoPeers {
    fn route(&self, _model: &str, _draw: u64) -> Result<Vec<Target>, NoTarget> {
        Err(NoTarget::Unknown)
    }

    fn route_to(&self, _node: NodeId, _model: &str, _draw: u64) -> Result<Vec<Target>, NoTarget> {
        Err(NoTarget::Unknown)
    }

    fn models(&self) -> Vec<ModelFacts> {
        Vec::new()
    }

    fn begin(&self, _target: &Target, _model: &str) -> Option<InFlight> {
        None
    }
}

/// mesh-routing's [`Router`], asked on behalf of this node's own callers.
pub struct RouterRoutes<F> {
    router: Router,
    scopes: F,
}

impl<F> RouterRoutes<F>
where
    F: Fn() -> Vec<ScopeId> + Send + Sync + 'static,
{
    /// `scopes` returns the scopes whose peers may serve this node's callers, in this moment; it must not wait.
    pub fn new(router: Router, scopes: F) -> Self {
        Self { router, scopes }
    }

    fn query(&self, model: &str) -> Query {
        Query::new(model, (self.scopes)())
    }

    fn ask(&self, query: &Query, draw: u64) -> Result<Vec<Target>, NoTarget> {
        match self.router.route(query, draw, Instant::now()) {
            Ok(route) => {
                tracing::debug!(model = query.model, target = %route.target, why = %route.why, "routed");
                let mut targets = route.fallbacks;
                targets.insert(0, route.target);
                Ok(targets)
            }
            Err(NoRoute::NotReady { reasons, retry_after, .. }) => {
                let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
                Err(NoTarget::NotReady { reason: reasons.join(", "), retry_after })
            }
            Err(NoRoute::Full { retry_after, .. }) => Err(NoTarget::Full { retry_after }),
            Err(_) => Err(NoTarget::Unknown),
        }
    }
}

impl<F> PeerRoutes for RouterRoutes<F>
where
    F: Fn() -> Vec<ScopeId> + Send + Sync + 'static,
{
    fn route(&self, model: &str, draw: u64) -> Result<Vec<Target>, NoTarget> {
        self.ask(&self.query(model), draw)
    }

    fn route_to(&self, node: NodeId, model: &str, draw: u64) -> Result<Vec<Target>, NoTarget> {
        self.ask(&Query { provider: Provider::Node(node), ..self.query(model) }, draw)
    }

    fn models(&self) -> Vec<ModelFacts> {
        let models = self.router.models(&self.query(""), Instant::now());
        models.into_iter().map(|known| ModelFacts { model: known.model, ready: known.ready > 0 }).collect()
    }

    fn begin(&self, target: &Target, model: &str) -> Option<InFlight> {
        Some(self.router.begin(target, model, Instant::now()))
    }
}
