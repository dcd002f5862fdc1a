//! What only the internet driver does: sockets, identities behind addresses, relays and their lists.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use mesh_identity::{Expiry, NodeKey, ScopeId};
use mesh_transport::{
    CloseCode, ClosedWhy, DialError, DialVia, Driver, PathKind,
    internet::{Bind, BindError, Config, Endpoints, EndpointsError, Internet, Relay, RelayTrust, Relays},
    relay::{self, AccessList, Server, Tls},
};

use crate::sites::{online, relay_server, relayed};

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed([seed; 32])
}

fn scope() -> ScopeId {
    ScopeId::lan(None)
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let error =
        Internet::bind(&key(1), Config { bind: Bind::Addr(addr), ..Config::default() }).await.err().unwrap();
    assert!(matches!(error, BindError::PortTaken { port } if port == addr.port()), "{error:?}");
}

#[tokio::test]
async fn a_preferred_port_is_used_when_it_is_free_and_left_alone_when_not() {
    let taken = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let config = Config { bind: Bind::Prefer { port }, ..Config::default() };
    let v4_port = |node: &Internet| {
        node.bound_addrs().iter().find(|addr| addr.is_ipv4()).map(|addr| addr.port()).unwrap()
    };
    let elsewhere = Internet::bind(&key(1), config.clone()).await.unwrap();
    assert_ne!(v4_port(&elsewhere), port);
    elsewhere.shutdown().await;
    drop(taken);
    let there = Internet::bind(&key(1), config).await.unwrap();
    assert_eq!(v4_port(&there), port);
    there.shutdown().await;
}

#[tokio::test]
async fn a_url_that_is_no_relay_is_refused() {
    let relays = Relays::Custom(vec![Relay::new("relay.example.org")]);
    let error = Internet::bind(&key(1), Config { relays, ..Config::loopback() }).await.err().unwrap();
    assert!(matches!(error, BindError::RelayUrl { .. }), "{error:?}");
}

#[tokio::test]
async fn another_key_behind_the_address_is_told() {
    let (a, b) = (
        Internet::bind(&key(1), Config::loopback()).await,
        Internet::bind(&key(2), Config::loopback()).await,
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    let addr = b.local_addr(&scope());
    let error = a.dial(&scope(), key(3).node_id(), &addr, DialVia::default()).await.err().unwrap();
    assert!(matches!(error, DialError::WrongIdentity(node) if node == key(3).node_id()), "{error:?}");
    let error =
        a.dial(&scope(), key(3).node_id(), &Default::default(), DialVia::default()).await.err().unwrap();
    assert!(matches!(error, DialError::NoAddress(_)), "{error:?}");
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test]
async fn all_interfaces_have_addresses_from_the_start() {
    let node = Internet::bind(&key(1), Config::default()).await.unwrap();
    let addr = node.local_addr(&scope());
    assert!(!addr.direct.is_empty());
    assert!(addr.direct.iter().all(|addr| !addr.ip().is_unspecified()));
    node.shutdown().await;
}

#[test]
fn a_peer_that_vanished_is_noticed() {
    let ours = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let idle = Duration::from_millis(1500);
    let config = Config { idle, ..Config::loopback() };
    let a = ours.block_on(Internet::bind(&key(1), config.clone())).unwrap();
    let b = theirs.block_on(Internet::bind(&key(2), config)).unwrap();
    let addr = b.local_addr(&scope());
    let conn = ours.block_on(a.dial(&scope(), key(2).node_id(), &addr, DialVia::default())).unwrap();
    assert_eq!(conn.path().kind, PathKind::Direct);
    let _their_side = theirs.block_on(b.accept()).unwrap();
    // As after kill -9: nothing runs any more, nothing is said.
    theirs.shutdown_background();
    let why =
        ours.block_on(async { tokio::time::timeout(Duration::from_secs(20), conn.closed()).await }).unwrap();
    assert!(matches!(why, ClosedWhy::TimedOut | ClosedWhy::Failed(_)), "{why:?}");
    ours.block_on(a.shutdown());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_lets_in_members_and_tokens_and_nobody_else() {
    let access = AccessList::new();
    let server = relay_server(access.clone()).await;
    access.allow_member(scope(), key(1).node_id());
    access.allow_token("joiner's token".into(), Expiry::NEVER);
    let with = |token: Option<&str>| {
        Relays::Custom(vec![Relay { token: token.map(str::to_owned), ..server.relay() }])
    };
    let member = relayed(&key(1), with(None)).await;
    online(&member).await;
    let joiner = relayed(&key(2), with(Some("joiner's token"))).await;
    online(&joiner).await;
    let stranger = relayed(&key(3), with(Some("a guess"))).await;
    let denied = async {
        while stranger.relay_denial().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), denied).await.expect("the relay says no");

    let addr = member.local_addr(&scope());
    assert_eq!(addr.relay.as_deref(), Some(server.url()));
    let straight = joiner.dial(&scope(), key(1).node_id(), &addr, DialVia::direct()).await.err().unwrap();
    assert!(matches!(straight, DialError::NoAddress(_)), "a relay is not straight: {straight}");
    let accepting = member.clone();
    let accepted = tokio::spawn(async move { accepting.accept().await.unwrap() });
    let conn = joiner.dial(&scope(), key(1).node_id(), &addr, DialVia::default()).await.unwrap();
    assert_eq!(conn.path().kind, PathKind::Relayed);
    assert_eq!(accepted.await.unwrap().peer(), key(2).node_id());
    conn.close(CloseCode::Done, "done");
    for node in [member, joiner, stranger] {
        node.shutdown().await;
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_that_knows_no_relay_joins_through_the_invites_one() {
    let access = AccessList::new();
    let server = relay_server(access.clone()).await;
    access.allow_member(scope(), key(1).node_id());
    access.allow_token("from the invite".into(), Expiry::NEVER);
    let issuer = relayed(&key(1), Relays::Custom(vec![server.relay()])).await;
    online(&issuer).await;
    let addr = issuer.local_addr(&scope());
    let joiner = relayed(&key(2), Relays::Custom(Vec::new())).await;
    let accepting = issuer.clone();
    let accepted = tokio::spawn(async move { accepting.accept().await.unwrap() });
    let via = DialVia { relay_token: Some("from the invite".into()), direct_only: false };
    let dial = joiner.dial(&scope(), key(1).node_id(), &addr, via);
    let conn = tokio::time::timeout(Duration::from_secs(10), dial).await.unwrap().unwrap();
    assert_eq!(accepted.await.unwrap().peer(), key(2).node_id());
    // The token is not asked for again once the node is a member.
    access.allow_member(scope(), key(2).node_id());
    access.remove_token("from the invite");
    online(&joiner).await;
    conn.close(CloseCode::Done, "done");
    joiner.shutdown().await;
    issuer.shutdown().await;
    server.shutdown().await;
}

async fn secure_relay(tls: Tls) -> Server {
    let config = relay::Config { bind: (Ipv4Addr::LOCALHOST, 0).into(), tls: Some(tls), public_url: None };
    let access = AccessList::new();
    access.allow_member(scope(), key(1).node_id());
    Server::start(config, access).await.unwrap()
}

#[tokio::test]
async fn a_relay_by_its_nodes_key_takes_in_who_believes_that_node() {
    let server = secure_relay(Tls::of_node(&key(9), (Ipv4Addr::LOCALHOST, 0).into()).unwrap()).await;
    assert!(server.url().starts_with("https://") && server.quic_port().is_some());
    let relay_trust = RelayTrust::new();
    relay_trust.trust(scope(), key(9).node_id());
    let relays = Relays::Custom(vec![server.relay()]);
    let node = Internet::bind(&key(1), Config { relays, relay_trust, ..Config::loopback() }).await.unwrap();
    online(&node).await;
    let home = node.home_relay().unwrap();
    assert_eq!((home.url.as_str(), home.connected, home.error), (server.url(), true, None));
    node.shutdown().await;
    server.shutdown().await;
}

#[tokio::test]
async fn a_relay_by_a_users_own_authority_takes_in_who_has_its_root() {
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = rcgen::CertifiedIssuer::self_signed(authority, rcgen::KeyPair::generate().unwrap()).unwrap();
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&leaf_key, &issuer).unwrap();
    let server = secure_relay(Tls {
        of_node: false,
        bind: (Ipv4Addr::LOCALHOST, 0).into(),
        quic_bind: Some((Ipv4Addr::LOCALHOST, 0).into()),
        chain: vec![leaf.der().to_vec()],
        key: leaf_key.serialize_der(),
    })
    .await;
    let relays = Relays::Custom(vec![server.relay()]);
    let relay_roots = vec![issuer.der().to_vec()];
    let node = Internet::bind(&key(1), Config { relays, relay_roots, ..Config::loopback() }).await.unwrap();
    online(&node).await;
    node.shutdown().await;
    server.shutdown().await;
}

#[tokio::test]
async fn the_next_relay_becomes_the_home_of_a_node_whose_own_dies() {
    let (first, second) = (relay_server(AccessList::new()).await, relay_server(AccessList::new()).await);
    for server in [&first, &second] {
        server.access().allow_member(scope(), key(1).node_id());
    }
    let endpoints = Endpoints::new(key(1), Config { bind: Bind::RelayOnly, ..Config::default() });
    let (node, _) = endpoints.for_scope(scope(), &Relays::Custom(vec![first.relay()])).await.unwrap();
    online(&node).await;
    endpoints.learn(scope(), &[second.relay()]).await;
    let next = second.url().to_owned();
    first.shutdown().await;
    let moved = async {
        while node.home_relay().is_none_or(|home| home.url != next || !home.connected) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), moved).await.expect("the other relay is its home");
    assert_eq!(node.local_addr(&scope()).relay, Some(next));
    node.shutdown().await;
    second.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_relay_carried_is_closed_at_both_ends_and_dialed_by_the_next_one() {
    let (first, second) = (relay_server(AccessList::new()).await, relay_server(AccessList::new()).await);
    let mut nodes = Vec::new();
    for seed in [1, 2] {
        for server in [&first, &second] {
            server.access().allow_member(scope(), key(seed).node_id());
        }
        let endpoints = Endpoints::new(key(seed), Config { bind: Bind::RelayOnly, ..Config::default() });
        let (node, _) = endpoints.for_scope(scope(), &Relays::Custom(vec![first.relay()])).await.unwrap();
        online(&node).await;
        nodes.push((endpoints, node));
    }
    let [(_, ours), (_, theirs)] = &nodes[..] else { unreachable!("two nodes") };
    let old_addr = theirs.local_addr(&scope());
    let dial = async || {
        let dial = ours.dial(&scope(), key(2).node_id(), &old_addr, DialVia::default());
        let (dialed, accepted) = tokio::join!(dial, theirs.accept());
        (dialed.unwrap(), accepted.unwrap())
    };
    let (dialed, accepted) = dial().await;
    first.shutdown().await;
    for (endpoints, _) in &nodes {
        endpoints.learn(scope(), &[second.relay()]).await;
    }
    for conn in [dialed, accepted] {
        let closed = tokio::time::timeout(Duration::from_secs(20), conn.closed()).await;
        // Their silence would have ended them too, as timed out.
        assert_eq!(closed.unwrap(), ClosedWhy::Local(CloseCode::AddressGone));
    }
    let moved = async {
        for (_, node) in &nodes {
            while node.home_relay().is_none_or(|home| home.url != second.url() || !home.connected) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), moved).await.expect("the other relay is their home");
    let (dialed, _accepted) = tokio::time::timeout(Duration::from_secs(20), dial()).await.unwrap();
    assert_eq!(dialed.remote(), Some(format!("behind the relay {}/", second.url())));
    for (_, node) in nodes {
        node.shutdown().await;
    }
    second.shutdown().await;
}

#[tokio::test]
async fn a_relay_is_never_learned_by_two_endpoints() {
    let endpoints = Endpoints::new(key(1), Config::loopback());
    let (one, two) = (ScopeId::lan(Some(b"1")), ScopeId::lan(Some(b"2")));
    let relays = |url: &str| Relays::Custom(vec![Relay::new(url)]);
    let (a, b, c) = ("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:3");
    let (first, _) = endpoints.for_scope(one, &relays(a)).await.unwrap();
    let (second, _) = endpoints.for_scope(two, &relays(b)).await.unwrap();
    endpoints.learn(one, &[Relay::new(b), Relay::new(c)]).await;
    endpoints.learn(two, &[Relay::new(a), Relay::new(c)]).await;
    // The first has learned c and nothing else, so a scope that asks for c shares it, and one that asks for b does not.
    let (shared, new) = endpoints.for_scope(scope(), &relays(c)).await.unwrap();
    assert!(!new && Arc::ptr_eq(&shared, &first));
    let (shared, new) = endpoints.for_scope(ScopeId::lan(Some(b"3")), &relays(b)).await.unwrap();
    assert!(!new && Arc::ptr_eq(&shared, &second));
    first.shutdown().await;
    second.shutdown().await;
}

#[tokio::test]
async fn scopes_share_an_endpoint_by_their_set_of_relays() {
    let endpoints = Endpoints::new(key(1), Config::loopback());
    let (one, two) = (ScopeId::lan(Some(b"1")), ScopeId::lan(Some(b"2")));
    let (first, new) = endpoints.for_scope(one, &Relays::Disabled).await.unwrap();
    assert!(new);
    let (same, new) = endpoints.for_scope(two, &Relays::Disabled).await.unwrap();
    assert!(!new && Arc::ptr_eq(&first, &same));
    assert!(first.carries(&one) && first.carries(&two) && !first.carries(&scope()));
    let relays = |urls: &[&str]| Relays::Custom(urls.iter().map(|url| Relay::new(*url)).collect());
    let (a, b) = ("http://127.0.0.1:1", "http://127.0.0.1:2");
    let (third, new) = endpoints.for_scope(scope(), &relays(&[a])).await.unwrap();
    assert!(new && !Arc::ptr_eq(&first, &third));
    let overlap = endpoints.for_scope(scope(), &relays(&[a, b])).await.err().unwrap();
    assert!(matches!(overlap, EndpointsError::Overlap { .. }), "{overlap:?}");
    first.shutdown().await;
    third.shutdown().await;
}
