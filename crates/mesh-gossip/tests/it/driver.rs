//! The driver over links in memory, with real keys, grants and revocations. Virtual time: nothing here waits for real.

use std::time::Duration;

use mesh_gossip::{
    Audience, Config, Credentials, DownWhy, Event, EventStream, Exchange, GOSSIP, Gossip, SetError,
    StartError, State,
};
use mesh_identity::{Permissions, RevocationSet, Revoked, Role, UnixTime};
use mesh_transport::memory::Network;
use mesh_transport::testing::{Mesh, TestNode};
use tokio::io::AsyncWriteExt;

/// Longest virtual time that anything here may take.
const LIMIT: Duration = Duration::from_secs(120);

fn start(mesh: &Mesh, number: usize, exchange: &Exchange, config: Config) -> Result<Gossip, StartError> {
    let node = &mesh[number];
    let grant = mesh.grant(node.id(), &format!("node-{number}"), Permissions::MEMBER);
    start_as(mesh, node, grant, exchange, config)
}

fn start_as(
    mesh: &Mesh,
    node: &TestNode,
    grant: mesh_identity::SignedGrant,
    exchange: &Exchange,
    config: Config,
) -> Result<Gossip, StartError> {
    let revocations = RevocationSet::new(mesh.scope());
    Gossip::start(exchange, Credentials { key: node.key.clone(), grant, revocations }, config)
}

/// Gossip at every node, each linked with the one before it.
async fn line(mesh: &Mesh) -> Vec<Gossip> {
    let mut all = Vec::new();
    for number in 0..mesh.nodes().len() {
        let exchange = Exchange::new(mesh[number].transport.clone());
        all.push(start(mesh, number, &exchange, Config::default()).unwrap());
        if number > 0 {
            mesh[number].transport.link(&mesh.scope(), &mesh[number - 1].id()).await.unwrap();
        }
    }
    all
}

async fn until(gossip: &Gossip, what: &str, holds: impl Fn(&mesh_gossip::Members) -> bool) {
    let mut members = gossip.watch();
    let waited = tokio::time::timeout(LIMIT, members.wait_for(|members| holds(members))).await;
    assert!(waited.is_ok_and(|seen| seen.is_ok()), "waited in vain: {what}");
}

async fn until_event(events: &mut EventStream, what: &str, is_it: impl Fn(&Event) -> bool) -> Event {
    let wait = async {
        loop {
            let event = events.next().await.expect("gossip goes on");
            if is_it(&event) {
                return event;
            }
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

async fn end(mesh: &Mesh, all: &[Gossip]) {
    for gossip in all {
        gossip.shutdown().await;
    }
    mesh.shutdown().await;
}

fn are_alive(members: &mesh_gossip::Members, count: usize) -> bool {
    members.alive().count() == count
}

#[tokio::test(start_paused = true)]
async fn members_find_each_other_and_share_values() {
    let mesh = Mesh::memory(4).await;
    let all = line(&mesh).await;
    all[0].set("models", b"llama".to_vec()).await.unwrap();
    assert_eq!(all[0].members().me().unwrap().value("models").unwrap(), &b"llama"[..]);
    let first = mesh[0].id();
    for gossip in &all {
        until(gossip, "all alive", |members| are_alive(members, 3)).await;
    }
    for gossip in &all[1..] {
        until(gossip, "the value", |members| {
            members.get(&first).is_some_and(|m| m.value("models").is_some())
        })
        .await;
    }
    let members = all[3].members();
    let member = members.get(&first).unwrap();
    assert_eq!((member.name.as_str(), member.role), ("node-0", Role::Member));
    all[0].remove("models").await.unwrap();
    until(&all[3], "removed", |members| members.get(&first).unwrap().value("models").is_none()).await;
    end(&mesh, &all).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_is_in_the_address_book_is_dialed() {
    let mesh = Mesh::memory(3).await;
    let start = |number: usize| {
        start(&mesh, number, &Exchange::new(mesh[number].transport.clone()), Config::default())
    };
    let all: Vec<_> = (0..3).map(|number| start(number).unwrap()).collect();
    for gossip in &all {
        until(gossip, "linked with all", |members| {
            members.alive().filter(|member| member.linked).count() == 2
        })
        .await;
    }
    end(&mesh, &all).await;
}

#[tokio::test(start_paused = true)]
async fn links_to_all_members_are_made_and_remade() {
    let network = Network::new(1);
    let mesh = Mesh::on(network.clone(), 3).await;
    let all = line(&mesh).await;
    until(&all[2], "linked with all", |members| members.iter().filter(|member| member.linked).count() == 2)
        .await;
    let mut events = all[2].subscribe();
    network.break_connections(mesh[0].id(), mesh[2].id());
    let node = mesh[0].id();
    until_event(
        &mut events,
        "suspect",
        |event| matches!(event, Event::MemberSuspect { node: n, .. } if *n == node),
    )
    .await;
    until(&all[2], "alive and linked again", |members| {
        members.get(&node).is_some_and(|m| m.is_alive() && m.linked)
    })
    .await;
    end(&mesh, &all).await;
}

#[tokio::test(start_paused = true)]
async fn an_isolated_member_is_down_and_comes_back() {
    let network = Network::new(2);
    let mesh = Mesh::on(network.clone(), 3).await;
    let all = line(&mesh).await;
    let lost = mesh[2].id();
    until(&all[0], "all alive", |members| are_alive(members, 2)).await;
    let mut events = all[0].subscribe();
    network.isolate(lost);
    let is_down = |event: &Event| matches!(event, Event::MemberDown { node, .. } if *node == lost);
    let down = until_event(&mut events, "down", is_down).await;
    let Event::MemberDown { witnesses, .. } = down else { unreachable!() };
    assert_eq!(witnesses.len(), 2, "both that are left say so: {witnesses:?}");
    assert_eq!(all[0].members().get(&lost).unwrap().state, State::Down);
    let before = all[0].members().get(&lost).unwrap().incarnation;
    until(&all[2], "the lost one sees nobody", |members| are_alive(members, 0)).await;
    network.rejoin(lost);
    until(&all[0], "alive again", |members| members.get(&lost).is_some_and(|member| member.is_alive())).await;
    assert!(all[0].members().get(&lost).unwrap().incarnation > before);
    end(&mesh, &all).await;
}

#[tokio::test(start_paused = true)]
async fn leaving_is_told_and_final() {
    let mesh = Mesh::memory(3).await;
    let all = line(&mesh).await;
    let leaver = mesh[2].id();
    until(&all[0], "all alive", |members| are_alive(members, 2)).await;
    let mut events = all[0].subscribe();
    all[2].leave().await;
    all[2].leave().await;
    until_event(
        &mut events,
        "left",
        |event| matches!(event, Event::MemberLeft { node, .. } if *node == leaver),
    )
    .await;
    assert!(all[0].members().get(&leaver).is_none());
    assert_eq!(all[2].set("k", b"v".to_vec()).await, Err(SetError::Closed));
    assert!(all[2].subscribe().next().await.is_none());
    end(&mesh, &all).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_again_replaces_its_earlier_life() {
    let mesh = Mesh::memory(2).await;
    let exchange = Exchange::new(mesh[1].transport.clone());
    let first = start(&mesh, 0, &Exchange::new(mesh[0].transport.clone()), Config::default()).unwrap();
    let second = start(&mesh, 1, &exchange, Config::default()).unwrap();
    second.set("old", b"1".to_vec()).await.unwrap();
    mesh[1].transport.link(&mesh.scope(), &mesh[0].id()).await.unwrap();
    let node = mesh[1].id();
    until(&first, "old life", |members| members.get(&node).is_some_and(|m| m.value("old").is_some())).await;
    assert_eq!(start(&mesh, 1, &exchange, Config::default()).err(), Some(StartError::AlreadyRunning));
    second.shutdown().await;
    let second = start(&mesh, 1, &exchange, Config::default()).unwrap();
    second.set("new", b"2".to_vec()).await.unwrap();
    until(&first, "new life", |members| {
        members
            .get(&node)
            .is_some_and(|m| m.is_alive() && m.value("new").is_some() && m.value("old").is_none())
    })
    .await;
    end(&mesh, &[first, second]).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_says_it_shuts_down_is_down_at_once() {
    let mesh = Mesh::memory(2).await;
    let all = line(&mesh).await;
    until(&all[0], "alive", |members| are_alive(members, 1)).await;
    let mut events = all[0].subscribe();
    all[1].shutdown().await;
    mesh[1].transport.shutdown().await;
    let is_loss = |event: &Event| matches!(event, Event::MemberSuspect { .. } | Event::MemberDown { .. });
    let event = until_event(&mut events, "a loss", is_loss).await;
    let stopped = mesh[1].id();
    assert!(
        matches!(event, Event::MemberDown { node, why: DownWhy::Stopped, .. } if node == stopped),
        "{event:?}"
    );
    end(&mesh, &all).await;
}

#[tokio::test(start_paused = true)]
async fn a_revocation_spreads_and_ends_the_member() {
    let mesh = Mesh::memory(3).await;
    let all = line(&mesh).await;
    let revoked = mesh[2].id();
    until(&all[1], "all alive", |members| are_alive(members, 2)).await;
    let mut events = all[1].subscribe();
    let revocation = mesh.authority().revoke(Revoked::Node(revoked), UnixTime::now()).unwrap();
    all[0].revoke(&revocation).await;
    let event = until_event(&mut events, "told", |event| matches!(event, Event::Revoked { .. })).await;
    assert_eq!(event, Event::Revoked { revocation: revocation.encode().into() });
    let why = |event: &Event| matches!(event, Event::MemberDown { node, why: DownWhy::Revoked, .. } if *node == revoked);
    until_event(&mut events, "down", why).await;
    end(&mesh, &all).await;
}

#[tokio::test(start_paused = true)]
async fn a_passive_client_sees_what_is_for_everyone_and_is_not_listed() {
    let mut mesh = Mesh::memory(2).await;
    let all = line(&mesh).await;
    let client = Permissions { role: Role::Client, ..Permissions::MEMBER };
    mesh.add(client).await;
    let grant = mesh.grant(mesh[2].id(), "node-2", client);
    let exchange = Exchange::new(mesh[2].transport.clone());
    let lite = start_as(&mesh, &mesh[2], grant, &exchange, Config::passive()).unwrap();
    all[1].publish("models", b"llama".to_vec(), Audience::Everyone).await.unwrap();
    all[1].set("memory", b"24".to_vec()).await.unwrap();
    mesh[2].transport.link(&mesh.scope(), &mesh[0].id()).await.unwrap();
    let host = mesh[1].id();
    until(&lite, "models", |members| {
        members.get(&host).is_some_and(|m| m.is_alive() && m.value("models").is_some())
    })
    .await;
    assert!(lite.members().get(&host).unwrap().value("memory").is_none());
    assert!(all[0].members().get(&mesh[2].id()).is_none());
    assert_eq!(lite.set("k", b"v".to_vec()).await, Err(SetError::Passive));
    lite.shutdown().await;
    end(&mesh, &all).await;
}

#[tokio::test(start_paused = true)]
async fn a_hostile_stream_is_counted_and_harms_nobody() {
    let mesh = Mesh::memory(2).await;
    let all = line(&mesh).await;
    let mut stream = mesh[1].transport.open(&mesh.scope(), &mesh[0].id(), GOSSIP).await.unwrap();
    stream.write_all(&[0, 0, 0, 2, 0xff, 0xff]).await.unwrap();
    stream.write_all(&[0xff; 64]).await.unwrap();
    let wait = async {
        while all[0].metrics().peer_faults < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.expect("counted");
    until(&all[0], "still alive", |members| are_alive(members, 1)).await;
    end(&mesh, &all).await;
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_lags_is_told_to_read_the_snapshot() {
    let mesh = Mesh::memory(2).await;
    let exchange = Exchange::new(mesh[0].transport.clone());
    let first = start(&mesh, 0, &exchange, Config { event_backlog: 2, ..Config::default() }).unwrap();
    let second = start(&mesh, 1, &Exchange::new(mesh[1].transport.clone()), Config::default()).unwrap();
    let mut events = first.subscribe();
    for number in 0..10 {
        second.set(&format!("k{number}"), vec![1]).await.unwrap();
    }
    mesh[1].transport.link(&mesh.scope(), &mesh[0].id()).await.unwrap();
    let node = mesh[1].id();
    until(&first, "values", |members| members.get(&node).is_some_and(|m| m.values.len() == 10)).await;
    second.set("last", vec![1]).await.unwrap();
    second.set("last", vec![2]).await.unwrap();
    until(&first, "last", |members| members.get(&node).is_some_and(|m| m.value("last").is_some())).await;
    for number in 0..10 {
        second.set(&format!("k{number}"), vec![2]).await.unwrap();
    }
    until(&first, "changed", |members| {
        members.get(&node).is_some_and(|m| m.values.values().filter(|v| v.bytes[..] == [2]).count() == 11)
    })
    .await;
    until_event(&mut events, "lagged", |event| *event == Event::Snapshot).await;
    end(&mesh, &[first, second]).await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_is_idempotent_and_leaves_no_task() {
    let mesh = Mesh::memory(3).await;
    let all = line(&mesh).await;
    until(&all[0], "all alive", |members| are_alive(members, 2)).await;
    end(&mesh, &all).await;
    end(&mesh, &all).await;
    let left = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert_eq!(left, 0, "tasks left");
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_dropped_ends_it() {
    let mesh = Mesh::memory(1).await;
    let exchange = Exchange::new(mesh[0].transport.clone());
    let gossip = start(&mesh, 0, &exchange, Config::default()).unwrap();
    let mut events = gossip.subscribe();
    drop(gossip);
    assert!(events.next().await.is_none());
    start(&mesh, 0, &exchange, Config::default()).unwrap().shutdown().await;
    mesh.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn two_scopes_share_one_transport_and_see_nothing_of_each_other() {
    let mesh = Mesh::memory(2).await;
    let all = line(&mesh).await;
    let founder = mesh[0].key.clone();
    let founding = mesh_identity::Founding::new(&founder);
    let authority = mesh_identity::Authority::founder(founder.clone(), founding.root).unwrap();
    let name = mesh_identity::NodeName::new("other").unwrap();
    let grant =
        authority.sign_grant(founder.node_id(), name, Permissions::MEMBER, None, UnixTime::now()).unwrap();
    // The one exchange of that transport would be kept by the node; this replaces it, so the first scope starts anew.
    all[0].shutdown().await;
    let exchange = Exchange::new(mesh[0].transport.clone());
    let first = start(&mesh, 0, &exchange, Config::default()).unwrap();
    let revocations = RevocationSet::new(authority.scope());
    let other = Gossip::start(&exchange, Credentials { key: founder, grant, revocations }, Config::default())
        .unwrap();
    other.set("secret", b"x".to_vec()).await.unwrap();
    until(&first, "the peer", |members| are_alive(members, 1)).await;
    assert!(other.members().is_empty());
    let seen = all[1].members();
    assert!(seen.get(&mesh[0].id()).is_none_or(|member| member.value("secret").is_none()));
    other.shutdown().await;
    first.shutdown().await;
    all[1].shutdown().await;
    mesh.shutdown().await;
}

/// Who was revoked and is admitted again has a grant of after the revocation; in the same second that lies ahead of the clock.
#[tokio::test(start_paused = true)]
async fn a_life_begins_no_earlier_than_its_grant() {
    let mesh = Mesh::memory(1).await;
    let founder = mesh[0].key.clone();
    let founding = mesh_identity::Founding::new(&founder);
    let authority = mesh_identity::Authority::founder(founder.clone(), founding.root).unwrap();
    let name = mesh_identity::NodeName::new("again").unwrap();
    let issued = UnixTime(UnixTime::now().0 + 30);
    let grant = authority.sign_grant(founder.node_id(), name, Permissions::MEMBER, None, issued).unwrap();
    let exchange = Exchange::new(mesh[0].transport.clone());
    let revocations = RevocationSet::new(authority.scope());
    let gossip =
        Gossip::start(&exchange, Credentials { key: founder, grant, revocations }, Config::default())
            .unwrap();
    assert_eq!(gossip.members().me().unwrap().incarnation.life(), issued.0);
    gossip.shutdown().await;
    mesh.shutdown().await;
}
