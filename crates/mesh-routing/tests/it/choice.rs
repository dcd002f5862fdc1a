//! Who is chosen, and what the refusals say.

use std::time::Duration;

use mesh_identity::Role;
use mesh_routing::{
    Caller, DecidedBy, Excluded, Liveness, Load, NoRoute, Offer, OfferState, PeerRoute, Provider, Share,
    Target,
};

use crate::world::{MODEL, World, facts, lan, node, peer, query, relayed, scope};

fn ready() -> Offer {
    Offer::ready(MODEL)
}

#[test]
fn local_comes_first_while_it_is_ready_and_has_room() {
    let world = World::new().local(Offer { slots: Some(1), ..ready() }).peer(1, facts(1, ready()));
    let route = world.router.route(&query(), 0, world.start).unwrap();
    assert_eq!((route.target, route.fallbacks.as_slice()), (Target::Local, [peer(1)].as_slice()));
    assert_eq!(route.why.decided_by, DecidedBy::LocalReady);
    let busy = world.router.begin(&Target::Local, MODEL, world.start);
    let route = world.router.route(&query(), 0, world.start).unwrap();
    assert_eq!(route.target, peer(1));
    assert_eq!(route.why.to_string(), "only node that can serve it; passed over: this node is full");
    drop(busy);
    assert_eq!(world.router.route(&query(), 0, world.start).unwrap().target, Target::Local);
}

#[test]
fn a_direct_path_beats_a_relayed_one_whatever_the_draw() {
    let via_relay = mesh_routing::PeerFacts { link: relayed(), ..facts(1, ready()) };
    let unlinked = mesh_routing::PeerFacts { link: None, ..facts(3, ready()) };
    let world = World::new().peer(1, via_relay).peer(2, facts(2, ready())).peer(3, unlinked);
    for draw in [0, 1, u64::MAX, 1 << 40] {
        let route = world.router.route(&query(), draw, world.start).unwrap();
        assert_eq!(route.target, peer(2));
        assert_eq!(route.fallbacks, [peer(1), peer(3)]);
        assert_eq!(route.why.decided_by, DecidedBy::BestPath);
    }
}

#[test]
fn of_two_equals_the_less_loaded_is_taken() {
    let world = World::new().peer(1, facts(1, ready())).peer(2, facts(2, ready()));
    world.observe(peer(1), 100, true);
    world.observe(peer(2), 250, true);
    let choose = || world.router.route(&query(), 3, world.start).unwrap();
    assert_eq!(choose().target, peer(1));
    assert_eq!(choose().why.decided_by, DecidedBy::LessLoaded { over: peer(2) });
    let busy: Vec<_> = (0..2).map(|_| world.router.begin(&peer(1), MODEL, world.start)).collect();
    assert_eq!(choose().target, peer(2), "300 ms of queue against 250");
    drop(busy);
    assert_eq!(choose().target, peer(1));
}

#[test]
fn what_a_node_says_of_others_at_it_counts_until_it_is_old() {
    let world = World::new().peer(1, facts(1, ready())).peer(2, facts(2, ready()));
    world.observe(peer(1), 100, true);
    world.observe(peer(2), 250, true);
    let choose =
        |later| world.router.route(&query(), 3, world.start + Duration::from_secs(later)).unwrap().target;
    assert_eq!(choose(0), peer(1));
    let asked = world.router.begin(&peer(1), MODEL, world.start);
    asked.note_load("running=2, waiting=1, slots=2, mood=good".parse().unwrap(), world.start);
    drop(asked);
    assert_eq!(choose(1), peer(2), "two others are at the first one");
    assert_eq!(choose(11), peer(1), "by then they are done");
}

#[test]
fn of_nodes_never_asked_the_one_that_says_it_is_idle_is_taken() {
    let busy = mesh_routing::PeerFacts { under_way: 4, ..facts(1, ready()) };
    let world = World::new().peer(1, busy).peer(2, facts(2, ready()));
    for draw in [0, 3, u64::MAX, 1 << 40] {
        assert_eq!(world.router.route(&query(), draw, world.start).unwrap().target, peer(2));
    }
    let full = mesh_routing::PeerFacts { under_way: 16, ..facts(2, ready()) };
    let alone = World::new().peer(2, full);
    assert_eq!(
        alone.router.route(&query(), 0, alone.start).unwrap().target,
        peer(2),
        "nobody is refused by it"
    );
}

#[test]
fn a_load_is_read_as_it_is_written() {
    for (requests, slots, text) in
        [(5, Some(4), "running=4, waiting=1, slots=4"), (3, None, "running=3, waiting=0")]
    {
        let load = Load::of(requests, slots);
        assert_eq!(load.to_string(), text);
        assert_eq!(text.parse(), Ok(load));
    }
    for text in ["", "waiting=1", "running=-1", "running=99999999999", "running"] {
        assert!(text.parse::<Load>().is_err(), "{text}");
    }
}

#[test]
fn a_new_node_gets_a_first_request_but_not_a_burst() {
    let world = World::new().peer(1, facts(1, ready())).peer(2, facts(2, ready()));
    world.observe(peer(1), 100, true);
    let _old = world.router.begin(&peer(1), MODEL, world.start);
    assert_eq!(world.router.route(&query(), 0, world.start).unwrap().target, peer(2));
    let _new: Vec<_> = (0..2).map(|_| world.router.begin(&peer(2), MODEL, world.start)).collect();
    assert_eq!(world.router.route(&query(), 0, world.start).unwrap().target, peer(1));
}

#[test]
fn a_failing_peer_rests_and_is_tried_by_one_request() {
    let world = World::new().peer(1, facts(1, ready())).peer(2, facts(2, ready()));
    (0..3).for_each(|_| world.observe(peer(1), 1, false));
    let route = world.router.route(&query(), 0, world.start).unwrap();
    assert_eq!((route.target, route.fallbacks.len()), (peer(2), 0));
    let later = world.start + Duration::from_secs(2);
    let route = world.router.route(&query(), 0, later).unwrap();
    assert_eq!((route.target, route.why.decided_by), (peer(1), DecidedBy::Probe));
    let _probe = world.router.begin(&peer(1), MODEL, later);
    assert_eq!(world.router.route(&query(), 0, later).unwrap().target, peer(2));
}

#[test]
fn a_suspect_is_a_last_resort_and_the_dead_are_none() {
    let suspect = mesh_routing::PeerFacts { liveness: Liveness::Suspect, ..facts(1, ready()) };
    let far = mesh_routing::PeerFacts { link: relayed(), ..facts(2, ready()) };
    let dead = mesh_routing::PeerFacts { liveness: Liveness::Down, ..facts(3, ready()) };
    let world = World::new().peer(1, suspect).peer(2, far).peer(3, dead);
    let route = world.router.route(&query(), 0, world.start).unwrap();
    assert_eq!((route.target, route.fallbacks), (peer(2), vec![peer(1)]));
    assert_eq!(route.why.passed_over[0].because, Excluded::Down);
}

#[test]
fn a_client_uses_what_is_shared_with_clients_only() {
    let world =
        World::new().peer(1, facts(1, ready())).peer(2, facts(2, Offer { share: Share::Clients, ..ready() }));
    world.router.update(|table| table.set_scope(scope(1), Role::Client));
    let route = world.router.route(&query(), 0, world.start).unwrap();
    assert_eq!((route.target, route.fallbacks.len()), (peer(2), 0));
    world.router.update(|table| table.remove_peer(&scope(1), &node(2)));
    let refused = world.router.route(&query(), 0, world.start).unwrap_err();
    assert_eq!(
        refused,
        NoRoute::UnknownModel { model: MODEL.to_owned(), known: vec![] },
        "not even its name"
    );
}

#[test]
fn a_peers_request_makes_no_second_hop() {
    let world = World::new().local(ready()).peer(1, facts(1, Offer { share: Share::Clients, ..ready() }));
    let asked_as = |role| mesh_routing::Query { caller: Caller::Peer { role }, ..query() };
    let route = world.router.route(&asked_as(Role::Member), 0, world.start).unwrap();
    assert_eq!((route.target, route.fallbacks.len()), (Target::Local, 0));
    assert!(matches!(
        world.router.route(&asked_as(Role::Client), 0, world.start),
        Err(NoRoute::UnknownModel { .. })
    ));
}

#[test]
fn labels_of_node_and_offer_add_up_and_narrow() {
    let mut labelled = facts(1, Offer { labels: ["fast".to_owned()].into(), ..ready() });
    labelled.labels.insert("gpu".to_owned());
    let world = World::new().peer(1, labelled).peer(2, facts(2, ready()));
    let asking = |labels: &[&str]| mesh_routing::Query {
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        ..query()
    };
    assert_eq!(world.router.route(&asking(&["gpu", "fast"]), 0, world.start).unwrap().target, peer(1));
    let refused = world.router.route(&asking(&["tpu"]), 0, world.start).unwrap_err();
    assert_eq!(refused, NoRoute::Unlabelled { model: MODEL.to_owned(), labels: vec!["tpu".to_owned()] });
}

#[test]
fn an_unknown_model_lists_what_could_be_asked_for() {
    let world = World::new().local(Offer::ready("a")).peer(1, facts(1, Offer::ready("b")));
    let refused = world.router.route(&query(), 0, world.start).unwrap_err();
    assert_eq!(refused.to_string(), "unknown model qwen3-8b (known: a, b)");
}

#[test]
fn not_ready_says_why_and_when_to_ask_again() {
    let loading = OfferState::Loading { eta: Some(Duration::from_secs(9)) };
    let world = World::new()
        .local(Offer { state: OfferState::Cold, ..ready() })
        .peer(1, facts(1, Offer { state: loading, ..ready() }));
    let NoRoute::NotReady { reasons, retry_after, .. } =
        world.router.route(&query(), 0, world.start).unwrap_err()
    else {
        panic!("not ready")
    };
    assert_eq!(retry_after, Duration::from_secs(9));
    let reasons: Vec<_> = reasons.iter().map(|reason| reason.because).collect();
    assert_eq!(reasons, [Excluded::Cold, Excluded::Loading { eta: Some(Duration::from_secs(9)) }]);
}

#[test]
fn full_everywhere_is_told_apart() {
    let full = Offer { slots: Some(2), in_flight: 2, ..ready() };
    let world =
        World::new().peer(1, facts(1, full)).peer(2, facts(2, Offer { state: OfferState::Cold, ..ready() }));
    let refused = world.router.route(&query(), 0, world.start).unwrap_err();
    assert!(matches!(refused, NoRoute::Full { ref reasons, .. } if reasons.len() == 2), "{refused}");
}

#[test]
fn a_pinned_provider_is_the_only_one() {
    let world = World::new().local(ready()).peer(1, facts(1, ready())).peer(2, facts(2, ready()));
    let asking = |provider| mesh_routing::Query { provider, ..query() };
    let pinned = world.router.route(&asking(Provider::Node(node(2))), 0, world.start).unwrap();
    assert_eq!((pinned.target, pinned.fallbacks.len()), (peer(2), 0));
    let local = world.router.route(&asking(Provider::Local), 0, world.start).unwrap();
    assert_eq!((local.target, local.fallbacks.len()), (Target::Local, 0));
}

#[test]
fn a_node_in_two_scopes_is_one_candidate_in_the_preferred_scope() {
    let world = World::new().peer(1, facts(1, ready()));
    world.router.update(|table| {
        table.set_scope(scope(2), Role::Member);
        table.set_peer(scope(2), node(1), facts(1, ready()));
    });
    let asking = |preferred| mesh_routing::Query {
        scopes: vec![scope(1), scope(2)],
        preferred_scope: Some(preferred),
        ..query()
    };
    for preferred in [scope(1), scope(2)] {
        let route = world.router.route(&asking(preferred), 0, world.start).unwrap();
        assert_eq!(route.target, Target::Peer { scope: preferred, node: node(1) });
        assert!(route.fallbacks.is_empty());
    }
    let ways = world.router.snapshot().routes_for_peer(&node(1), &[scope(1), scope(2)], Some(&scope(2)));
    assert_eq!(ways, [2, 1].map(|number| PeerRoute { scope: scope(number), link: lan(1) }));
}

#[test]
fn models_are_counted_for_the_caller() {
    let world = World::new()
        .local(ready())
        .peer(1, facts(1, Offer { state: OfferState::Cold, ..ready() }))
        .peer(2, facts(2, Offer { share: Share::None, ..Offer::ready("secret") }));
    let models = world.router.models(&query(), world.start);
    assert_eq!(models, [mesh_routing::Model { model: MODEL.to_owned(), ready: 1, known: 2 }]);
}

#[test]
fn facts_of_a_scope_we_left_are_gone() {
    let world = World::new().peer(1, facts(1, ready()));
    world.router.update(|table| table.remove_scope(&scope(1)));
    assert!(world.router.route(&query(), 0, world.start).is_err());
    world.router.update(|table| table.set_peer(scope(1), node(1), facts(1, ready())));
    assert!(
        world.router.route(&query(), 0, world.start).is_err(),
        "a late record of the scope changes nothing"
    );
}

#[test]
fn what_was_measured_survives_new_facts_and_a_link_change_moves_the_peer() {
    let world = World::new().peer(1, facts(1, ready())).peer(2, facts(2, ready()));
    (0..3).for_each(|_| world.observe(peer(1), 1, false));
    world.router.update(|table| {
        table.set_peer(scope(1), node(1), facts(1, ready()));
        table.change_peer(&scope(1), &node(2), |facts| facts.link = relayed());
    });
    assert_eq!(world.router.route(&query(), 0, world.start).unwrap().target, peer(2));
}
