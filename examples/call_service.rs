//! Two nodes in one process, and a service of this program's own between them: the node verifies who calls, the program
//! decides what that caller may have.
//!
//! ```text
//! $ cargo run --release -p qmt-examples --example call_service
//! laptop joined home as member
//! a mesh is several machines, and one place for their models (asked by laptop, a member)
//! nobody here knows "quorum" (code 1)
//! no reply within 200ms
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result};
use mesh_control::{Client, InviteRequest, JoinRequest};
use mesh_identity::{NodeName, ScopeId};
use mesh_transport::{Call, CallError, CallFault, Member, Protocol, serve_call};
use qmt_node::Node;
use qmt_node::config::{Config, Listener};
use serde::{Deserialize, Serialize};

/// The request: what travels is this struct, and what comes back is its `Reply`.
#[derive(Serialize, Deserialize)]
struct Explain {
    word: String,
}

impl Call for Explain {
    const PROTOCOL: Protocol = Protocol::new("glossary/1");
    type Reply = String;
}

/// A fault of this protocol: the word is unknown here.
const UNKNOWN_WORD: u16 = 1;

/// The service, for members alone. Nothing in `peer` was claimed by the caller: its key was proved by the link, the rest by its grant.
async fn explain(peer: Member, asked: Explain) -> Result<String, CallFault> {
    match asked.word.as_str() {
        "mesh" => {
            let text = "a mesh is several machines, and one place for their models";
            Ok(format!("{text} (asked by {}, a {})", peer.name, peer.role))
        }
        "eternity" => std::future::pending().await, // dropped when the caller's deadline passes
        word => Err(CallFault::new(UNKNOWN_WORD, format!("nobody here knows {word:?}"))),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let homes = tempfile::tempdir()?;
    let desktop = start(&homes, "desktop").await?;
    let laptop = start(&homes, "laptop").await?;
    serve_call::<Explain, _, _>(desktop.transport(), explain);

    // What `qmt-cli invite` and `qmt-cli join` ask of a node, asked by this program.
    let request = InviteRequest { name: Some("home".to_owned()), ..InviteRequest::default() };
    let token = Client::new(desktop.control_socket()).invite(&request).await?.token;
    let joined = Client::new(laptop.control_socket()).join(&JoinRequest { token }).await?;
    println!("{} joined {} as {}", laptop.name(), joined.name, joined.role);

    let scope: ScopeId = joined.scope.parse()?;
    for (word, deadline) in [("mesh", 5_000), ("quorum", 5_000), ("eternity", 200)] {
        let (call, deadline) = (Explain { word: word.to_owned() }, Duration::from_millis(deadline));
        match laptop.transport().call(&scope, &desktop.id(), &call, deadline).await {
            Ok(text) => println!("{text}"),
            Err(error @ (CallError::Fault(_) | CallError::Deadline(_))) => println!("{error}"),
            Err(error) => return Err(error).context("the call failed"),
        }
    }
    laptop.shutdown().await;
    desktop.shutdown().await;
    Ok(())
}

/// A node with a home folder of its own and any free port for its gateway.
async fn start(homes: &tempfile::TempDir, name: &str) -> Result<Node> {
    let mut config = Config::at(homes.path().join(name));
    config.node_name = NodeName::new(name)?;
    config.gateway.listener = Listener { addr: ([127, 0, 0, 1], 0).into(), asked: true };
    Ok(Node::start(config).await?)
}
