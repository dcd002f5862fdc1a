//! Names of peers, and the rules of agents that use them.

use mesh_identity::Role;
use mesh_routing::{Offer, Provider, ProviderTarget, ResolveError};

use crate::world::{MODEL, World, facts, node, scope};

#[test]
fn a_configured_key_wins_over_a_granted_name() {
    let world = World::new().peer(1, facts(1, Offer::ready(MODEL)));
    world.router.update(|table| table.set_configured_names([("peer-1".to_owned(), node(2))]));
    let names = world.router.snapshot();
    assert_eq!(names.names().resolve("peer-1", &[scope(1)], None), Ok(node(2)));
    assert_eq!(names.names().resolve(&node(7).to_string(), &[], None), Ok(node(7)), "an id is its own name");
}

#[test]
fn a_granted_name_counts_in_the_requests_scopes_only() {
    let world = World::new().peer(1, facts(1, Offer::ready(MODEL)));
    let snapshot = world.router.snapshot();
    assert_eq!(snapshot.names().resolve("peer-1", &[scope(1)], None), Ok(node(1)));
    let elsewhere = snapshot.names().resolve("peer-1", &[scope(2)], None).unwrap_err();
    assert_eq!(elsewhere, ResolveError::Unknown { name: "peer-1".to_owned(), known: vec![] });
}

#[test]
fn two_nodes_of_one_name_are_ambiguous_unless_one_scope_is_preferred() {
    let world = World::new().peer(1, facts(1, Offer::ready(MODEL)));
    world.router.update(|table| {
        table.set_scope(scope(2), Role::Member);
        table.set_peer(scope(2), node(2), facts(1, Offer::ready(MODEL)));
    });
    let snapshot = world.router.snapshot();
    let both = [scope(1), scope(2)];
    let mut nodes = vec![node(1), node(2)];
    nodes.sort();
    let ambiguous = ResolveError::Ambiguous { name: "peer-1".to_owned(), nodes };
    assert_eq!(snapshot.names().resolve("peer-1", &both, None), Err(ambiguous));
    assert_eq!(snapshot.names().resolve("peer-1", &both, Some(&scope(2))), Ok(node(2)));
}

#[test]
fn an_agents_rule_follows_its_peer_as_it_comes_and_goes() {
    let world = World::new();
    world.router.update(|table| table.set_policy("coder", Some(ProviderTarget::Peer("peer-1".to_owned()))));
    assert_eq!(world.router.snapshot().policy("coder").provider(), None);
    let world = world.peer(1, facts(1, Offer::ready(MODEL)));
    let policy = world.router.snapshot().policy("coder");
    assert_eq!(policy.resolved_provider_node_id, Some(node(1)));
    assert_eq!(policy.provider(), Some(Provider::Node(node(1))));
    assert_eq!(world.router.snapshot().policy("someone").provider(), Some(Provider::Any));
    world.router.update(|table| table.set_policy("coder", Some(ProviderTarget::Local)));
    assert_eq!(world.router.snapshot().policy("coder").provider(), Some(Provider::Local));
}
