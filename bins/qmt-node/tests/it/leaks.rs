//! A node in three scopes, and in each a peer that notes every byte it hears: nothing of the others is among them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_control::InviteRequest;
use mesh_gossip::{Credentials, Exchange, Gossip};
use mesh_identity::{
    AdmissionRequest, InviteToken, LanScope, NodeKey, NodeName, RevocationSet, Role, ScopeId, SignedGrant,
    UnixTime,
};
use mesh_inference::backend::Backends;
use mesh_inference::gateway::{Gateway, GatewayConfig, Listen, RouterRoutes};
use mesh_routing::{Offer, PeerFacts, Router};
use mesh_transport::testing::TestAdmission;
use mesh_transport::{Driver, Protocol, Transport, internet, lan};
use qmt_node::config::{Discovery, Lan, Provider, Share, Trust};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::stub::Stub;
use crate::support::tap::{Heard, Tap};
use crate::support::{Host, Place, http, until};

const PSK: &str = "four words of luck";
/// Every protocol that a node serves, and one that it does not.
const PROTOCOLS: [Protocol; 7] = [
    Protocol::new("gossip/2"),
    Protocol::new("gateway/1"),
    Protocol::new("ping/1"),
    Protocol::new("renew/1"),
    Protocol::new("drop/1"),
    Protocol::new("tunnel/1"),
    Protocol::new("nonsense/1"),
];

/// A member of one scope of the node, who listens.
struct Spy {
    tag: &'static str,
    key: NodeKey,
    scope: ScopeId,
    transport: Transport,
    gossip: Gossip,
    gateway: Gateway,
    router: Router,
    heard: Heard,
}

impl Spy {
    /// Takes part in the scope of the grant that `enter` gets over the tapped transport.
    async fn start(
        tag: &'static str,
        key: NodeKey,
        driver: Arc<dyn Driver>,
        enter: impl AsyncFnOnce(&Transport) -> SignedGrant,
    ) -> Self {
        let (admission, heard) = (Arc::new(TestAdmission::default()), Heard::default());
        let tap = Tap { driver, heard: heard.clone() };
        let transport =
            Transport::start(key.clone(), vec![Arc::new(tap)], admission.clone(), Default::default());
        let grant = enter(&transport).await;
        let scope = grant.scope();
        admission.join(grant.clone());
        let credentials = Credentials { key: key.clone(), grant, revocations: RevocationSet::new(scope) };
        let gossip =
            Gossip::start(&Exchange::new(transport.clone()), credentials, Default::default()).unwrap();
        let router = Router::new(Default::default(), Instant::now());
        router.update(|table| table.set_scope(scope, Role::Member));
        let routes = Arc::new(RouterRoutes::new(router.clone(), move || vec![scope]));
        let mut config = GatewayConfig::default();
        config.listen = Listen::Exactly(([127, 0, 0, 1], 0).into());
        let gateway = Gateway::start(config, Backends::new(), routes, Some(transport.clone())).await.unwrap();
        transport.serve(Gateway::PROTOCOL, gateway.peer_handler());
        let offers = format!("[{{\"model\":\"model-{tag}\",\"state\":\"ready\"}}]");
        let labels = format!("{{\"version\":\"1\",\"labels\":[\"label-{tag}\"]}}");
        gossip
            .publish("offers/client/0", offers.into_bytes(), mesh_gossip::Audience::Everyone)
            .await
            .unwrap();
        gossip.set("node", labels.into_bytes()).await.unwrap();
        gossip.set(&format!("key-{tag}"), format!("value-{tag}").into_bytes()).await.unwrap();
        Self { tag, key, scope, transport, gossip, gateway, router, heard }
    }

    /// Joins the mesh of an invite.
    async fn invited(tag: &'static str, token: String) -> Self {
        let key = NodeKey::generate();
        let driver = internet::Internet::bind(&key, internet::Config::loopback()).await.unwrap();
        Self::start(tag, key, driver, async move |transport| {
            let token = InviteToken::parse(&token).unwrap();
            let invite = token.verify(UnixTime::now()).unwrap();
            let request = AdmissionRequest { token, node_name: name(tag), device: None };
            let admitted = transport.redeem(&invite, request).await.unwrap();
            transport.book().insert(admitted.grant.scope(), admitted.issuer, admitted.issuer_addr);
            admitted.grant
        })
        .await
    }

    /// Comes into the scope `lan`.
    async fn uninvited(tag: &'static str, host: &Host) -> Self {
        let key = NodeKey::generate();
        let (me, scope) = (key.node_id(), LanScope::new(Some(PSK.as_bytes())));
        let driver = lan::Lan::bind(&key, lan::Config::loopback()).await.unwrap();
        Self::start(tag, key, driver, async move |transport| {
            let addr = host.node.transport().local_addr(&scope.id());
            transport.book().insert(scope.id(), host.node.id(), addr);
            scope.sign_for(me, name(tag), UnixTime::now()).unwrap()
        })
        .await
    }

    /// What must not reach anybody in another scope.
    fn secrets(&self) -> Vec<(String, Vec<u8>)> {
        let (id, scope) = (self.key.node_id(), self.scope);
        let mut secrets = vec![
            ("id".to_owned(), id.as_bytes().to_vec()),
            ("id as text".to_owned(), id.to_string().into_bytes()),
            ("short id".to_owned(), id.short().into_bytes()),
            ("scope".to_owned(), scope.as_bytes().to_vec()),
            ("scope as text".to_owned(), scope.short().into_bytes()),
        ];
        let words = ["spy", "mesh", "model", "label", "key", "value"];
        secrets.extend(words.map(|word| (word.to_owned(), format!("{word}-{}", self.tag).into_bytes())));
        let own = self.transport.local_addr(&scope);
        for addr in own.direct.into_iter().chain(own.lan) {
            secrets.push(("address".to_owned(), addr.to_string().into_bytes()));
            let std::net::IpAddr::V4(ip) = addr.ip() else { continue };
            secrets.push(("address".to_owned(), [&ip.octets()[..], &addr.port().to_be_bytes()].concat()));
            secrets.push(("address".to_owned(), [&ip.octets()[..], &addr.port().to_le_bytes()].concat()));
        }
        secrets
    }

    /// Asks the node for everything that might be answered with too much.
    async fn pry(&self, host: &Host) {
        let node = host.node.id();
        for protocol in PROTOCOLS {
            for said in [&b""[..], &[0, 0, 0, 2, 1, 2], &[0xff; 64], b"GET /v1/models HTTP/1.1\r\n\r\n"] {
                let ask = async {
                    let mut stream = self.transport.open(&self.scope, &node, protocol).await.unwrap();
                    drop(stream.write_all(said).await);
                    drop(stream.shutdown().await);
                    let mut answer = Vec::new();
                    drop(stream.read_to_end(&mut answer).await);
                };
                drop(tokio::time::timeout(Duration::from_millis(300), ask).await);
            }
        }
        // The answer to a request for a model that nobody has lists what there is.
        self.ask_for(host, "unheard-of").await;
    }

    /// Asks the node for a model, whatever it says that it has.
    async fn ask_for(&self, host: &Host, model: &str) -> http::Answer {
        self.router.update(|table| {
            let mut facts = PeerFacts::new(name("asked"));
            facts.offers.push(Offer::ready(model));
            table.set_peer(self.scope, host.node.id(), facts);
        });
        http::post(self.gateway.local_addr(), "/v1/chat/completions", http::chat(model)).await
    }

    async fn stop(self) {
        self.gateway.shutdown().await;
        self.gossip.shutdown().await;
        self.transport.shutdown().await;
    }
}

fn name(tag: &str) -> NodeName {
    NodeName::new(format!("spy-{tag}")).unwrap()
}

async fn invite(host: &Host, tag: &str) -> String {
    let request = InviteRequest { name: Some(format!("mesh-{tag}")), ..Default::default() };
    host.client.invite(&request).await.unwrap().token
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_scope_is_said_in_another() {
    let stub = Stub::start(&["model-of-the-node"]).await;
    let host = Place::new("node")
        .start_with(|config| {
            config.mesh.enabled = Some(true);
            config.mesh.lan = Some(Lan {
                listen: "/ip4/127.0.0.1/tcp/0".parse().unwrap(),
                discovery: Discovery::None,
                trust: Trust::Open,
                psk: Some(PSK.to_owned()),
            });
            config.providers = vec![Provider { share: Share::Clients, ..stub.provider() }];
        })
        .await;
    let (first, second) = (invite(&host, "alpha").await, invite(&host, "beta").await);
    let spies = tokio::join!(
        Spy::invited("alpha", first),
        Spy::invited("beta", second),
        Spy::uninvited("gamma", &host)
    );
    let spies = [spies.0, spies.1, spies.2];

    // Each spy is heard by the node, and hears the node: what follows is not silence.
    for spy in &spies {
        host.offers(&format!("model-{}", spy.tag)).await;
        until(&format!("{} hears the node's model", spy.tag), || async {
            spy.heard.has(b"model-of-the-node").then_some(())
        })
        .await;
    }
    for spy in &spies {
        spy.pry(&host).await;
    }
    // Some rounds of gossip, with news in every scope and one that is left.
    for round in 0..20 {
        for spy in &spies {
            spy.gossip.set("round", format!("{round}-{}", spy.tag).into_bytes()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for spy in &spies {
        assert!(spy.heard.has(host.node.id().as_bytes()), "{} hears who the node is", spy.tag);
        for other in spies.iter().filter(|other| other.tag != spy.tag) {
            for (what, bytes) in other.secrets() {
                assert!(!spy.heard.has(&bytes), "{} hears the {what} of {}", spy.tag, other.tag);
            }
        }
        let own = format!("mesh-{}", spy.tag);
        let words = spy.heard.has(spy.scope.as_bytes()) || spy.heard.has(own.as_bytes());
        assert!(words || spy.heard.has(spy.key.node_id().as_bytes()), "the ear of {} works", spy.tag);
    }
    // Who knows the name of another scope's model gets nothing by it.
    for (at, other) in [(0, "model-beta"), (1, "model-gamma"), (2, "model-alpha")] {
        let answer = spies[at].ask_for(&host, other).await;
        assert!(answer.message().contains("it answers model_not_found"), "{answer:?}");
    }
    for spy in spies {
        spy.stop().await;
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_that_was_left_says_nothing_more() {
    let host = Host::new("node").await;
    let token = invite(&host, "alpha").await;
    let spy = Spy::invited("alpha", token).await;
    host.offers("model-alpha").await;
    host.client.leave(&mesh_control::LeaveRequest { scope: "mesh-alpha".into() }).await.unwrap();
    // Every stream of the spy has ended with the link, and a new one is refused.
    until("the link is gone", || async {
        spy.transport.linked(&spy.scope, &host.node.id()).is_none().then_some(())
    })
    .await;
    let refused = spy.transport.link(&spy.scope, &host.node.id()).await.unwrap_err();
    assert!(matches!(refused, mesh_transport::DialError::Refused { .. }), "{refused}");
    assert!(!http::models(host.gateway().await).await.contains(&"model-alpha".to_owned()));
    spy.stop().await;
    host.stop().await;
}
