//! What a person types: a client of the control API. Exit codes: 0 done, 1 the node refused or failed, 2 wrong usage,
//! 3 no node is running.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mesh_control::{
    Client, ClientError, DropRequest, InviteRequest, JoinRequest, LeaveRequest, LoadRequest, PingRequest,
    RevokeRequest, Role, home_from_env,
};
use serde::Serialize;

/// Talk to the node of this machine.
#[derive(Debug, Parser)]
#[command(name = "qmt-cli", version)]
struct Cli {
    /// Print JSON alone.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an invite, founding a mesh when the node is in none.
    Invite {
        /// Name of the mesh.
        #[arg(long)]
        name: Option<String>,
        /// How long it holds: 90m, 24h, 7d, never.
        #[arg(long)]
        ttl: Option<String>,
        /// How many nodes it admits; 0 for any number.
        #[arg(long)]
        uses: Option<u32>,
        /// What they may be: member or client.
        #[arg(long, value_parser = ["member", "client"])]
        role: Option<String>,
        /// They may invite others.
        #[arg(long)]
        can_invite: bool,
        /// The mesh, when this node can invite to several.
        #[arg(long)]
        scope: Option<String>,
        /// Show a QR code too.
        #[arg(long)]
        qr: bool,
    },
    /// List the invites of this node.
    Invites,
    /// Revoke an invite or a node.
    Revoke {
        /// Id or unique prefix of an invite, or id or name of a node.
        subject: String,
        /// The mesh, when the name is in several.
        #[arg(long)]
        scope: Option<String>,
    },
    /// Join the mesh of an invite.
    Join {
        /// The token, or its qmt:// link.
        token: String,
    },
    /// Leave a mesh.
    Leave {
        /// Its name or id.
        scope: String,
    },
    /// Show the node.
    Status,
    /// List the nodes of its meshes.
    Nodes,
    /// Measure the round trip to a node.
    Ping {
        /// Id or name.
        node: String,
        /// How often.
        #[arg(long, short, default_value_t = 1)]
        count: u32,
    },
    /// List the models that the node can reach.
    Models,
    /// Show where requests would go, and why.
    Routes {
        /// One model only.
        model: Option<String>,
    },
    /// Serve a model from this machine's disk.
    Load {
        /// Its name or path.
        model: String,
    },
    /// Stop the serving of a model in the whole mesh.
    Drop {
        /// Its name.
        model: String,
        /// At this node only.
        #[arg(long)]
        node: Option<String>,
    },
    /// Find what is missing or wrong.
    Doctor,
}

/// Parses the arguments, asks the node, prints.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let home = match home_from_env() {
        Ok(home) => home,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&Client::for_home(&home), cli)) {
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

async fn run(client: &Client, cli: Cli) -> Result<(), ClientError> {
    let json = cli.json;
    match cli.command {
        Command::Invite { name, ttl, uses, role, can_invite, scope, qr } => {
            let role = role.map(|role| if role == "client" { Role::Client } else { Role::Member });
            let request = InviteRequest { name, ttl, uses, role, can_invite: Some(can_invite), scope };
            let created = client.invite(&request).await?;
            show(json, &created, |created| {
                println!("{}", created.token);
                if qr && let Ok(code) = mesh_identity::qr::terminal(&created.url) {
                    println!("{code}");
                }
                if let Some(file) = &created.recovery_key_file {
                    eprintln!(
                        "founded the mesh {}; its recovery key is in {file}: move it to a safe place",
                        created.scope_name
                    );
                }
            });
        }
        Command::Invites => show(json, &client.invites().await?, |invites| {
            for invite in invites {
                let state = if invite.revoked { "revoked" } else { "open" };
                println!(
                    "{}  {}  {} of {} used  {}  {state}",
                    invite.id, invite.scope_name, invite.uses, invite.max_uses, invite.role
                );
            }
        }),
        Command::Revoke { subject, scope } => {
            let revoked = client.revoke(&RevokeRequest { subject, scope }).await?;
            show(json, &revoked, |revoked| println!("revoked {} {}", revoked.id, revoked.name));
        }
        Command::Join { token } => {
            let joined = client.join(&JoinRequest { token }).await?;
            show(json, &joined, |joined| println!("joined {} as {}", joined.name, joined.role));
        }
        Command::Leave { scope } => {
            let left = client.leave(&LeaveRequest { scope }).await?;
            show(json, &left, |left| println!("left {}", left.name));
        }
        Command::Status => show(json, &client.status().await?, |status| {
            println!("{} {}", status.node_name, status.node_id);
            println!("gateway   {}", status.gateway_url.as_deref().unwrap_or("none"));
            for scope in &status.scopes {
                println!("mesh      {} as {}, {} alive", scope.name, scope.role, scope.members_alive);
            }
            println!("links     {} direct, {} relayed", status.links.direct, status.links.relayed);
            println!("models    {}", status.models.join(", "));
            for warning in &status.warnings {
                println!("warning   {warning}");
            }
        }),
        Command::Nodes => show(json, &client.nodes().await?, |nodes| {
            for node in nodes {
                let rtt = node.rtt_ms.map_or_else(String::new, |rtt| format!("{rtt:.1} ms"));
                println!(
                    "{:<20} {:<10} {:<8} {:<8} {rtt:<9} {}",
                    node.name,
                    node.scope_name,
                    node.state,
                    node.path,
                    node.models.join(", ")
                );
            }
        }),
        Command::Ping { node, count } => {
            let pongs = client.ping(&PingRequest { node, count: Some(count) }).await?;
            show(json, &pongs, |pongs| {
                pongs.iter().for_each(|pong| println!("{:.2} ms {}", pong.rtt_ms, pong.path))
            });
        }
        Command::Models => show(json, &client.models().await?, |models| {
            for model in models {
                let at: Vec<&str> =
                    model.providers.iter().map(|provider| provider.node_name.as_str()).collect();
                println!("{:<40} {:<8} {}", model.name, model.state, at.join(", "));
            }
        }),
        Command::Routes { model } => show(json, &client.routes(model.as_deref()).await?, |routes| {
            for route in routes {
                println!("{:<40} {} {:?} {}", route.model, route.rank, route.target, route.why);
            }
        }),
        Command::Load { model } => {
            let model = client.load(&LoadRequest { model }).await?;
            show(json, &model, |model| println!("{} {}", model.name, model.state));
        }
        Command::Drop { model, node } => {
            let dropped = client.drop_model(&DropRequest { model, node }).await?;
            show(json, &dropped, |dropped| {
                println!("dropped {} at {} nodes", dropped.model, dropped.nodes.len())
            });
        }
        Command::Doctor => show(json, &client.doctor().await?, |findings| {
            for finding in findings {
                println!("{:<5} {:<12} {}", finding.verdict, finding.check, finding.detail);
                if let Some(mend) = &finding.mend {
                    println!("      mend: {mend}");
                }
            }
        }),
    }
    Ok(())
}

fn show<T: Serialize>(json: bool, value: &T, text: impl FnOnce(&T)) {
    if json {
        println!("{}", serde_json::to_string_pretty(value).unwrap_or_default());
    } else {
        text(value);
    }
}
