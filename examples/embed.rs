//! Two nodes wired by hand from the mesh crates: the second asks for a model that the first one serves.
//! `cargo run --release -p qmt-examples --example embed` prints what the second hears of the first, and the answer.

use std::{sync::Arc, time::Duration, time::Instant};

use anyhow::Result;
use mesh_gossip::{Credentials, Exchange, Gossip};
use mesh_identity::{
    AdmissionRequest, Authority, Founding, InviteOptions, InviteToken, NodeKey, NodeName, Permissions,
    RevocationSet, Role, SignedGrant, UnixTime,
};
use mesh_inference::backend::Backends;
use mesh_inference::gateway::{Gateway, GatewayConfig, Listen, RouterRoutes};
use mesh_routing::{Offer, PeerFacts, Router};
use mesh_transport::{Transport, internet, testing::TestAdmission};
mod echo;

/// Links, and the memberships that decide about them: in memory here, while qmt-node keeps them on disk.
type Node = (Transport, Arc<TestAdmission>);

async fn start(key: &NodeKey) -> Result<Node> {
    let admission = Arc::new(TestAdmission::default());
    let driver = internet::Internet::bind(key, internet::Config::loopback()).await?;
    Ok((Transport::start(key.clone(), vec![driver], admission.clone(), Default::default()), admission))
}

/// Takes part in one scope: who is there, where requests go, and what answers them here.
async fn enter(at: &Node, key: NodeKey, by: SignedGrant) -> Result<(Gossip, Router, Backends, Gateway)> {
    let ((links, admission), scope) = (at, by.scope());
    admission.join(by.clone());
    let credentials = Credentials { key, grant: by, revocations: RevocationSet::new(scope) };
    let gossip = Gossip::start(&Exchange::new(links.clone()), credentials, Default::default())?;
    let (router, backends) = (Router::new(Default::default(), Instant::now()), Backends::new());
    router.update(|table| table.set_scope(scope, Role::Member));
    let routes = Arc::new(RouterRoutes::new(router.clone(), move || vec![scope]));
    let mut config = GatewayConfig::default();
    config.listen = Listen::Exactly(([127, 0, 0, 1], 0).into());
    let gateway = Gateway::start(config, backends.clone(), routes, Some(links.clone())).await?;
    links.serve(Gateway::PROTOCOL, gateway.peer_handler());
    Ok((gossip, router, backends, gateway))
}

#[tokio::main]
async fn main() -> Result<()> {
    // The first node founds a scope, shares the model of a server on this machine, and invites.
    let (key, now) = (NodeKey::generate(), UnixTime::now());
    let authority = Authority::founder(key.clone(), Founding::new(&key).root)?;
    let (id, name) = (key.node_id(), NodeName::new("first")?);
    let grant = authority.sign_grant(id, name, Permissions::MEMBER, None, now)?;
    let (first, scope) = (start(&key).await?, grant.scope());
    let (gossip, _, backends, gateway) = enter(&first, key, grant).await?;
    first.1.appoint(authority);
    backends.insert(echo::serve("echo").await?);
    gossip.set("model", b"echo".to_vec()).await?;
    let hints = internet::compact(&first.0.local_addr(&scope), 30);
    let invite = first.1.invite(&scope, &InviteOptions { hints, ..Default::default() }).to_string();

    // The second node joins by the invite's text alone, hears what the first one has, and routes to it.
    let (key, token) = (NodeKey::generate(), InviteToken::parse(&invite)?);
    let second = start(&key).await?;
    let (invite, node_name) = (token.verify(now)?, NodeName::new("second")?);
    let admitted = second.0.redeem(&invite, AdmissionRequest { token, node_name, device: None }).await?;
    second.0.book().insert(scope, admitted.issuer, admitted.issuer_addr);
    let (gossip2, router, _, gateway2) = enter(&second, key, admitted.grant).await?;
    let mut members = gossip2.watch();
    let offers = members.wait_for(|all| all.iter().any(|member| member.value("model").is_some()));
    for member in tokio::time::timeout(Duration::from_secs(10), offers).await??.iter() {
        let Some(model) = member.value("model").map(|bytes| String::from_utf8_lossy(bytes)) else { continue };
        println!("{} has the model {model}", member.name);
        let mut facts = PeerFacts::new(member.name.clone());
        facts.offers.push(Offer::ready(model));
        router.update(|table| table.set_peer(scope, member.id, facts));
    }
    println!("{}", echo::ask(gateway2.local_addr(), "echo", "Is anybody there?").await?);
    for (gateway, gossip, node) in [(gateway2, gossip2, second), (gateway, gossip, first)] {
        tokio::join!(gateway.shutdown(), gossip.shutdown(), node.0.shutdown());
    }
    Ok(())
}
