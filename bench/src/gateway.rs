//! `gateway`: what the gateway adds, on this node and over the mesh, beside nginx on the same work.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use mesh_identity::{Authority, Founding, InviteOptions, NodeAddr, NodeKey, Permissions, UnixTime, qr};

use crate::load::{Client, Held, latencies, stream_body, throughput};
use crate::machine;
use crate::processes::{self, Node};
use crate::report::{Goal, Report};
use crate::stats::{estimate, percentile, ratio, sort};
use crate::stub::MODEL;

pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) bin_dir: PathBuf,
    pub(crate) nginx: PathBuf,
    pub(crate) report: Option<PathBuf>,
}

/// How much is measured.
struct Effort {
    latency_rounds: usize,
    /// Requests to each place in a round: few, so that what else the machine does falls on all places alike.
    requests: usize,
    rate_rounds: usize,
    rate_time: Duration,
    stream_rounds: usize,
    chunks: u32,
    starts: usize,
}

impl Effort {
    fn new(quick: bool) -> Self {
        if quick {
            Self {
                latency_rounds: 10,
                requests: 100,
                rate_rounds: 4,
                rate_time: Duration::from_millis(300),
                stream_rounds: 4,
                chunks: 100,
                starts: 3,
            }
        } else {
            Self {
                latency_rounds: 60,
                requests: 500,
                rate_rounds: 20,
                rate_time: Duration::from_secs(1),
                stream_rounds: 20,
                chunks: 500,
                starts: 21,
            }
        }
    }
}

/// Streams open at once when memory is measured.
const STREAMS: usize = 1_000;
/// Nodes whose callers share them, when they come over the mesh: a node serves 256 requests of one peer at a time.
const ASKING_NODES: usize = 4;
/// Files that one process may need to have open: two for each stream, and some.
const FILES: u64 = 2_500;

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
    machine::check_open_files(FILES)?;
    let facts = machine::facts(Some(&options.nginx))?;
    let folder = tempfile::tempdir()?;
    let (_stub, stub) = processes::stub()?;
    let (_nginx, nginx) = processes::nginx(&options.nginx, &folder.path().join("nginx"), &stub)?;
    let first = provider(&options.bin_dir, folder.path(), &stub)?;
    let second = joined(&options.bin_dir, folder.path(), "second", &first)?;
    let places = Places { direct: stub, nginx, local: first.gateway.clone(), remote: second.gateway.clone() };

    let mut report = Report::new("gateway");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        added_latency(&mut report, &places, &effort).await?;
        requests_per_second(&mut report, &places, &effort).await?;
        chunk_latency(&mut report, &places, &effort).await
    })?;
    let mut asking = vec![second];
    for number in 1..ASKING_NODES {
        asking.push(joined(&options.bin_dir, folder.path(), &format!("asking{number}"), &first)?);
    }
    runtime.block_on(open_streams(&mut report, &first, &asking))?;
    drop((first, asking));
    starts(&mut report, options, folder.path(), &effort)?;
    invite_size(&mut report)?;

    report.note(
        "a figure is the median over rounds unless it is named otherwise; exact ones have no interval.",
    );
    report.note(format!(
        "added latency: {} rounds; in each, {} requests go one by one directly, through nginx, through the local gateway and over the mesh, \
         in changing order; what is added is the difference to the direct path in the same round. The interval is the 95 % interval of the \
         median by bootstrap over rounds; for a ratio, numerator and denominator are resampled together. A goal is met when the figure reaches it.",
        effort.latency_rounds, effort.requests
    ));
    report.note(format!(
        "requests per second: {} rounds of {} s each way; streamed chunks: {} rounds of {} chunks, 2 ms apart, each carrying the time at which it was sent; \
         cold start: {} starts with an empty home.",
        effort.rate_rounds,
        effort.rate_time.as_secs_f64(),
        effort.stream_rounds,
        effort.chunks,
        effort.starts
    ));
    report.note(
        "nginx runs with keep-alive on both sides and without buffering; backend (a stub that does no work), nginx, nodes and client share the \
         machine's cores and its loopback. Ratios carry over to other machines, milliseconds do not.",
    );
    for fact in facts {
        report.note(fact);
    }
    if options.quick {
        report
            .note("this was a `--quick` run: enough to see that everything runs, too few rounds to rely on.");
    }
    let command = if options.quick { "scripts/bench gateway --quick" } else { "scripts/bench gateway" };
    report.finish(options.report.as_deref(), command)
}

const MESH: &str = "[mesh]\nenabled = true\ntransport = \"iroh\"\n";

/// A node that shares the stub.
fn provider(bin_dir: &Path, folder: &Path, stub: &str) -> Result<Node> {
    let config = format!(
        "{MESH}node_name = \"first\"\n[[providers]]\nname = \"stub\"\nkind = \"openai\"\nbase_url = \"http://{stub}/v1\"\nmodels = [\"{MODEL}\"]\n"
    );
    let node = Node::start(bin_dir, &folder.join("first"), &config)?;
    node.wait_for_model(MODEL)?;
    Ok(node)
}

/// A node that has joined the mesh of `first` and sees its model.
fn joined(bin_dir: &Path, folder: &Path, name: &str, first: &Node) -> Result<Node> {
    let node = Node::start(bin_dir, &folder.join(name), &format!("{MESH}node_name = \"{name}\"\n"))?;
    let invite = first.cli(&["invite"])?;
    node.cli(&["join", invite["token"].as_str().context("no token")?])?;
    node.wait_for_model(MODEL)?;
    Ok(node)
}

async fn added_latency(report: &mut Report, places: &Places, effort: &Effort) -> Result<()> {
    let all = [&places.direct, &places.nginx, &places.local, &places.remote];
    let mut clients = Vec::new();
    for place in all {
        clients.push(Client::connect(place).await?);
    }
    let mut rounds = vec![Vec::new(); all.len()];
    for round in 0..effort.latency_rounds {
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
    let direct: Vec<f64> = rounds[0].iter().map(|times| percentile(times, 0.5)).collect();
    report.row("the backend directly, p50", "ms", Goal::None, estimate(&direct));
    report.row("nginx, added p50", "ms", Goal::None, estimate(&added(1, 0.5)));
    report.row("nginx, added p99", "ms", Goal::None, estimate(&added(1, 0.99)));
    report.row("local gateway, added p50", "ms", Goal::None, estimate(&added(2, 0.5)));
    report.row("local gateway, added p99", "ms", Goal::None, estimate(&added(2, 0.99)));
    report.row(
        "local gateway's added p50 over nginx's",
        "x",
        Goal::AtMost(1.5),
        ratio(&added(2, 0.5), &added(1, 0.5)),
    );
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
    for round in 0..effort.rate_rounds {
        if round % 2 == 0 {
            nginx.push(throughput(&places.nginx, CONNECTIONS, effort.rate_time).await?);
            ours.push(throughput(&places.local, CONNECTIONS, effort.rate_time).await?);
        } else {
            ours.push(throughput(&places.local, CONNECTIONS, effort.rate_time).await?);
            nginx.push(throughput(&places.nginx, CONNECTIONS, effort.rate_time).await?);
        }
        mesh.push(throughput(&places.remote, CONNECTIONS, effort.rate_time).await?);
    }
    report.row(format!("nginx, {CONNECTIONS} connections"), "req/s", Goal::None, estimate(&nginx));
    report.row(format!("local gateway, {CONNECTIONS} connections"), "req/s", Goal::None, estimate(&ours));
    report.row("local gateway's requests/s over nginx's", "x", Goal::AtLeast(0.6), ratio(&ours, &nginx));
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
    for round in 0..effort.stream_rounds {
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

async fn open_streams(report: &mut Report, first: &Node, asking: &[Node]) -> Result<()> {
    let held = hold(&first.gateway, STREAMS).await?;
    report.exact(
        format!("memory of a node with {STREAMS} open streams of its own callers"),
        "MB",
        Goal::AtMost(200.0),
        first.process.resident_mb()?,
    );
    drop(held);
    let mut held = Vec::new();
    for node in asking {
        held.extend(hold(&node.gateway, STREAMS / asking.len()).await?);
    }
    report.exact(
        format!("memory of a node with {STREAMS} open streams of {} peers", asking.len()),
        "MB",
        Goal::AtMost(200.0),
        first.process.resident_mb()?,
    );
    let most = asking.iter().map(|node| node.process.resident_mb()).collect::<Result<Vec<_>>>()?;
    report.exact(
        format!("memory of a node with {} open streams at a peer", STREAMS / asking.len()),
        "MB",
        Goal::None,
        most.into_iter().fold(0.0, f64::max),
    );
    Ok(())
}

/// Streams that have all begun and go on until they are dropped.
async fn hold(gateway: &str, streams: usize) -> Result<Vec<Held>> {
    let body = stream_body(1_000_000, 500_000);
    let mut held: Vec<Held> = Vec::with_capacity(streams);
    while held.len() < streams {
        let batch = (streams - held.len()).min(CONNECTIONS);
        let opening = (0..batch).map(|_| async { Client::connect(gateway).await?.hold(&body).await });
        held.extend(try_join_all(opening).await?);
    }
    Ok(held)
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
        ..NodeAddr::default()
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
