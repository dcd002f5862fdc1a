//! The scope `lan`: peers that nobody invited.

use mesh_control::{ErrorCode, LeaveRequest, NodeState, Role};
use mesh_identity::{
    Authority, Founding, InviteOptions, NodeId, NodeKey, Role as GrantRole, ScopeId, UnixTime,
};
use qmt_node::config::{Config, Discovery, Lan, Provider, Share, StaticPeer, Trust};

use crate::support::stub::{PIECES, Stub};
use crate::support::{Host, Place, api_error, http, until};

const PSK: &str = "four words of luck";

/// On the LAN transport by this rule, with this pre-shared key.
fn on_lan(config: &mut Config, trust: Trust, psk: Option<&str>) {
    config.mesh.enabled = Some(true);
    config.mesh.lan = Some(Lan {
        listen: "/ip4/127.0.0.1/tcp/0".parse().unwrap(),
        discovery: Discovery::None,
        trust,
        psk: psk.map(str::to_owned),
    });
}

/// Names another node by its address, as `--peer` does.
fn dials(config: &mut Config, other: &Host) {
    let addr = other.node.transport().local_addr(&ScopeId::lan(None)).lan[0];
    let addr = format!("/ip4/{}/tcp/{}", addr.ip(), addr.port()).parse().ok();
    config.mesh.peers.push(StaticPeer { name: None, addr, id: None, role: None });
}

fn shared(stub: &Stub, name: &str, share: Share) -> Provider {
    Provider { name: name.to_owned(), share, ..stub.provider() }
}

async fn linked(host: &Host, other: &Host) {
    let id = other.node.id();
    let what = format!("{} is linked with {} in scope lan", host.node.name(), other.node.name());
    until(&what, || async { peers_of(host).contains(&id).then_some(()) }).await;
}

fn peers_of(host: &Host) -> Vec<NodeId> {
    host.node.transport().links().into_iter().map(|link| link.peer.id).collect()
}

async fn ask(host: &Host, model: &str) -> http::Answer {
    http::post(host.gateway().await, "/v1/chat/completions", http::chat(model)).await
}

async fn refuses_somebody(host: &Host) {
    let what = format!("{} refuses a hello", host.node.name());
    until(&what, || async { (host.node.transport().metrics().hellos_refused > 0).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_uses_what_is_shared_with_clients_and_a_raised_peer_what_members_have() {
    let (for_all, for_members) = (Stub::start(&["open-model"]).await, Stub::start(&["house-model"]).await);
    let raised = NodeKey::from_seed([77; 32]);
    let at_raised = Place::new("raised");
    std::fs::create_dir(at_raised.home()).unwrap();
    mesh_identity::key_file::create(&at_raised.home().join("mesh_identity.key"), &raised).unwrap();

    let first = Place::new("first")
        .start_with(|config| {
            on_lan(config, Trust::Client, None);
            let id = Some(raised.node_id());
            let peer = StaticPeer { name: Some("bob".into()), addr: None, id, role: Some(GrantRole::Member) };
            config.mesh.peers = vec![peer];
            config.providers = vec![
                shared(&for_all, "for-all", Share::Clients),
                shared(&for_members, "for-members", Share::Members),
            ];
        })
        .await;
    let join = |config: &mut Config| {
        on_lan(config, Trust::Client, None);
        dials(config, &first);
    };
    let at_stranger = Place::new("stranger");
    let (stranger, raised) = tokio::join!(at_stranger.start_with(join), at_raised.start_with(join));
    tokio::join!(stranger.offers("open-model"), raised.offers("open-model"), raised.offers("house-model"));

    assert_eq!(ask(&stranger, "open-model").await.body, PIECES.concat());
    assert_eq!(ask(&raised, "house-model").await.body, PIECES.concat());
    let refused = ask(&stranger, "house-model").await;
    assert_eq!(refused.code(), "model_not_found", "{refused:?}");
    assert!(!refused.message().contains("house-model,"), "{refused:?}");

    // What they are is for the first to say, and so is what they are called.
    let role = |host: &Host| {
        let (id, first) = (host.id(), &first);
        async move { first.view_of(&id).await.unwrap().role }
    };
    assert_eq!((role(&stranger).await, role(&raised).await), (Role::Client, Role::Member));
    let ping = |name: &str| {
        let request = mesh_control::PingRequest { node: name.to_owned(), ..Default::default() };
        let client = &first.client;
        async move { client.ping(&request).await }
    };
    assert_eq!(ping("bob").await.unwrap().len(), 1);
    assert_eq!(api_error(ping("stranger").await).code, ErrorCode::UnknownNode);
    assert_eq!(ping(&stranger.id()).await.unwrap().len(), 1);
    for host in [stranger, raised, first] {
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_pre_shared_key_lets_in_and_another_does_not() {
    let first = Place::new("first").start_with(|config| on_lan(config, Trust::Open, Some(PSK))).await;
    let with = |psk| {
        let first = &first;
        move |config: &mut Config| {
            on_lan(config, Trust::Open, psk);
            dials(config, first);
        }
    };
    let (none, other) = (Place::new("none"), Place::new("other"));
    let (none, other) =
        tokio::join!(none.start_with(with(None)), other.start_with(with(Some("four other words"))));
    refuses_somebody(&first).await;
    let right = Place::new("right").start_with(with(Some(PSK))).await;
    tokio::join!(linked(&first, &right), linked(&right, &first));
    assert_eq!(first.sees(&right, NodeState::Alive).await.role, Role::Member);
    assert_eq!(peers_of(&first), [right.node.id()]);
    for host in [none, other, right, first] {
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_trust_in_peers_alone_the_unnamed_stay_out() {
    let known = Place::new("known").start_with(|config| on_lan(config, Trust::Client, None)).await;
    let first = Place::new("first")
        .start_with(|config| {
            on_lan(config, Trust::Peers, None);
            dials(config, &known);
            config.mesh.peers[0].id = Some(known.node.id());
        })
        .await;
    let unnamed = Place::new("unnamed")
        .start_with(|config| {
            on_lan(config, Trust::Client, None);
            dials(config, &first);
        })
        .await;
    tokio::join!(linked(&first, &known), refuses_somebody(&first));
    assert_eq!(peers_of(&first), [known.node.id()]);
    for host in [unnamed, known, first] {
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_left_the_scope_is_not_met_again() {
    let first = Place::new("first").start_with(|config| on_lan(config, Trust::Client, None)).await;
    let at_second = Place::new("second");
    let second = at_second
        .start_with(|config| {
            on_lan(config, Trust::Client, None);
            dials(config, &first);
        })
        .await;
    linked(&first, &second).await;
    second.client.leave(&LeaveRequest { scope: "lan".into() }).await.unwrap();
    let id = second.id();
    until("the first sees it gone", || async { first.view_of(&id).await.is_none().then_some(()) }).await;
    assert!(second.node.transport().links().is_empty());
    assert!(second.client.status().await.unwrap().scopes.is_empty());
    second.stop().await;

    // The configuration is asked at the next start, and nothing of strangers was kept for it.
    let second = at_second.start_with(|config| on_lan(config, Trust::Invite, None)).await;
    assert!(second.client.status().await.unwrap().scopes.is_empty());
    second.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_into_the_scope_of_the_uninvited_is_refused() {
    let founder = |context| NodeKey::from_seed(blake3::derive_key(context, &[0; 32]));
    let key = founder("qmt-mesh 2026-11 lan scope founder key v1");
    let recovery = founder("qmt-mesh 2026-11 lan scope recovery key v1");
    let root = Founding::with_recovery(&key, recovery).root;
    assert_eq!(root.id(), ScopeId::lan(None), "anybody can found it, and so sign its invites");
    let authority = Authority::founder(key, root).unwrap();
    let token = authority.issue_invite(&InviteOptions::default(), UnixTime::now()).unwrap();
    let host = Host::new("host").await;
    let refused = host.refused(&token.to_string()).await;
    assert_eq!(refused.code, ErrorCode::InviteRefused);
    assert!(refused.message.contains("uninvited"), "{refused:?}");
    let named = mesh_control::InviteRequest { name: Some("lan".into()), ..Default::default() };
    assert_eq!(api_error(host.client.invite(&named).await).code, ErrorCode::BadRequest);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ways_to_a_peer_of_two_scopes_are_told_in_order_and_with_reasons() {
    let first = Place::new("first").start_with(|config| on_lan(config, Trust::Client, None)).await;
    let second = Place::new("second")
        .start_with(|config| {
            on_lan(config, Trust::Client, None);
            dials(config, &first);
        })
        .await;
    second.join(&first.invite().await.token).await;
    let id = second.id();
    let ways = until("there are two ways", || async {
        let ways = first.client.routes_for_peer(&id).await.unwrap();
        let both = ways.iter().filter(|way| way.transport.as_deref() == Some("lan")).count() == 2;
        (both && ways.iter().all(|way| way.rtt_ms.is_some())).then_some(ways)
    })
    .await;
    let mut scopes: Vec<&str> = ways.iter().map(|way| way.scope_name.as_str()).collect();
    scopes.sort_unstable();
    assert_eq!(scopes, ["home", "lan"]);
    assert!(ways[0].why.starts_with("straight over the local network; first of 2: it "), "{ways:?}");
    assert!(ways[1].why.starts_with("straight over the local network; the one above "), "{ways:?}");
    assert!(ways.iter().all(|way| way.node == id && !way.addresses.is_empty()), "{ways:?}");
    let itself = first.client.routes_for_peer(&first.id()).await.unwrap();
    assert_eq!((itself.len(), itself[0].why.as_str()), (1, "it is this node itself"));
    assert_eq!(api_error(first.client.routes_for_peer("nobody").await).code, ErrorCode::UnknownNode);
    second.stop().await;
    first.stop().await;
}
