//! The chain of one request.

use mesh_routing::{FallbackChain, Offer, Provider, Query, Target};

use crate::world::{MODEL, World, facts, node, peer, query};

fn world() -> World {
    World::new()
        .local(Offer::ready(MODEL))
        .peer(1, facts(1, Offer::ready(MODEL)))
        .peer(2, facts(2, Offer::ready(MODEL)))
}

#[test]
fn a_primary_peer_then_other_peers_then_this_node_then_an_error_that_lists_them() {
    let world = world();
    let primary = Query { provider: Provider::Node(node(2)), ..query() };
    let primary = world.router.route(&primary, 0, world.start).unwrap();
    let elsewhere = world.router.route(&query(), 0, world.start).unwrap();
    let mut chain =
        FallbackChain::with_primary(Provider::Node(node(2)), Some(&primary), Some(&elsewhere), true);
    let mut tried = Vec::new();
    while let Some(target) = chain.next() {
        tried.push(target);
        chain.failed(target, "refused");
    }
    assert_eq!(tried, [peer(2), peer(1), Target::Local]);
    let error = chain.into_error();
    assert_eq!(error.tried.len(), 3);
    assert!(error.to_string().ends_with("this node: refused"), "{error}");
}

#[test]
fn without_auto_fallback_only_the_first_is_tried() {
    let world = world();
    let route = world.router.route(&query(), 0, world.start).unwrap();
    assert_eq!(FallbackChain::new(&route, false).collect::<Vec<_>>(), [Target::Local]);
    assert_eq!(FallbackChain::new(&route, true).count(), 3);
    let nobody = FallbackChain::with_primary(Provider::Node(node(9)), None, Some(&route), false);
    assert_eq!(nobody.count(), 0);
}

#[test]
fn local_never_leaves_this_node() {
    let world = world();
    let elsewhere = world.router.route(&query(), 0, world.start).unwrap();
    let local = FallbackChain::with_primary(Provider::Local, Some(&elsewhere), Some(&elsewhere), true);
    assert_eq!(local.collect::<Vec<_>>(), [Target::Local]);
}
