//! What holds in every world.

use std::collections::BTreeMap;
use std::time::Duration;

use mesh_identity::{NodeId, NodeName, Role, ScopeId};
use mesh_routing::{
    Caller, LinkFacts, Liveness, LocalFacts, Network, Offer, OfferState, Outcome, PeerFacts, Provider, Query,
    Share, Target,
};
use proptest::prelude::*;

use crate::world::{MODEL, World, node, scope};

#[derive(Debug, Clone)]
struct Facts {
    local: Option<Offer>,
    roles: BTreeMap<u8, Role>,
    peers: BTreeMap<(u8, u8), PeerFacts>,
    failing: Vec<(u8, u8)>,
}

fn any_role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Role::Member), Just(Role::Client)]
}

fn any_offer() -> impl Strategy<Value = Offer> {
    let state = prop_oneof![
        4 => Just(OfferState::Ready),
        1 => Just(OfferState::Loading { eta: None }),
        1 => Just(OfferState::Cold),
    ];
    let share = prop_oneof![Just(Share::None), Just(Share::Members), Just(Share::Clients)];
    (state, share, any::<bool>(), proptest::option::of(0..3_u32), 0..3_u32).prop_map(
        |(state, share, gpu, slots, in_flight)| Offer {
            state,
            share,
            labels: if gpu { ["gpu".to_owned()].into() } else { Default::default() },
            slots,
            in_flight,
            ..Offer::ready(MODEL)
        },
    )
}

fn any_peer() -> impl Strategy<Value = PeerFacts> {
    let liveness =
        prop_oneof![3 => Just(Liveness::Alive), 1 => Just(Liveness::Suspect), 1 => Just(Liveness::Down)];
    let network = prop_oneof![Just(Network::Lan), Just(Network::Internet)];
    let link =
        (any::<bool>(), network, proptest::option::of(0..300_u64)).prop_map(|(relayed, network, rtt)| {
            LinkFacts { relayed, network, rtt: rtt.map(Duration::from_millis), loss: None }
        });
    (liveness, proptest::option::of(link), proptest::collection::vec(any_offer(), 0..3)).prop_map(
        |(liveness, link, offers)| PeerFacts {
            liveness,
            link,
            offers,
            ..PeerFacts::new(NodeName::new("peer").unwrap())
        },
    )
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let roles = proptest::collection::btree_map(0..3_u8, any_role(), 0..3);
    let peers = proptest::collection::btree_map((0..3_u8, 0..6_u8), any_peer(), 0..12);
    let failing = proptest::collection::vec((0..3_u8, 0..6_u8), 0..3);
    (proptest::option::of(any_offer()), roles, peers, failing)
        .prop_map(|(local, roles, peers, failing)| Facts { local, roles, peers, failing })
}

fn any_query() -> impl Strategy<Value = Query> {
    let caller =
        prop_oneof![3 => Just(Caller::Owner), 1 => any_role().prop_map(|role| Caller::Peer { role })];
    let provider = prop_oneof![
        4 => Just(Provider::Any),
        1 => Just(Provider::Local),
        1 => (0..6_u8).prop_map(|number| Provider::Node(node(number))),
    ];
    let scopes = proptest::collection::vec(0..3_u8, 0..3);
    (scopes, proptest::option::of(0..3_u8), any::<bool>(), caller, provider).prop_map(
        |(scopes, preferred, gpu, caller, provider)| Query {
            preferred_scope: preferred.map(scope),
            labels: if gpu { ["gpu".to_owned()].into() } else { Default::default() },
            caller,
            provider,
            ..Query::new(MODEL, scopes.into_iter().map(scope).collect())
        },
    )
}

fn world_of(facts: &Facts) -> World {
    let world = World::new();
    world.router.update(|table| {
        table.remove_scope(&scope(1));
        for (number, role) in &facts.roles {
            table.set_scope(scope(*number), *role);
        }
        for ((in_scope, number), peer) in &facts.peers {
            table.set_peer(scope(*in_scope), node(*number), peer.clone());
        }
        table.set_local(LocalFacts {
            offers: facts.local.clone().into_iter().collect(),
            ..LocalFacts::default()
        });
    });
    for (in_scope, number) in &facts.failing {
        let target = Target::Peer { scope: scope(*in_scope), node: node(*number) };
        for _ in 0..3 {
            world.router.observe(&target, MODEL, Outcome { latency: Duration::ZERO, ok: false }, world.start);
        }
    }
    world
}

/// Whether some offer of the target may be used by the query, by a reading of the facts as naive as possible.
fn may_serve(facts: &Facts, query: &Query, target: &Target) -> bool {
    let usable = |offer: &Offer| {
        offer.state == OfferState::Ready
            && query.labels.is_subset(&offer.labels)
            && offer.slots.is_none_or(|slots| offer.in_flight < slots)
    };
    let provided = match query.provider {
        Provider::Any => true,
        Provider::Local => *target == Target::Local,
        Provider::Node(node) => target.node() == Some(node),
    };
    let number_of = |id: &NodeId| (0..6_u8).find(|number| node(*number) == *id).expect("a known node");
    let scope_number = |id: &ScopeId| (0..3_u8).find(|number| scope(*number) == *id).expect("a known scope");
    provided
        && match target {
            Target::Local => facts.local.iter().any(|offer| {
                usable(offer)
                    && match query.caller {
                        Caller::Owner => true,
                        Caller::Peer { role } => offer.share.admits(role),
                    }
            }),
            Target::Peer { scope, node } => {
                let key = (scope_number(scope), number_of(node));
                query.caller == Caller::Owner
                    && query.scopes.contains(scope)
                    && !facts.failing.iter().any(|(_, failing)| {
                        *failing == key.1
                            && facts.roles.keys().any(|in_scope| resting_in(facts, *in_scope, *failing))
                    })
                    && facts.roles.get(&key.0).is_some_and(|role| {
                        let peer = &facts.peers[&key];
                        peer.liveness != Liveness::Down
                            && peer.offers.iter().any(|offer| usable(offer) && offer.share.admits(*role))
                    })
            }
        }
}

/// A failure counts when its target was known at the time; it then counts for the node in every scope.
fn resting_in(facts: &Facts, in_scope: u8, number: u8) -> bool {
    facts.peers.get(&(in_scope, number)).is_some_and(|peer| !peer.offers.is_empty())
}

proptest! {
    #[test]
    fn targets_are_those_that_may_serve_each_node_once(facts in any_facts(), query in any_query(), draw: u64) {
        let world = world_of(&facts);
        let candidates = facts.peers.keys().map(|(in_scope, number)| Target::Peer { scope: scope(*in_scope), node: node(*number) });
        let mut expected: Vec<_> =
            candidates.chain([Target::Local]).filter(|target| may_serve(&facts, &query, target)).map(|target| target.node()).collect();
        expected.sort();
        expected.dedup();
        let found = match world.router.route(&query, draw, world.start) {
            Ok(route) => {
                let all: Vec<_> = std::iter::once(route.target).chain(route.fallbacks).collect();
                for target in &all {
                    prop_assert!(may_serve(&facts, &query, target), "{target} may not serve");
                }
                let mut nodes: Vec<_> = all.iter().map(Target::node).collect();
                nodes.sort();
                nodes
            }
            Err(refusal) => {
                prop_assert!(!refusal.to_string().is_empty());
                Vec::new()
            }
        };
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn the_same_snapshot_and_draw_give_the_same_route(facts in any_facts(), query in any_query(), draw: u64) {
        let (one, other) = (world_of(&facts), world_of(&facts));
        let first = one.router.route(&query, draw, one.start);
        prop_assert_eq!(&first, &one.router.route(&query, draw, one.start));
        prop_assert_eq!(&first, &other.router.route(&query, draw, other.start));
    }

    #[test]
    fn local_is_first_whenever_it_may_serve(facts in any_facts(), query in any_query(), draw: u64) {
        let world = world_of(&facts);
        if may_serve(&facts, &query, &Target::Local) {
            prop_assert_eq!(world.router.route(&query, draw, world.start).unwrap().target, Target::Local);
        }
    }

    #[test]
    fn every_target_has_a_chance_among_equals(count in 2..6_u8, draws in proptest::collection::vec(any::<u64>(), 400)) {
        let mut world = World::new();
        for number in 0..count {
            world = world.peer(number, crate::world::facts(number, Offer::ready(MODEL)));
        }
        let chosen: std::collections::BTreeSet<_> =
            draws.iter().map(|draw| world.router.route(&crate::world::query(), *draw, world.start).unwrap().target).collect();
        prop_assert_eq!(chosen.len(), usize::from(count));
    }
}

#[test]
fn an_empty_table_refuses_and_reads_go_on_during_writes() {
    let world = World::new();
    let query = crate::world::query();
    assert!(world.router.route(&query, 0, world.start).is_err());
    // A read inside a write would wait for ever if reading took the writers' lock.
    let router = world.router.clone();
    world.router.update(|_| assert!(router.route(&query, 0, world.start).is_err()));
}
