//! Two nodes over the in-memory network: one says what it offers, the other hears of it, and of its leaving.
//!
//! `cargo run --release --workspace --example two_nodes`

use anyhow::{Context as _, Result};
use mesh_gossip::{Config, Credentials, Event, Exchange, Gossip};
use mesh_identity::{Permissions, RevocationSet};
use mesh_transport::testing::Mesh;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mesh = Mesh::memory(2).await;
    let start = |number: usize| {
        let node = &mesh[number];
        let credentials = Credentials {
            key: node.key.clone(),
            grant: mesh.grant(node.id(), &format!("node-{number}"), Permissions::MEMBER),
            revocations: RevocationSet::new(mesh.scope()),
        };
        Gossip::start(&Exchange::new(node.transport.clone()), credentials, Config::default())
    };
    let (here, there) = (start(0)?, start(1)?);
    let mut events = here.subscribe();

    there.set("models", b"llama-3-8b".to_vec()).await?;
    mesh[0].transport.link(&mesh.scope(), &mesh[1].id()).await?;
    while let Some(event) = events.next().await {
        match event {
            Event::MemberUp { node, .. } => {
                let members = here.members();
                let member = members.get(&node).context("the snapshot shows it")?;
                let models = member.value("models").map(|bytes| String::from_utf8_lossy(bytes));
                println!("{} is up and serves {}", member.name, models.as_deref().unwrap_or("nothing"));
                there.leave().await;
            }
            Event::MemberLeft { node, .. } => {
                println!("{} left", node.short());
                break;
            }
            _ => {}
        }
    }
    here.shutdown().await;
    mesh.shutdown().await;
    Ok(())
}
