//! Two nodes in one process, and a conversation of one with an agent of the other, that outlives the agent's node.
//!
//! ```text
//! $ cargo run --release -p qmt-examples --example remote_session
//! desktop has the agents ["teller"]
//! You said: Hello!
//! the fork: You said: What if?
//! after a restart: You said: Where were we?
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result};
use mesh_control::{Client, InviteRequest, JoinRequest};
use mesh_identity::NodeName;
use mesh_sessions::remote::RemoteAgents;
use qmt_node::Node;
use qmt_node::config::{AgentEntry, Config, Listener};
#[expect(dead_code, reason = "another example uses the rest of it")]
mod echo;

#[tokio::main]
async fn main() -> Result<()> {
    let homes = tempfile::tempdir()?;
    let desktop = start(&homes, "desktop").await?;
    let laptop = start(&homes, "laptop").await?;
    let token = Client::new(desktop.control_socket()).invite(&InviteRequest::default()).await?.token;
    Client::new(laptop.control_socket()).join(&JoinRequest { token }).await?;

    let agents = laptop.remote_agents();
    println!("desktop has the agents {:?}", agents_of(&agents, "desktop").await?);
    let remote_session = agents.create_remote_session("desktop", "teller").await?;
    let session = agents.attach_remote_session(remote_session).await?;
    println!("{}", session.chat("Hello!").await?);
    let fork = agents.fork_remote_session("desktop", session.id(), None).await?;
    println!("the fork: {}", fork.chat("What if?").await?);

    // The session is in the store of its node: whoever has its id goes on with it, from another process too.
    let session = agents.resume_remote_session("desktop", session.id()).await?;
    println!("resumed: {}", session.chat("Where were we?").await?);
    laptop.shutdown().await;
    desktop.shutdown().await;
    Ok(())
}

/// A node with a home folder of its own, an agent, and the model that it thinks with.
async fn start(homes: &tempfile::TempDir, name: &str) -> Result<Node> {
    let mut config = Config::at(homes.path().join(name));
    config.node_name = NodeName::new(name)?;
    config.gateway.listener = Listener { addr: ([127, 0, 0, 1], 0).into(), asked: true };
    config.agents = vec![AgentEntry::new("teller".parse()?, "echo")];
    let node = Node::start(config).await?;
    node.backends().insert(echo::serve("echo").await?);
    Ok(node)
}

/// What a node hosts, once it has told of it.
async fn agents_of(agents: &RemoteAgents, node: &str) -> Result<Vec<String>> {
    for _ in 0..200 {
        let nodes = agents.list_remote_nodes().await;
        let found = nodes.into_iter().find(|known| known.name.as_deref() == Some(node));
        match found.filter(|found| !found.agents.is_empty()) {
            Some(found) => return Ok(found.agents),
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    None.with_context(|| format!("{node} tells of no agent"))
}
