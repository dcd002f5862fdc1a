//! In a scope that people are invited to, who has no grant gets nothing but hello.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mesh_identity::{
    AdmissionRequest, Authority, Founding, Grant, InviteError, NodeId, NodeKey, NodeName, Permissions,
    ScopeId, SignedGrant, UnixTime,
};
use mesh_transport::internet::{Config as InternetConfig, Internet};
use mesh_transport::{
    Admission, CloseCode, ClosedWhy, Config, DialError, DialVia, Driver, OpenError, Protocol, Refusal,
    Transport,
};
use qmt_node::store::Store;
use tokio::io::AsyncWriteExt;

use crate::support::{Host, Place, pair, stop_both, until};

const PROTOCOLS: [&str; 5] = ["gossip/2", "gateway/1", "ping/1", "drop/1", "renew/1"];

/// Shows one grant wherever it goes, and believes everybody.
struct Shows(Arc<SignedGrant>);

impl Admission for Shows {
    fn credential(&self, _: &ScopeId) -> Option<Arc<SignedGrant>> {
        Some(self.0.clone())
    }

    fn check(&self, scope: &ScopeId, subject: NodeId, grant: &SignedGrant) -> Result<Grant, Refusal> {
        let nothing_revoked = mesh_identity::RevocationSet::new(*scope);
        let grant = grant.verify(scope, UnixTime::now(), &nothing_revoked);
        grant.ok().filter(|grant| grant.subject == subject).ok_or(Refusal::NotAdmitted)
    }

    fn admit(
        &self,
        _: &ScopeId,
        _: NodeId,
        _: AdmissionRequest,
    ) -> BoxFuture<'_, Result<SignedGrant, InviteError>> {
        Box::pin(async { Err(InviteError::NotAllowed) })
    }
}

/// A transport of its own that shows `grant` and knows where `victim` is.
async fn stranger(key: &NodeKey, grant: SignedGrant, scope: ScopeId, victim: &Host) -> Transport {
    let driver = Internet::bind(key, InternetConfig::default()).await.unwrap();
    let transport =
        Transport::start(key.clone(), vec![driver], Arc::new(Shows(Arc::new(grant))), Config::default());
    transport.book().insert(scope, victim.node.id(), victim.node.transport().local_addr(&scope));
    transport
}

async fn only_scope(host: &Host) -> ScopeId {
    host.client.status().await.unwrap().scopes[0].id.parse().unwrap()
}

async fn assert_gets_nothing(transport: &Transport, scope: ScopeId, victim: &Host) {
    let refused = transport.link(&scope, &victim.node.id()).await.unwrap_err();
    assert!(matches!(refused, DialError::Refused { refusal: Refusal::NotAdmitted, .. }), "{refused:?}");
    for name in PROTOCOLS {
        let refused = transport.open(&scope, &victim.node.id(), Protocol::new(name)).await.unwrap_err();
        let OpenError::Dial(refused) = refused else { panic!("{name}: {refused:?}") };
        assert!(
            matches!(refused, DialError::Refused { refusal: Refusal::NotAdmitted, .. }),
            "{name}: {refused:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_founder_of_another_scope_is_refused_every_protocol() {
    let victim = Host::new("victim").await;
    victim.invite().await;
    let scope = only_scope(&victim).await;
    let key = NodeKey::generate();
    let own = Authority::founder(key.clone(), Founding::new(&key).root).unwrap();
    let name = NodeName::new("victim").unwrap();
    let grant = own.sign_grant(key.node_id(), name, Permissions::ADMIN, None, UnixTime::now()).unwrap();
    let stranger = stranger(&key, grant, scope, &victim).await;
    assert_gets_nothing(&stranger, scope, &victim).await;
    assert_eq!(victim.node.transport().metrics().streams_served, 0);
    assert_eq!(victim.client.nodes().await.unwrap().len(), 1);
    stranger.shutdown().await;
    victim.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_members_grant_is_worth_nothing_in_other_hands() {
    let (first, second) = pair().await;
    let scope = only_scope(&first).await;
    let store = Store::open(&second.node.control_socket().with_file_name("node.db")).await.unwrap();
    let stolen = store.scopes().await.unwrap().remove(0).grant.unwrap();
    store.close().await;
    let thief = stranger(&NodeKey::generate(), stolen, scope, &first).await;
    assert_gets_nothing(&thief, scope, &first).await;
    assert_eq!(first.client.nodes().await.unwrap().len(), 2);
    thief.shutdown().await;
    stop_both(first, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_hello_no_protocol_is_served() {
    let place = Place::new("victim");
    let victim = place.start().await;
    victim.invite().await;
    let scope = only_scope(&victim).await;
    let addr = victim.node.transport().local_addr(&scope);
    for (number, name) in (1..).zip(PROTOCOLS) {
        let raw = Internet::bind(&NodeKey::generate(), InternetConfig::default()).await.unwrap();
        let conn = raw.dial(&scope, victim.node.id(), &addr, DialVia::default()).await.unwrap();
        let mut stream = conn.open().await.unwrap();
        let mut header = vec![u8::try_from(name.len()).unwrap()];
        header.extend_from_slice(name.as_bytes());
        // What follows the header would be a ping's request: it is as little read as anything else.
        header.extend_from_slice(&[0, 0, 0, 4, 0xff, 0x7f, 0, 0]);
        let _ = stream.write_all(&Bytes::from(header)).await;
        let closed = tokio::time::timeout(Duration::from_secs(20), conn.closed()).await.unwrap();
        assert!(
            matches!(closed, ClosedWhy::Peer { code: CloseCode::Malformed | CloseCode::HelloTimeout, .. }),
            "{name}: {closed:?}"
        );
        until("the failed hello is counted", || async {
            let metrics = victim.node.transport().metrics();
            (metrics.hellos_faulty + metrics.hellos_silent >= number).then_some(())
        })
        .await;
        raw.shutdown().await;
    }
    assert_eq!(victim.node.transport().metrics().streams_served, 0);
    victim.stop().await;
}
