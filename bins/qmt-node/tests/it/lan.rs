//! Meshes carried by the LAN transport.

use std::net::{TcpListener, UdpSocket};

use mesh_control::NodeState;
use mesh_transport::TransportKind;
use qmt_node::config::{Config, Discovery, Lan, StaticPeer, Trust};

use crate::support::{Host, Place, stop_both, until};

fn on_lan(config: &mut Config, port: u16) {
    config.mesh.enabled = Some(true);
    config.mesh.lan = Some(Lan {
        listen: format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap(),
        discovery: Discovery::None,
        trust: Trust::Client,
        psk: None,
    });
}

fn free_udp_port() -> u16 {
    UdpSocket::bind(("0.0.0.0", 0)).unwrap().local_addr().unwrap().port()
}

/// Free for TCP and, most likely, for UDP.
fn free_tcp_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

async fn linked_by(host: &Host, kind: TransportKind) {
    let what = format!("{} is linked by {kind:?}", host.node.name());
    until(&what, || async {
        host.node.transport().links().iter().any(|link| link.path.transport == kind).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_leads_over_the_lan_too_and_members_are_linked_there() {
    let (first, second) = (Place::new("first"), Place::new("second"));
    let (first, second) = tokio::join!(
        first.start_with(|config| on_lan(config, 0)),
        second.start_with(|config| on_lan(config, 0))
    );
    second.join(&first.invite().await.token).await;
    tokio::join!(first.sees(&second, NodeState::Alive), second.sees(&first, NodeState::Alive));
    tokio::join!(linked_by(&first, TransportKind::Lan), linked_by(&second, TransportKind::Lan));
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_every_address_has_changed_is_found_at_the_address_of_a_peer() {
    let (at_first, at_second) = (Place::new("first"), Place::new("second"));
    let (first, second) = tokio::join!(at_first.start(), at_second.start());
    second.join(&first.invite().await.token).await;
    first.sees(&second, NodeState::Alive).await;
    stop_both(first, second).await;

    let port = free_tcp_port();
    let first = at_first
        .start_with(|config| {
            config.mesh.internet.bind_port = Some(free_udp_port());
            on_lan(config, port);
        })
        .await;
    let second = at_second
        .start_with(|config| {
            config.mesh.internet.bind_port = Some(free_udp_port());
            let addr = format!("/ip4/127.0.0.1/tcp/{port}").parse().ok();
            config.mesh.peers = vec![StaticPeer { name: None, addr, id: None, role: None }];
        })
        .await;
    tokio::join!(first.sees(&second, NodeState::Alive), second.sees(&first, NodeState::Alive));
    linked_by(&second, TransportKind::Lan).await;
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_lan_port_is_named_at_start() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut config = Place::new("late").config();
    on_lan(&mut config, port);
    let error = qmt_node::Node::start(config).await.unwrap_err();
    let text = format!("{:#}", anyhow::Error::new(error));
    assert!(
        text.contains("LAN") && text.contains(&format!("tcp/{port}")) && text.contains("taken"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_lan_transport_joins_one_that_has_it() {
    let (first, second) = (Place::new("first"), Place::new("second"));
    let (first, second) = tokio::join!(first.start_with(|config| on_lan(config, 0)), second.start());
    // The sockets of the LAN transport are not the internet transport's to dial: they would turn it away.
    let token = first.invite().await.token;
    let invite = mesh_identity::InviteToken::parse(&token).unwrap();
    let hints = invite.verify(mesh_identity::UnixTime::now()).unwrap().grant().hints.clone();
    assert!(hints.lan.is_empty() && !hints.direct.is_empty(), "{hints:?}");
    second.join(&token).await;
    tokio::join!(first.sees(&second, NodeState::Alive), second.sees(&first, NodeState::Alive));
    tokio::join!(linked_by(&first, TransportKind::Internet), linked_by(&second, TransportKind::Internet));
    stop_both(first, second).await;
}
