//! Certificates that are renewed, run out or are revoked while the channel is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};

use mesh_identity::NodeKey;
use mesh_sessions::channel::{Client, ClientConfig, Ending, Heard, Limits, Refusal, Tls};
use tokio::io::AsyncReadExt as _;

use crate::delegations::outgoing;
use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_under_load_drops_nothing() {
    let node = Node::start().await;
    let client_tls = node.ca.tls(&Spec::of("ct111", 2));
    let client = Client::new(client_tls.clone(), node.registry.clone(), ClientConfig::default());
    let over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let (client, target, over) = (client.clone(), node.target(), over.clone());
            tokio::spawn(async move {
                let mut count = 0;
                while !over.load(SeqCst) {
                    let order = outgoing("echo", &format!("{caller}-{count}"));
                    let answering = client.delegate(&target, &order).await.expect("it is taken");
                    assert_eq!(answering.outcome().await.expect("it is answered").response, "do it");
                    count += 1;
                }
                count
            })
        })
        .collect();
    for round in 0..20 {
        let before = node.server.stats().delegations_ended(Ending::Done);
        until("requests go on", || node.server.stats().delegations_ended(Ending::Done) >= before + 20).await;
        let (server, caller) = (Spec::of("ct110", 100 + round), Spec::of("ct111", 200 + round));
        let credentials = node.ca.credentials(&node.ca.issue(&server), vec![node.ca.crl(round + 2, &[])]);
        assert_eq!(node.tls.reload(&credentials).unwrap().closed, 0);
        let credentials = node.ca.credentials(&node.ca.issue(&caller), vec![]);
        assert_eq!(client_tls.reload(&credentials).unwrap().closed, 0);
        assert_eq!(node.tls.leaf().serial.to_string(), format!("{:02x}", 100 + round));
    }
    over.store(true, SeqCst);
    let mut count = 0;
    for caller in callers {
        count += caller.await.unwrap();
    }
    let stats = node.server.stats();
    assert_eq!((Ending::ALL.map(|how| stats.delegations_ended(how)), stats.cut), ([count, 0, 0, 0], 0));
    assert!(stats.handshakes > 4, "connections were made anew with the new certificates");
    node.end().await;
}

#[tokio::test]
async fn a_revocation_closes_open_connections_and_ends_their_delegations() {
    let node = impatient().await;
    let revoked = node.client_of(&Spec::of("guest", 66));
    let mut order = outgoing("slow", "k");
    order.request.from_agent = "opus".to_owned();
    let mut answering = revoked.delegate(&node.target(), &order).await.unwrap();
    assert!(matches!(answering.next().await.unwrap(), Heard::Begun { .. }));
    // An idle one, and one of somebody else.
    let config = raw_config(&node.ca, Some(&node.ca.issue(&Spec::of("guest", 66))));
    let mut idle = raw_connect(node.server.address(), config.clone()).await.unwrap();
    let good = node.client("ct111");
    good.ping(&node.target()).await.unwrap();
    until("all are there", || node.server.stats().connections == 3).await;

    let issued = node.ca.issue(&Spec::of("ct110", 1));
    let credentials = node.ca.credentials(&issued, vec![node.ca.crl(2, &[66])]);
    assert_eq!(node.tls.reload(&credentials).unwrap().closed, 2);
    assert!(answering.next().await.is_err());
    let closed = tokio::time::timeout(PATIENCE, idle.read(&mut [0; 16])).await.expect("it is closed");
    assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
    until("they are gone", || node.server.stats().connections == 1).await;
    // Nobody can come back for it: it is given up as any other.
    assert_eq!(node.server.stats().cut, 2);
    assert!(node.log.has("the certificate is accepted no more: its connection is closed peer.cn=guest"));
    assert!(revoked.ping(&node.target()).await.is_err());
    until("refused", || node.log.has("TLS handshake failed from 127.0.0.1: certificate revoked")).await;
    good.ping(&node.target()).await.unwrap();
    node.server.shutdown().await;
}

#[tokio::test]
async fn a_membership_that_ends_closes_what_its_node_has_open_and_lets_it_in_no_more() {
    let node = impatient().await;
    let id = NodeKey::from_seed([2; 32]).node_id();
    let spec = Spec { node: Some(id), ..Spec::of("ct111", 2) };
    let (member, other) = (node.client_of(&spec), node.client("guest"));
    let mut answering = member.delegate(&node.target(), &outgoing("slow", "k")).await.unwrap();
    assert!(matches!(answering.next().await.unwrap(), Heard::Begun { .. }));
    other.ping(&node.target()).await.unwrap();
    node.ended.lock().unwrap().insert(id);
    assert_eq!(node.tls.close_ended(), 1);
    assert!(answering.next().await.is_err());
    assert!(member.ping(&node.target()).await.is_err());
    let line = "TLS handshake failed from 127.0.0.1: the membership of its node was revoked";
    until("refused", || node.log.has(line)).await;
    assert_eq!(node.server.stats().handshakes_refused(Refusal::Revoked), 1);
    other.ping(&node.target()).await.unwrap();
    // Let in again, it is as before.
    node.ended.lock().unwrap().clear();
    member.ping(&node.target()).await.unwrap();
    node.server.shutdown().await;
}

#[tokio::test]
async fn a_client_leaves_a_server_whose_certificate_is_revoked() {
    let node = impatient().await;
    let issued = node.ca.issue(&Spec::of("ct111", 2));
    let tls = Tls::new(&node.ca.credentials(&issued, vec![]), shifted(&Arc::default())).unwrap();
    let client = Client::new(tls.clone(), node.registry.clone(), ClientConfig::default());
    let mut answering = client.delegate(&node.target(), &outgoing("slow", "k")).await.unwrap();
    assert!(matches!(answering.next().await.unwrap(), Heard::Begun { .. }));
    assert_eq!(tls.connections(), (0, 1));
    assert_eq!(tls.reload(&node.ca.credentials(&issued, vec![node.ca.crl(2, &[1])])).unwrap().closed, 1);
    assert!(answering.next().await.is_err());
    assert!(client.ping(&node.target()).await.is_err());
    drop(answering);
    node.server.shutdown().await;
}

#[tokio::test]
async fn a_connection_does_not_outlive_its_certificate() {
    let clock = Arc::new(AtomicI64::new(0));
    let node = Node::with(Limits::default(), vec![], clock.clone()).await;
    let mut short = Spec::of("guest", 3);
    short.holds = (-2 * HOUR, HOUR);
    let config = raw_config(&node.ca, Some(&node.ca.issue(&short)));
    let mut stream = raw_connect(node.server.address(), config).await.unwrap();
    until("it is there", || node.server.stats().connections == 1).await;
    assert_eq!(node.tls.close_refused(), 0);
    clock.store(HOUR + 1, SeqCst);
    assert_eq!(node.tls.close_refused(), 1);
    assert_eq!(hear(&mut stream).await, "");
    node.end().await;
}

#[tokio::test]
async fn credentials_that_do_not_hold_leave_the_old_ones_in_force() {
    let node = Node::start().await;
    let mut expired = Spec::of("ct110", 9);
    expired.holds = (-2 * HOUR, -HOUR);
    let credentials = node.ca.credentials(&node.ca.issue(&expired), vec![]);
    assert!(node.tls.reload(&credentials).is_err());
    assert_eq!(node.tls.leaf().serial.to_string(), "01");
    node.client("ct111").ping(&node.target()).await.unwrap();
    node.end().await;
}

/// A node that does not wait for those who could come back.
async fn impatient() -> Node {
    let limits = Limits { shutdown: std::time::Duration::from_millis(100), ..Limits::default() };
    Node::with(limits, vec![], Arc::default()).await
}
