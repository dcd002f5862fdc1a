//! `gateway`: what the gateway adds, on this node and over the mesh, beside nginx on the same work.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_identity::{Authority, Founding, InviteOptions, NodeAddr, NodeKey, Permissions, UnixTime, qr};

use crate::load::{Client, Held, latencies, stream_body, throughput};
use crate::processes::{self, Node};
use crate::report::{Goal, Report};
use crate::stats::{estimate, percentile, sort};
use crate::stub::MODEL;

pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) bin_dir: PathBuf,
    pub(crate) nginx: PathBuf,
    pub(crate) report: Option<PathBuf>,
}

/// How much is measured.
struct Effort {
    rounds: usize,
    requests: usize,
    throughput: Duration,
    chunks: u32,
    streams: usize,
    starts: usize,
}

impl Effort {
    fn new(quick: bool) -> Self {
        if quick {
            Self {
                rounds: 3,
                requests: 200,
                throughput: Duration::from_millis(500),
                chunks: 100,
                streams: 1_000,
                starts: 3,
            }
        } else {
            Self {
                rounds: 15,
                requests: 1_000,
                throughput: Duration::from_secs(2),
                chunks: 500,
                streams: 1_000,
                starts: 11,
            }
        }
    }
}

/// Where the same request can be sent.
struct Places {
    direct: String,
    nginx: String,
    local: String,
    remote: String,
}

const CONNECTIONS: usize = 32;

/// Runs the benchmark; says whether all goals are met.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let effort = Effort::new(options.quick);
    let folder = tempfile::tempdir()?;
    let (_stub, stub) = processes::stub()?;
    let (_nginx, nginx) = processes::nginx(&options.nginx, &folder.path().join("nginx"), &stub)?;
    let (first, second) = nodes(&options.bin_dir, folder.path(), &stub)?;
    let places = Places { direct: stub, nginx, local: first.gateway.clone(), remote: second.gateway.clone() };

    let mut report = Report::new("gateway");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        added_latency(&mut report, &places, &effort).await?;
        requests_per_second(&mut report, &places, &effort).await?;
        chunk_latency(&mut report, &places, &effort).await?;
        open_streams(&mut report, &places, &effort, &first, &second).await
    })?;
    drop((first, second));
    starts(&mut report, options, folder.path(), &effort)?;
    invite_size(&mut report)?;
    report.note(format!(
        "{} rounds; in each round the same requests go directly, through nginx, through the local gateway and over the mesh, in turn; \
         an added latency is the difference to the direct path of its own round, and the interval is a bootstrap over rounds.",
        effort.rounds
    ));
    report.note("nodes, nginx, stub and client share one machine's cores and its loopback; ratios carry over to other machines, milliseconds do not.");
    if options.quick {
        report
            .note("this was a `--quick` run: enough to see that everything runs, too few rounds to rely on.");
    }
    let command = if options.quick { "scripts/bench gateway --quick" } else { "scripts/bench gateway" };
    report.finish(options.report.as_deref(), command)
}

/// Two nodes of one scope; the first shares the stub.
fn nodes(bin_dir: &Path, folder: &Path, stub: &str) -> Result<(Node, Node)> {
    let mesh = "[mesh]\nenabled = true\ntransport = \"iroh\"\n";
    let provider = format!(
        "[[providers]]\nname = \"stub\"\nkind = \"openai\"\nbase_url = \"http://{stub}/v1\"\nmodels = [\"{MODEL}\"]\n"
    );
    let first =
        Node::start(bin_dir, &folder.join("first"), &format!("{mesh}node_name = \"first\"\n{provider}"))?;
    let second = Node::start(bin_dir, &folder.join("second"), &format!("{mesh}node_name = \"second\"\n"))?;
    let invite = first.cli(&["invite"])?;
    second.cli(&["join", invite["token"].as_str().context("no token")?])?;
    first.wait_for_model(MODEL)?;
    second.wait_for_model(MODEL)?;
    Ok((first, second))
}

async fn added_latency(report: &mut Report, places: &Places, effort: &Effort) -> Result<()> {
    let all = [&places.direct, &places.nginx, &places.local, &places.remote];
    let mut clients = Vec::new();
    for place in all {
        clients.push(Client::connect(place).await?);
    }
    let mut rounds = vec![Vec::new(); all.len()];
    for round in 0..effort.rounds {
        for turn in 0..all.len() {
            let at = (turn + round) % all.len();
            rounds[at].push(latencies(&mut clients[at], effort.requests).await?);
        }
    }
    let added = |at: usize, part: f64| -> Vec<f64> {
        rounds[at]
            .iter()
            .zip(&rounds[0])
            .map(|(there, direct)| percentile(there, part) - percentile(direct, part))
            .collect()
    };
    let ratio: Vec<f64> =
        added(2, 0.5).iter().zip(added(1, 0.5)).map(|(ours, nginx)| ours / nginx.max(1e-6)).collect();
    let direct: Vec<f64> = rounds[0].iter().map(|times| percentile(times, 0.5)).collect();
    report.row("the backend directly, p50", "ms", Goal::None, estimate(&direct));
    report.row("nginx, added p50", "ms", Goal::None, estimate(&added(1, 0.5)));
    report.row("nginx, added p99", "ms", Goal::None, estimate(&added(1, 0.99)));
    report.row("local gateway, added p50", "ms", Goal::None, estimate(&added(2, 0.5)));
    report.row("local gateway, added p99", "ms", Goal::None, estimate(&added(2, 0.99)));
    report.row("local gateway's added p50 over nginx's", "x", Goal::AtMost(1.5), estimate(&ratio));
    report.row("gateway -> mesh -> gateway, added p50", "ms", Goal::AtMost(0.6), estimate(&added(3, 0.5)));
    report.row("gateway -> mesh -> gateway, added p99", "ms", Goal::None, estimate(&added(3, 0.99)));
    let hop: Vec<f64> = rounds[3]
        .iter()
        .zip(&rounds[2])
        .map(|(far, near)| percentile(far, 0.5) - percentile(near, 0.5))
        .collect();
    report.row("the mesh hop alone (over the local gateway), p50", "ms", Goal::None, estimate(&hop));
    Ok(())
}

async fn requests_per_second(report: &mut Report, places: &Places, effort: &Effort) -> Result<()> {
    let (mut ours, mut nginx, mut mesh) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..effort.rounds {
        if round % 2 == 0 {
            nginx.push(throughput(&places.nginx, CONNECTIONS, effort.throughput).await?);
            ours.push(throughput(&places.local, CONNECTIONS, effort.throughput).await?);
        } else {
            ours.push(throughput(&places.local, CONNECTIONS, effort.throughput).await?);
            nginx.push(throughput(&places.nginx, CONNECTIONS, effort.throughput).await?);
        }
        mesh.push(throughput(&places.remote, CONNECTIONS, effort.throughput).await?);
    }
    let ratio: Vec<f64> = ours.iter().zip(&nginx).map(|(ours, nginx)| ours / nginx).collect();
    report.row(format!("nginx, {CONNECTIONS} connections"), "req/s", Goal::None, estimate(&nginx));
    report.row(format!("local gateway, {CONNECTIONS} connections"), "req/s", Goal::None, estimate(&ours));
    report.row("local gateway's requests/s over nginx's", "x", Goal::AtLeast(0.6), estimate(&ratio));
    report.row(
        format!("gateway -> mesh -> gateway, {CONNECTIONS} connections"),
        "req/s",
        Goal::None,
        estimate(&mesh),
    );
    Ok(())
}

async fn chunk_latency(report: &mut Report, places: &Places, effort: &Effort) -> Result<()> {
    let all = [&places.direct, &places.nginx, &places.local, &places.remote];
    let body = stream_body(effort.chunks, 2_000);
    let mut rounds = vec![Vec::new(); all.len()];
    for round in 0..effort.rounds {
        for turn in 0..all.len() {
            let at = (turn + round) % all.len();
            let mut lags = Client::connect(all[at]).await?.stream(&body).await?;
            anyhow::ensure!(
                lags.len() == effort.chunks as usize,
                "{} of {} chunks came back",
                lags.len(),
                effort.chunks
            );
            sort(&mut lags);
            rounds[at].push(percentile(&lags, 0.99));
        }
    }
    let added = |at: usize| -> Vec<f64> {
        rounds[at].iter().zip(&rounds[0]).map(|(there, direct)| there - direct).collect()
    };
    report.row("nginx, added per streamed chunk, p99", "ms", Goal::None, estimate(&added(1)));
    report.row("local gateway, added per streamed chunk, p99", "ms", Goal::AtMost(1.0), estimate(&added(2)));
    report.row(
        "gateway -> mesh -> gateway, added per streamed chunk, p99",
        "ms",
        Goal::AtMost(1.0),
        estimate(&added(3)),
    );
    Ok(())
}

async fn open_streams(
    report: &mut Report,
    places: &Places,
    effort: &Effort,
    first: &Node,
    second: &Node,
) -> Result<()> {
    let body = stream_body(1_000_000, 500_000);
    let mut held: Vec<Held> = Vec::with_capacity(effort.streams);
    for _ in 0..effort.streams {
        held.push(Client::connect(&places.local).await?.hold(&body).await?);
    }
    let local = first.process.resident_mb()?;
    report.exact(
        format!("memory of a node with {} open streams", effort.streams),
        "MB",
        Goal::AtMost(200.0),
        local,
    );
    held.clear();
    for _ in 0..effort.streams {
        held.push(Client::connect(&places.remote).await?.hold(&body).await?);
    }
    report.exact(
        format!("memory of the asking node with {} open streams over the mesh", effort.streams),
        "MB",
        Goal::AtMost(200.0),
        second.process.resident_mb()?,
    );
    report.exact(
        format!("memory of the answering node with {} open streams over the mesh", effort.streams),
        "MB",
        Goal::AtMost(200.0),
        first.process.resident_mb()?,
    );
    Ok(())
}

fn starts(report: &mut Report, options: &Options, folder: &Path, effort: &Effort) -> Result<()> {
    let mut times = Vec::new();
    for start in 0..effort.starts {
        times.push(processes::cold_start(&options.bin_dir, &folder.join(format!("cold{start}")))?);
    }
    report.row(
        "cold start to the first /v1/models, without a model",
        "ms",
        Goal::AtMost(300.0),
        estimate(&times),
    );
    Ok(())
}

/// A founder's invite with a 20-letter name and 30 bytes of hints.
fn invite_size(report: &mut Report) -> Result<()> {
    let founder = NodeKey::from_seed([7; 32]);
    let founding = Founding::with_recovery(&founder, NodeKey::from_seed([8; 32]));
    let authority = Authority::founder(founder, founding.root)?;
    let hints = NodeAddr {
        direct: [
            "192.168.100.100:54321",
            "10.100.100.100:54321",
            "172.16.100.100:54321",
            "203.0.113.113:54321",
        ]
        .iter()
        .map(|addr| addr.parse())
        .collect::<Result<_, _>>()?,
        relay: None,
    };
    anyhow::ensure!(hints.encode()?.len() <= 30, "the hints take {} bytes", hints.encode()?.len());
    let options = InviteOptions {
        name: Some("abcdefghijklmnopqrst".to_owned()),
        permissions: Permissions::MEMBER,
        hints,
        ..InviteOptions::default()
    };
    let token = authority.issue_invite(&options, UnixTime::now())?.to_string();
    report.exact(
        "invite token, 20-letter name, hints of at most 30 bytes",
        "chars",
        Goal::AtMost(260.0),
        token.len() as f64,
    );
    report.exact("its QR code at level L", "version", Goal::AtMost(11.0), f64::from(qr::version(&token)?));
    Ok(())
}
