//! The QMT mesh service.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use mesh_control::{Client, InviteRequest};
use qmt_node::cli::Cli;
use qmt_node::config::{self, Config, Environment, LogFormat};
use qmt_node::{Node, diagnose};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|first| first == "__child") {
        return mesh_inference::instance::guard::main(std::env::args_os().skip(2));
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    // Libraries that speak TLS take this provider unless they are given one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let doctor = std::env::args_os().nth(1).is_some_and(|first| first == "__doctor");
    let cli = if doctor { Cli::default() } else { Cli::parse() };
    let config = config::load(&cli, &Environment::process())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    if doctor {
        let findings = runtime.block_on(diagnose(&config));
        println!("{}", serde_json::to_string(&findings)?);
        return Ok(());
    }
    log_to_stderr(config.log_format);
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let invite = config.mesh.invite.clone();
    let node = Node::start(config).await?;
    tracing::info!(id = %node.id(), name = %node.name(), control = %node.control_socket().display(), "node started");
    if let Some(invite) = invite {
        let request = InviteRequest {
            name: invite.name,
            ttl: Some(
                invite
                    .ttl
                    .map_or_else(|| "never".to_owned(), |ttl| format!("{}m", ttl.as_secs().div_ceil(60))),
            ),
            uses: Some(invite.uses),
            ..InviteRequest::default()
        };
        let created = Client::new(node.control_socket()).invite(&request).await?;
        println!("{}", created.token);
        if let Ok(code) = mesh_identity::qr::terminal(&created.url) {
            println!("{code}");
        }
    }
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping");
    node.shutdown().await;
    Ok(())
}

fn log_to_stderr(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new("info,iroh=error,iroh_relay=error,noq=error,sqlx=error")
    });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
