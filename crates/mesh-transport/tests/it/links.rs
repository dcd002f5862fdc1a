//! Links over memory: dialing, the rule of two, loss, shutdown.

use std::time::Duration;

use mesh_identity::{
    Authority, CLOCK_SKEW, Founding, GRANT_TTL, NodeName, Permissions, Revoked, SignedGrant, UnixTime,
};
use mesh_transport::{
    Admission, Call, CallError, CallFault, CloseCode, ClosedWhy, Config, DialError, LinkEvent, OpenError,
    Peer, Protocol, Refusal, Transport,
    memory::{Conditions, Network},
    serve_call,
    testing::{Mesh, until},
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Ping(u32);

impl Call for Ping {
    const PROTOCOL: Protocol = Protocol::new("ping/1");
    type Reply = u32;
}

const SECOND: Duration = Duration::from_secs(1);

fn serve_ping(mesh: &Mesh) {
    for node in mesh.nodes() {
        serve_call::<Ping, _, _>(&node.transport, |_: Peer, ping| async move { Ok(ping.0 + 1) });
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_dials_and_answers() {
    let mesh = Mesh::memory(2).await;
    serve_ping(&mesh);
    let reply = mesh[0].transport.call(&mesh.scope(), &mesh[1].id(), &Ping(1), SECOND).await.unwrap();
    assert_eq!(reply, 2);
    let links = mesh[1].transport.links();
    assert_eq!(links.len(), 1);
    assert_eq!(links[0].peer.name.as_str(), "node-0");
    assert!(!links[0].opened_by_us);
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn callers_at_once_share_one_dial() {
    let network = Network::new(1);
    network.set_conditions(Conditions { latency: Duration::from_millis(20), ..Conditions::default() });
    let mesh = Mesh::on(network.clone(), 2).await;
    serve_ping(&mesh);
    let (scope, to) = (mesh.scope(), mesh[1].id());
    let calls = (0..50).map(|n| {
        let transport = mesh[0].transport.clone();
        tokio::spawn(async move { transport.call(&scope, &to, &Ping(n), SECOND).await.unwrap() })
    });
    for (n, call) in (0..50).zip(calls.collect::<Vec<_>>()) {
        assert_eq!(call.await.unwrap(), n + 1);
    }
    assert_eq!(mesh[0].transport.metrics().dials_linked, 1);
    assert_eq!(network.connections(mesh[0].id(), to), 1);
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn dials_from_both_sides_become_the_one_of_the_smaller_id() {
    let network = Network::new(1);
    network.set_conditions(Conditions { latency: Duration::from_millis(20), ..Conditions::default() });
    let mesh = Mesh::on(network.clone(), 2).await;
    let (a, b, scope) = (&mesh[0], &mesh[1], mesh.scope());
    let (b_id, a_id) = (b.id(), a.id());
    let (to_b, to_a) = tokio::join!(a.transport.link(&scope, &b_id), b.transport.link(&scope, &a_id));
    to_b.unwrap();
    to_a.unwrap();
    until("one connection is left", || async { network.connections(a.id(), b.id()) == 1 }).await;
    let smaller_dialed = |node: &mesh_transport::testing::TestNode| {
        let smaller = node.id() == a.id().min(b.id());
        node.transport.links()[0].opened_by_us == smaller
    };
    assert!(smaller_dialed(a) && smaller_dialed(b));
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_cut_is_noticed_and_a_healed_peer_is_dialed_again() {
    let network = Network::new(1);
    let mesh = Mesh::on(network.clone(), 2).await;
    serve_ping(&mesh);
    let (scope, to) = (mesh.scope(), mesh[1].id());
    mesh[0].transport.call(&scope, &to, &Ping(1), SECOND).await.unwrap();
    let mut events = mesh[0].transport.events();
    network.cut(mesh[0].id(), to);
    let cut_off = mesh[0].transport.call(&scope, &to, &Ping(1), SECOND).await.unwrap_err();
    assert!(matches!(cut_off, CallError::Deadline(_)), "{cut_off:?}");
    let LinkEvent::Down { why, .. } = events.recv().await.unwrap() else { panic!("down comes first") };
    assert_eq!(why, ClosedWhy::TimedOut);
    network.heal(mesh[0].id(), to);
    assert_eq!(mesh[0].transport.call(&scope, &to, &Ping(4), SECOND).await.unwrap(), 5);
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_stranger_is_refused_whether_or_not_the_scope_exists() {
    let mut mesh = Mesh::memory(1).await;
    let stranger = mesh.stranger().await;
    let own = Authority::founder(stranger.key.clone(), Founding::new(&stranger.key).root).unwrap();
    let name = NodeName::new("stranger").unwrap();
    let foreign = own.sign_grant(stranger.id(), name, Permissions::MEMBER, None, UnixTime::now()).unwrap();
    let refused = |error: DialError| match error {
        DialError::Refused { refusal, .. } => refusal,
        other => panic!("{other:?}"),
    };
    stranger.admission.join(foreign);
    let unknown_scope = refused(stranger.transport.link(&own.scope(), &mesh[0].id()).await.unwrap_err());
    let member = mesh.add(Permissions::MEMBER).await.id();
    let member_grant = mesh.grant(member, "node-1", Permissions::MEMBER);
    stranger.admission.join(member_grant);
    let stolen_grant = refused(stranger.transport.link(&mesh.scope(), &mesh[0].id()).await.unwrap_err());
    assert_eq!(unknown_scope, Refusal::NotAdmitted);
    assert_eq!(stolen_grant, Refusal::NotAdmitted);
    assert!(mesh[0].transport.links().is_empty());
    stranger.transport.shutdown().await;
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_protocol_and_a_fault_are_told_apart() {
    let mesh = Mesh::memory(2).await;
    let (scope, to) = (mesh.scope(), mesh[1].id());
    let unknown = mesh[0].transport.call(&scope, &to, &Ping(1), SECOND).await.unwrap_err();
    assert!(matches!(unknown, CallError::Open(OpenError::UnknownProtocol(_))), "{unknown:?}");
    serve_call::<Ping, _, _>(&mesh[1].transport, |peer: Peer, _| async move {
        Err(CallFault::not_allowed(format!("{} may not", peer.name)))
    });
    let fault = mesh[0].transport.call(&scope, &to, &Ping(1), SECOND).await.unwrap_err();
    let CallError::Fault(fault) = fault else { panic!("{fault:?}") };
    assert_eq!(fault, CallFault::not_allowed("node-0 may not"));
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn disconnecting_a_revoked_peer_ends_its_streams_at_once() {
    let mesh = Mesh::memory(2).await;
    serve_call::<Ping, _, _>(&mesh[1].transport, |_: Peer, _| std::future::pending());
    let (scope, to) = (mesh.scope(), mesh[1].id());
    let transport = mesh[0].transport.clone();
    let call = tokio::spawn(async move { transport.call(&scope, &to, &Ping(1), 100 * SECOND).await });
    until("the call has arrived", || async { mesh[1].transport.metrics().streams_served == 1 }).await;
    mesh[1].transport.disconnect(&scope, &mesh[0].id(), CloseCode::Revoked);
    let ended = call.await.unwrap().unwrap_err();
    assert!(matches!(ended, CallError::Lost(_)), "{ended:?}");
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_revocation_taken_up_closes_the_links_that_rest_on_it_and_no_others() {
    let mesh = Mesh::memory(3).await;
    let scope = mesh.scope();
    for peer in [1, 2] {
        mesh[0].transport.link(&scope, &mesh[peer].id()).await.unwrap();
    }
    let revocation = mesh.authority().revoke(Revoked::Node(mesh[2].id()), UnixTime::now()).unwrap();
    mesh[0].transport.recheck(&scope);
    assert_eq!(mesh[0].transport.links().len(), 2, "nothing is revoked yet");
    mesh[0].admission.revoke(&scope, &revocation);
    let doomed = mesh[0].transport.linked(&scope, &mesh[2].id()).unwrap();
    mesh[0].transport.recheck(&scope);
    assert_eq!(doomed.closed().await, ClosedWhy::Local(CloseCode::Revoked));
    until("one link is left", || async { mesh[0].transport.links().len() == 1 }).await;
    assert!(mesh[0].transport.linked(&scope, &mesh[1].id()).is_some());
    mesh.shutdown().await;
}

/// A grant of node 1 that was signed so long ago that it ends in some two seconds, the tolerance being counted.
fn ending(mesh: &Mesh) -> SignedGrant {
    let left = CLOCK_SKEW - 2 * SECOND;
    let signed_at = UnixTime(UnixTime::now().0 - (GRANT_TTL + left).as_secs());
    let name = NodeName::new("node-1").unwrap();
    mesh.authority().sign_grant(mesh[1].id(), name, Permissions::MEMBER, None, signed_at).unwrap()
}

#[tokio::test]
async fn a_link_ends_in_the_moment_in_which_its_grant_does() {
    let mesh = Mesh::memory(2).await;
    mesh[1].admission.join(ending(&mesh));
    let mut events = mesh[0].transport.events();
    let link = mesh[0].transport.link(&mesh.scope(), &mesh[1].id()).await.unwrap();
    let closed = tokio::time::timeout(10 * SECOND, link.closed()).await.unwrap();
    assert_eq!(closed, ClosedWhy::Local(CloseCode::Expired));
    assert!(matches!(events.recv().await, Ok(LinkEvent::Up { .. })));
    let Ok(LinkEvent::Down { why, .. }) = events.recv().await else { panic!("it is down") };
    assert_eq!(why, ClosedWhy::Local(CloseCode::Expired));
    mesh.shutdown().await;
}

#[tokio::test]
async fn a_link_outlives_the_grant_that_was_renewed_in_time() {
    let mesh = Mesh::memory(2).await;
    let first = ending(&mesh);
    let over = UnixTime(first.expires_at().0 + CLOCK_SKEW.as_secs() + 2);
    mesh[1].admission.join(first.clone());
    let link = mesh[0].transport.link(&mesh.scope(), &mesh[1].id()).await.unwrap();
    mesh[1].admission.join(mesh.grant(mesh[1].id(), "node-1", Permissions::MEMBER));
    mesh[1].transport.show_credential(&mesh.scope());
    until("the first grant is over", || async { UnixTime::now() >= over }).await;
    assert!(mesh[0].admission.check(&mesh.scope(), mesh[1].id(), &first).is_err());
    // The last of those that were shown counts where a revocation is judged, too.
    mesh[0].transport.recheck(&mesh.scope());
    assert!(link.is_current() && mesh[0].transport.links().len() == 1);
    let opened = link.open(Protocol::new("any/1")).await;
    assert!(opened.is_ok(), "{opened:?}");
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_later_grant_of_another_kind_is_not_taken_on_a_standing_link() {
    let mesh = Mesh::memory(2).await;
    let link = mesh[0].transport.link(&mesh.scope(), &mesh[1].id()).await.unwrap();
    let admin = Permissions { can_invite: true, ..Permissions::MEMBER };
    for grant in [mesh.grant(mesh[1].id(), "node-1", admin), mesh.grant(mesh[0].id(), "node-1", admin)] {
        mesh[1].admission.join(grant);
        let before = mesh[0].transport.metrics().grants_refused;
        mesh[1].transport.show_credential(&mesh.scope());
        until("it was looked at", || async { mesh[0].transport.metrics().grants_refused > before }).await;
    }
    assert_eq!(link.peer().permissions, Permissions::MEMBER);
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_hears_nothing_does_not_hold_up_the_next() {
    let (deaf, good) = (Network::new(1), Network::new(2));
    let mesh = Mesh::on(good.clone(), 2).await;
    let (from, to) = (mesh[0].id(), mesh[1].id());
    // The other one is there on both networks, and out of reach on one.
    let _there = deaf.driver(&mesh[1].key);
    deaf.cut(from, to);
    let transport = Transport::start(
        mesh[0].key.clone(),
        vec![deaf.driver(&mesh[0].key), good.driver(&mesh[0].key)],
        mesh[0].admission.clone(),
        Config::default(),
    );
    let before = tokio::time::Instant::now();
    transport.link(&mesh.scope(), &to).await.unwrap();
    assert!(before.elapsed() < SECOND, "virtual time: {:?}", before.elapsed());
    transport.shutdown().await;
    mesh.shutdown().await;
}
