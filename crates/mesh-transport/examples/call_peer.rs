//! Two nodes on loopback: one founds a scope and serves a typed call, the other joins by an invite and calls it.
//!
//! `cargo run --release -p mesh-transport --features testing --example call_peer`

use std::{sync::Arc, time::Duration};

use mesh_identity::{
    AdmissionRequest, Authority, Founding, InviteOptions, InviteToken, NodeKey, NodeName, Permissions,
    UnixTime,
};
use mesh_transport::{
    Call, Config, Peer, Protocol, Transport,
    internet::{self, Internet},
    serve_call,
    testing::TestAdmission,
};
use serde::{Deserialize, Serialize};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Serialize, Deserialize)]
struct Greet {
    greeting: String,
}

impl Call for Greet {
    const PROTOCOL: Protocol = Protocol::new("greet/1");
    type Reply = String;
}

/// A node is a key, what it knows of its scopes, and a transport. A real node keeps its memberships on disk.
async fn node(key: &NodeKey) -> Result<(Transport, Arc<TestAdmission>)> {
    let admission = Arc::new(TestAdmission::default());
    let driver = Internet::bind(key, internet::Config::loopback()).await?;
    let transport = Transport::start(key.clone(), vec![driver], admission.clone(), Config::default());
    Ok((transport, admission))
}

#[tokio::main]
async fn main() -> Result<()> {
    let now = UnixTime::now();
    let founder_key = NodeKey::generate();
    let (founder, founders) = node(&founder_key).await?;
    let authority = Authority::founder(founder_key.clone(), Founding::new(&founder_key).root)?;
    let scope = authority.scope();
    let name = NodeName::new("founder")?;
    founders.join(authority.sign_grant(founder_key.node_id(), name, Permissions::MEMBER, None, now)?);
    founders.appoint(authority);
    serve_call::<Greet, _, _>(&founder, |peer: Peer, call| async move {
        Ok(format!("{} to you, {} ({})", call.greeting, peer.name.as_str(), peer.role))
    });
    let hints = internet::compact(&founder.local_addr(&scope), 30);
    let token = founders.invite(&scope, &InviteOptions { hints, ..InviteOptions::default() }).to_string();

    let (joiner, joined) = node(&NodeKey::generate()).await?;
    let token = InviteToken::parse(&token)?;
    let invite = token.verify(now)?;
    let node_name = NodeName::new("joiner")?;
    let admitted = joiner.redeem(&invite, AdmissionRequest { token, node_name, device: None }).await?;
    joined.join(admitted.grant);
    joiner.book().insert(scope, admitted.issuer, admitted.issuer_addr);

    let call = Greet { greeting: "good morning".into() };
    println!("{}", joiner.call(&scope, &admitted.issuer, &call, Duration::from_secs(5)).await?);
    joiner.shutdown().await;
    founder.shutdown().await;
    Ok(())
}
