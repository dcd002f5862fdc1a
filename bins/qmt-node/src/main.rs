//! The QMT mesh service.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use mesh_control::{AuditQuery, Client, ConsoleLink, Finding, InviteRequest, LinkRequest, Status, Verdict};
use qmt_node::cli::Cli;
use qmt_node::config::{self, Config, ConfigError, Environment, FoundingInvite, LogFormat};
use qmt_node::{Node, StartError, audit_without_node, diagnose};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(first) if first == "__child" => {
            mesh_inference::instance::guard::main(std::env::args_os().skip(2))
        }
        Some(first) if first == "__tool" => mesh_sessions::tools::guard::main(std::env::args_os().skip(2)),
        Some(first) if first == "__doctor" => exit(doctor()),
        Some(first) if first == "__audit" => exit(audit(std::env::args().nth(2).as_deref())),
        _ => exit(run()),
    }
}

fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(mend) = error.downcast_ref::<StartError>().and_then(StartError::mend) {
                eprintln!("mend: {mend}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Prints the findings of [`diagnose`] as JSON, for `qmt-cli doctor` when no node runs.
fn doctor() -> anyhow::Result<()> {
    let findings = match config::load(&Cli::default(), &Environment::process()) {
        Ok(config) => runtime()?.block_on(diagnose(&config)),
        Err(error) => vec![unreadable(&error)],
    };
    println!("{}", serde_json::to_string(&findings)?);
    Ok(())
}

/// Prints the audit trail, or why it cannot be shown, as JSON, for `qmt-cli audit` when no node runs.
fn audit(query: Option<&str>) -> anyhow::Result<()> {
    let query: AuditQuery = serde_json::from_str(query.unwrap_or("{}")).context("no query of the trail")?;
    let config = config::load(&Cli::default(), &Environment::process())?;
    match runtime()?.block_on(audit_without_node(&config.node_db(), &query)) {
        Ok(view) => println!("{}", serde_json::to_string(&view)?),
        Err(error) => println!("{}", error.to_body()),
    }
    Ok(())
}

/// With a configuration that is wrong nothing else can be looked at.
fn unreadable(error: &ConfigError) -> Finding {
    Finding {
        check: "configuration".to_owned(),
        verdict: Verdict::Fail,
        detail: error.to_string(),
        mend: Some("edit the configuration file; docs/configuration.md lists every key".to_owned()),
    }
}

fn run() -> anyhow::Result<()> {
    let config = config::load(&Cli::parse(), &Environment::process())?;
    // Libraries that speak TLS take this provider unless they are given one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = runtime()?;
    log(&config);
    runtime.block_on(serve(config))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    raise_file_limit();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")
}

/// What macOS allows where it calls the limit of open files unlimited (`OPEN_MAX`).
const OPEN_FILES_AT_LEAST: u64 = 10_240;

/// Takes all the open files that the system allows: the caps on connections follow from this limit. Without success the
/// node serves fewer, and says so.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let is_set = |current| setrlimit(Resource::Nofile, Rlimit { current, ..limit }).is_ok();
    let _ = is_set(limit.maximum) || is_set(Some(OPEN_FILES_AT_LEAST));
}

async fn serve(config: Config) -> anyhow::Result<()> {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let (invite, format) = (config.mesh.invite.clone(), config.log_format);
    let mut stop = Stop::watch()?;
    let node = Node::start(config).await?;
    let greeted = greet(&node, invite, format).await;
    if greeted.is_ok() {
        stop.asked().await;
        tracing::info!("stopping; once more to stop at once");
    }
    tokio::select! {
        () = node.shutdown() => greeted,
        () = stop.asked() => Err(anyhow::anyhow!("stopped before everything was closed")),
    }
}

/// Says what runs, and makes the invite that was asked for.
async fn greet(node: &Node, invite: Option<FoundingInvite>, format: LogFormat) -> anyhow::Result<()> {
    let client = Client::new(node.control_socket());
    let created = match invite {
        Some(invite) => Some(client.invite(&request(invite)).await.context("no invite was made")?),
        None => None,
    };
    let status = client.status().await?;
    if format == LogFormat::Text && io::stderr().is_terminal() {
        let console = match status.console_url {
            Some(_) => client.console_link(&LinkRequest::default()).await.ok(),
            None => None,
        };
        eprint!("{}", greeting(&status, node, console));
    } else {
        tracing::info!(
            id = status.node_id,
            name = status.node_name,
            gateway = status.gateway_url.as_deref().unwrap_or(""),
            console = status.console_url.as_deref().unwrap_or(""),
            control = %node.control_socket().display(),
            "node started"
        );
    }
    let Some(created) = created else { return Ok(()) };
    if let Some(file) = &created.recovery_key_file {
        tracing::warn!(
            file,
            mesh = created.scope_name,
            "the mesh's recovery key was made: move it to a safe place"
        );
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{}", created.token)?;
    if let Ok(code) = mesh_identity::qr::terminal(&created.url) {
        writeln!(out, "{code}")?;
    }
    out.flush().context("the invite could not be written to standard output")
}

/// For a person at a terminal.
fn greeting(status: &Status, node: &Node, console: Option<ConsoleLink>) -> String {
    let gateway = status.gateway_url.as_deref().unwrap_or("none");
    let console = console.map_or_else(String::new, |link| format!("  console  {}  (opens once)\n", link.url));
    let meshes: Vec<&str> = status.scopes.iter().map(|scope| scope.name.as_str()).collect();
    let next = if meshes.is_empty() {
        "make one with `qmt-cli invite`, or join one with `qmt-cli join TOKEN`"
    } else {
        "`qmt-cli invite` invites another machine, `qmt-cli nodes` shows who is there"
    };
    format!(
        "\n{} ({}) runs\n  gateway  {gateway}/v1\n{console}  control  {}\n  mesh     {}; {next}\n  stop     Ctrl-C\n\n",
        status.node_name,
        status.node_id,
        node.control_socket().display(),
        if meshes.is_empty() { "none yet".to_owned() } else { meshes.join(", ") },
    )
}

fn request(invite: FoundingInvite) -> InviteRequest {
    let minutes = |ttl: std::time::Duration| format!("{}m", ttl.as_secs().div_ceil(60));
    InviteRequest {
        name: invite.name,
        ttl: Some(invite.ttl.map_or_else(|| "never".to_owned(), minutes)),
        uses: Some(invite.uses),
        ..InviteRequest::default()
    }
}

/// Ctrl-C and SIGTERM.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn watch() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Lines go to standard error, and the last ones are kept.
fn log(config: &Config) {
    let filter = || {
        EnvFilter::try_from_default_env().unwrap_or_else(|_| {
            EnvFilter::new("info,iroh=error,iroh_relay=error,noq=error,sqlx=error,libp2p=error,rmcp=warn")
        })
    };
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let text = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && !plain);
    let lines = match config.log_format {
        LogFormat::Text => text.boxed(),
        LogFormat::Json => text.json().boxed(),
    };
    // Spans are gathered whatever the lines are filtered by.
    let traces = config.otlp_endpoint.is_some().then(|| {
        config
            .traces
            .layer()
            .with_filter(filter_fn(|facts| facts.is_span() && facts.name().starts_with("inference.")))
    });
    let lines = lines.with_filter(filter());
    tracing_subscriber::registry()
        .with(lines)
        .with(config.logs.layer().with_filter(filter()))
        .with(traces)
        .init();
}
