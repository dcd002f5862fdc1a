//! The ways to one node, in the order in which they are used, and why.

use std::time::UNIX_EPOCH;

use mesh_control::{ApiError, PathKind as PathView, PeerRouteView};
use mesh_identity::{NodeId, ScopeId};
use mesh_routing::{Before, PeerRoute};
use mesh_transport::{LinkFacts, PathKind, TransportKind};

use super::scopes::Scope;
use super::{Node, views};

impl Node {
    /// The ways to a node, by its name, its id or a prefix of it.
    pub(crate) fn routes_for_peer(&self, text: &str) -> Result<Vec<PeerRouteView>, ApiError> {
        let (scope, node) = self.resolve_node(text, None)?;
        if node == self.id() {
            return Ok(vec![self.no_way(&scope, &node, "it is this node itself")]);
        }
        let scopes: Vec<ScopeId> = self.scopes().list().iter().map(Scope::id).collect();
        let ordered = self.router().snapshot().routes_for_peer(&node, &scopes, None);
        if ordered.is_empty() {
            return Ok(vec![self.no_way(&scope, &node, "it is down; it is dialed again and again")]);
        }
        let links = self.transport().links();
        let way = |at: usize, route: &PeerRoute| {
            let link = links.iter().find(|link| link.peer.id == node && link.peer.scope == route.scope);
            let place = place(at, route, &ordered);
            let why = match link {
                Some(link) => format!("{}{place}", reason(link)),
                None => format!("no link is open; one is dialed on use{place}"),
            };
            self.peer_route(&route.scope, &node, link, why)
        };
        Ok(ordered.iter().enumerate().map(|(at, route)| way(at, route)).collect())
    }

    fn no_way(&self, scope: &ScopeId, node: &NodeId, why: &str) -> PeerRouteView {
        self.peer_route(scope, node, None, why.to_owned())
    }

    fn peer_route(
        &self,
        scope: &ScopeId,
        node: &NodeId,
        link: Option<&LinkFacts>,
        why: String,
    ) -> PeerRouteView {
        let addr = self.transport().book().to_dial(scope, node);
        let since = link.and_then(|link| link.since.duration_since(UNIX_EPOCH).ok());
        PeerRouteView {
            node: node.to_string(),
            name: self.member_name(scope, node),
            scope: scope.to_string(),
            scope_name: self.scopes().get(scope).map_or_else(String::new, |scope| scope.name),
            transport: link.map(|link| transport(link.path.transport).to_owned()),
            path: link.map_or(PathView::None, |link| views::path_view(link.path.kind)),
            rtt_ms: link.and_then(|link| link.path.rtt).map(|rtt| rtt.as_secs_f64() * 1e3),
            loss_per_mille: link.and_then(|link| link.loss),
            since: since.map(|since| since.as_secs()),
            dialed_here: link.is_some_and(|link| link.opened_by_us),
            addresses: views::addresses(&addr),
            why,
        }
    }
}

/// What carries a link, in a word.
pub(crate) fn transport(kind: TransportKind) -> &'static str {
    match kind {
        TransportKind::Lan => "lan",
        TransportKind::Internet => "internet",
        TransportKind::Memory => "memory",
    }
}

/// Why the link runs as it does.
fn reason(link: &LinkFacts) -> &'static str {
    match (link.path.transport, link.path.kind) {
        (TransportKind::Lan, PathKind::Relayed) => {
            "through another node of the LAN: none of its addresses answers"
        }
        (TransportKind::Lan, _) => "straight over the local network",
        (TransportKind::Internet, PathKind::Relayed) => "through a relay: no direct path has been found",
        (TransportKind::Internet, _) => "straight over the internet transport",
        (TransportKind::Memory, _) => "inside this process",
    }
}

/// Why it stands where it does among the others.
fn place(at: usize, route: &PeerRoute, ordered: &[PeerRoute]) -> String {
    let before = at.checked_sub(1).and_then(|above| ordered.get(above));
    match (before, ordered.get(at + 1)) {
        (Some(above), _) => format!("; the one above {}", Before::of(above, route, None)),
        (None, Some(below)) => format!("; first of {}: it {}", ordered.len(), Before::of(route, below, None)),
        (None, None) => String::new(),
    }
}
