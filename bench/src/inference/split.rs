//! A model split over nodes through our tunnels, beside llama.cpp's plain `--rpc` with the same split.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Options;
use crate::processes::{self, LlamaServer, Node, RpcServer, ask_json};
use crate::report::{Goal, Lacking, Report};
use crate::stats::{estimate, ratio};

/// Tokens of one answer; few enough that what else the machine does falls on both arms alike.
const TOKENS: u32 = 24;
/// Pairs of answers, one from each arm.
const PAIRS: usize = 10;
const PAIRS_QUICK: usize = 3;
const PROMPT: &str = "The three longest rivers of the world are";
/// A split over two devices, half of the layers each, whatever their memory.
const SHARES: &str = "1,1";
const LOADED_WITHIN: Duration = Duration::from_secs(120);

const SPEED: &str = "through our tunnel over plain --rpc";
const SPEED_GOAL: Goal = Goal::AtLeast(0.97);
const SENT_WITH: &str = "weights over the tunnel at load, the worker has the file, of the file";
const SENT_GOAL: Goal = Goal::AtMost(0.0);
const SENT_WITHOUT: &str = "weights over the tunnel at load, the worker has not got the file, of the file";
const NAMED: &str = "weights named instead, of the file";
const LOAD_WITH: &str = "load time, the worker has the file, over plain --rpc";
const LOAD_WITHOUT: &str = "load time, the worker has not got the file, over plain --rpc";

/// Measures both arms.
pub(super) fn measure(report: &mut Report, options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file_bytes = std::fs::metadata(&options.model)?.len();
    let arms = Arms::start(options, folder.path())?;
    let pairs = if options.quick { PAIRS_QUICK } else { PAIRS };
    speed(report, &arms, pairs)?;
    moved(report, &arms, file_bytes)?;
    let with = arms.load_seconds;
    let plain = arms.plain_seconds;
    drop(arms);
    let without = without_the_file(options, folder.path(), report, file_bytes)?;
    report.exact(LOAD_WITH, "x", Goal::None, with / plain);
    report.exact(LOAD_WITHOUT, "x", Goal::None, without / plain);
    report.note(format!(
        "both arms: {} over two ggml-rpc-servers, half of the layers each (`--tensor-split {SHARES}`), `-t 1` everywhere, {TOKENS} tokens at \
         temperature 0, {pairs} pairs in changing order; tokens/s as llama-server times them. Ours: two qmt-node processes linked over loopback \
         (QUIC); the worker's rpc-server is reached through our tunnel, the host's own directly. Plain: llama-server with `--rpc` to both. \
         The ratio's interval is by bootstrap over pairs.",
        options.model.file_name().unwrap_or_default().to_string_lossy()
    ));
    report.note("load time: from asking for the model to its first readiness, the election's two seconds of gathering news and the stop of the model run alone before included; plain: from the start of llama-server to its readiness.");
    Ok(())
}

/// What a run without this part lacks.
pub(super) fn lacking() -> Lacking {
    let compared = [LOAD_WITH, LOAD_WITHOUT].map(|what| (what, "x", Goal::None));
    let moved = [NAMED, SENT_WITHOUT].map(|what| (what, "%", Goal::None));
    let all =
        [(SPEED, "x", SPEED_GOAL), (SENT_WITH, "%", SENT_GOAL)].into_iter().chain(moved).chain(compared);
    all.map(|(what, unit, goal)| (what.to_owned(), unit, goal)).collect()
}

/// Both arms, loaded.
struct Arms {
    ours: Node,
    _worker: Node,
    model: String,
    plain: LlamaServer,
    _servers: Vec<RpcServer>,
    load_seconds: f64,
    plain_seconds: f64,
}

const MESH: &str = "[mesh]\nenabled = true\ntransport = \"iroh\"\ninternet.relay_mode = \"disabled\"\n";

fn config(options: &Options, name: &str, models: &Path) -> String {
    format!(
        "{MESH}node_name = \"{name}\"\n[inference]\nthreads = 1\ncalibrate = false\nassign = false\nctx_size = 512\ntensor_split = \"{SHARES}\"\n\
         model_dirs = [{models:?}]\nbin_dir = {:?}\n",
        options.llama
    )
}

/// A host and a worker, with the model split over both; and how long that took.
fn split(options: &Options, folder: &Path, worker_models: &Path) -> Result<(Node, Node, String, f64)> {
    let models = options.model.parent().context("the model lies in no folder")?;
    let name = options.model.file_stem().context("the model has no name")?.to_string_lossy().into_owned();
    let host = Node::start(&options.bin_dir, &folder.join("host"), &config(options, "host", models))?;
    let worker =
        Node::start(&options.bin_dir, &folder.join("worker"), &config(options, "worker", worker_models))?;
    let invite = host.cli(&["invite"])?;
    worker.cli(&["join", invite["token"].as_str().context("no token")?])?;
    processes::wait_for_long("the worker lends", LOADED_WITHIN, || {
        let plan = host.cli(&["plan", &name, "--split"])?;
        Ok(plan["alternatives"][0]["way"].get("split").is_some())
    })?;
    let begin = Instant::now();
    host.cli(&["load", &name, "--split", "--no-wait"])?;
    processes::wait_for_long("the split is ready", LOADED_WITHIN, || {
        let models = host.cli(&["models"])?;
        let providers = models
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|model| model["providers"].as_array().cloned().unwrap_or_default());
        let is_split = |provider: &Value| {
            provider["state"] == "ready"
                && provider["workers"].as_array().is_some_and(|workers| workers.len() == 2)
        };
        Ok(providers.into_iter().any(|provider| is_split(&provider)))
    })?;
    Ok((host, worker, name, begin.elapsed().as_secs_f64()))
}

impl Arms {
    fn start(options: &Options, folder: &Path) -> Result<Self> {
        let models = options.model.parent().context("the model lies in no folder")?;
        let (ours, worker, model, load_seconds) = split(options, &folder.join("with"), models)?;
        let servers = vec![RpcServer::start(&options.llama)?, RpcServer::start(&options.llama)?];
        let begin = Instant::now();
        let plain = LlamaServer::start(&options.llama, &options.model, &servers, SHARES, LOADED_WITHIN)?;
        let plain_seconds = begin.elapsed().as_secs_f64();
        Ok(Self { ours, _worker: worker, model, plain, _servers: servers, load_seconds, plain_seconds })
    }
}

fn speed(report: &mut Report, arms: &Arms, pairs: usize) -> Result<()> {
    let ours = || tokens_per_second(&arms.ours.gateway, &arms.model);
    let plain = || tokens_per_second(&arms.plain.authority, &arms.model);
    // The first answer of each is slower: caches and connections are cold.
    ours()?;
    plain()?;
    let (mut of_ours, mut of_plain) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        if pair % 2 == 0 {
            of_ours.push(ours()?);
            of_plain.push(plain()?);
        } else {
            of_plain.push(plain()?);
            of_ours.push(ours()?);
        }
    }
    report.row("plain --rpc over two servers", "tokens/s", Goal::None, estimate(&of_plain));
    report.row("the same split through our tunnel", "tokens/s", Goal::None, estimate(&of_ours));
    report.row(SPEED, "x", SPEED_GOAL, ratio(&of_ours, &of_plain));
    Ok(())
}

fn tokens_per_second(authority: &str, model: &str) -> Result<f64> {
    let body = json!({ "model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "cache_prompt": false });
    let answer = ask_json(authority, "/v1/completions", &body)?;
    let made = answer["usage"]["completion_tokens"].as_u64().context("no usage")?;
    ensure!(made == u64::from(TOKENS), "{made} tokens instead of {TOKENS}: {answer}");
    answer["timings"]["predicted_per_second"].as_f64().context("llama-server told no timings")
}

/// What the tunnels of the host have carried since it started.
fn tunnels(host: &Node) -> Result<(u64, u64)> {
    let status = host.cli(&["status"])?;
    let of = |name: &str| status["tunnels"][name].as_u64().with_context(|| format!("no {name}"));
    Ok((of("weights_sent_bytes")?, of("weights_by_reference_bytes")?))
}

fn moved(report: &mut Report, arms: &Arms, file_bytes: u64) -> Result<()> {
    let (sent, named) = tunnels(&arms.ours)?;
    let part = |bytes: u64| 100.0 * bytes as f64 / file_bytes as f64;
    report.exact(SENT_WITH, "%", SENT_GOAL, part(sent));
    report.exact(NAMED, "%", Goal::None, part(named));
    Ok(())
}

/// Loads once more, with a worker that has no models; returns how long that took.
fn without_the_file(options: &Options, folder: &Path, report: &mut Report, file_bytes: u64) -> Result<f64> {
    let empty = folder.join("empty");
    std::fs::create_dir_all(&empty)?;
    let (host, _worker, _, seconds) = split(options, &folder.join("without"), &empty)?;
    let (sent, named) = tunnels(&host)?;
    if named > 0 {
        bail!("{named} bytes of weights were named to a worker without the file");
    }
    let part = 100.0 * sent as f64 / file_bytes as f64;
    report.exact(SENT_WITHOUT, "%", Goal::None, part);
    Ok(seconds)
}
