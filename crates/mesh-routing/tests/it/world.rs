//! Small worlds to decide in.

use std::time::{Duration, Instant};

use mesh_identity::{NodeId, NodeKey, NodeName, Role, ScopeId};
use mesh_routing::{
    Config, LinkFacts, LocalFacts, Network, Offer, Outcome, PeerFacts, Query, Router, Target,
};

pub(crate) const MODEL: &str = "qwen3-8b";

pub(crate) fn node(number: u8) -> NodeId {
    NodeKey::from_seed([number; 32]).node_id()
}

pub(crate) fn scope(number: u8) -> ScopeId {
    ScopeId::from_bytes([number; 32])
}

pub(crate) fn peer(number: u8) -> Target {
    Target::Peer { scope: scope(1), node: node(number) }
}

pub(crate) fn lan(ms: u64) -> Option<LinkFacts> {
    Some(LinkFacts {
        relayed: false,
        network: Network::Lan,
        rtt: Some(Duration::from_millis(ms)),
        loss: None,
    })
}

pub(crate) fn relayed() -> Option<LinkFacts> {
    Some(LinkFacts {
        relayed: true,
        network: Network::Internet,
        rtt: Some(Duration::from_millis(1)),
        loss: None,
    })
}

/// A peer named `peer-<number>` on the LAN with this offer.
pub(crate) fn facts(number: u8, offer: Offer) -> PeerFacts {
    let mut facts = PeerFacts::new(NodeName::new(format!("peer-{number}")).unwrap());
    facts.link = lan(1);
    facts.offers.push(offer);
    facts
}

/// A router in scope 1 as a member, and the time it started at.
pub(crate) struct World {
    pub(crate) router: Router,
    pub(crate) start: Instant,
}

impl World {
    pub(crate) fn new() -> Self {
        let start = Instant::now();
        let router = Router::new(Config::default(), start);
        router.update(|table| table.set_scope(scope(1), Role::Member));
        Self { router, start }
    }

    pub(crate) fn local(self, offer: Offer) -> Self {
        self.router
            .update(|table| table.set_local(LocalFacts { offers: vec![offer], ..LocalFacts::default() }));
        self
    }

    pub(crate) fn peer(self, number: u8, facts: PeerFacts) -> Self {
        self.router.update(|table| table.set_peer(scope(1), node(number), facts));
        self
    }

    pub(crate) fn observe(&self, target: Target, milliseconds: u64, ok: bool) {
        let outcome = Outcome { latency: Duration::from_millis(milliseconds), ok };
        self.router.observe(&target, MODEL, outcome, self.start);
    }
}

pub(crate) fn query() -> Query {
    Query::new(MODEL, vec![scope(1)])
}
