//! Demand: which models the gateway is asked for.

use std::sync::Arc;

use mesh_identity::NodeId;
use mesh_inference::gateway::{ModelFacts, NoTarget, PeerRoutes};
use mesh_routing::{InFlight, Target};

use super::Serving;

/// Routing that counts what it is asked for.
pub(crate) struct CountedRoutes<R> {
    pub(crate) routes: R,
    pub(crate) serving: Arc<Serving>,
}

impl<R: PeerRoutes> PeerRoutes for CountedRoutes<R> {
    fn route(&self, model: &str, draw: u64) -> Result<Vec<Target>, NoTarget> {
        self.serving.note_request(model);
        self.routes.route(model, draw)
    }

    fn is_dropped(&self, model: &str) -> bool {
        self.serving.is_dropped(model)
    }

    fn route_to(&self, node: NodeId, model: &str, draw: u64) -> Result<Vec<Target>, NoTarget> {
        self.serving.note_request(model);
        self.routes.route_to(node, model, draw)
    }

    fn models(&self) -> Vec<ModelFacts> {
        self.routes.models()
    }

    fn begin(&self, target: &Target, model: &str) -> Option<InFlight> {
        self.routes.begin(target, model)
    }
}
