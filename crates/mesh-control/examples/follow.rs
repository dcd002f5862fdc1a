//! Asks the node of this machine how it is, then prints what happens at it: until Ctrl-C, or for as many events as said.
//!
//! `cargo run --release -p mesh-control --example follow [EVENTS]`. The node is the one of `QMT_HOME`, else of `~/.qmt`;
//! when none runs there, the program says so and ends with exit code 3, as qmt-cli does.

use std::process::ExitCode;

use mesh_control::{Client, ClientError, EventKind, home_from_env};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let events = std::env::args().nth(1).map_or(Ok(usize::MAX), |number| number.parse());
    let (Ok(events), Ok(home)) = (events, home_from_env()) else {
        eprintln!("usage: follow [EVENTS], with QMT_HOME or HOME set");
        return ExitCode::from(2);
    };
    match follow(&Client::for_home(&home), events).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(mend) = error.mend() {
                eprintln!("mend: {mend}");
            }
            ExitCode::from(if matches!(error, ClientError::NoNode { .. }) { 3 } else { 1 })
        }
    }
}

async fn follow(client: &Client, count: usize) -> Result<(), ClientError> {
    let status = client.status().await?;
    println!("{} ({}), up for {} s", status.node_name, status.node_id, status.uptime_secs);
    for scope in &status.scopes {
        println!("in {} as {}, {} alive", scope.name, scope.role, scope.members_alive);
    }
    let mut events = client.events().await?;
    for _ in 0..count {
        let Some(event) = events.next().await? else {
            println!("the node stopped");
            break;
        };
        let what = match event.kind {
            EventKind::Snapshot { nodes, models, .. } => {
                format!("snapshot: {} nodes, {} models", nodes.len(), models.len())
            }
            EventKind::Node { node } => format!("node {} is {}", node.name, node.state),
            EventKind::Model { model } => format!("model {} is {}", model.name, model.state),
            EventKind::ModelGone { name } => format!("nobody provides {name} any more"),
            EventKind::InviteUsed { name, uses, .. } => {
                format!("{name} was admitted, use {uses} of its invite")
            }
            other => format!("{other:?}"),
        };
        println!("{:>6}  {what}", event.number);
    }
    Ok(())
}
