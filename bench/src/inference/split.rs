//! A model split over nodes through our tunnels, beside llama.cpp's plain `--rpc` with the same split.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};

use super::Options;
use super::nodes::{LOADED_WITHIN, Moved, Setting, tokens_per_second};
use crate::processes::{LlamaServer, Node, RpcServer};
use crate::report::{Goal, Lacking, Report};
use crate::stats::{estimate, ratio};

/// Tokens of one answer; few enough that what else the machine does falls on both arms alike.
pub(super) const TOKENS: u32 = 24;
/// Pairs of answers, one from each arm.
const PAIRS: usize = 10;
const PAIRS_QUICK: usize = 3;
/// A split over two devices, half of the layers each, whatever their memory.
pub(super) const SHARES: &str = "1,1";
/// What the host needs beside any layers of Gemma 3 270m, but not a layer more, so that all layers go to the workers.
const HOST_ALONE: &str = "max_vram = 0.62\n";

const SPEED: &str = "through our tunnel over plain --rpc";
const SPEED_GOAL: Goal = Goal::AtLeast(0.97);
const SENT_WITH: &str = "weights over the tunnel at load, the worker has the file, of the file";
const SENT_GOAL: Goal = Goal::AtMost(0.0);
const MOVED_WITH: &str =
    "all bytes over the tunnel at load, both directions, the worker has the file, of the file";
const MOVED_BOTH: &str = "the same over two tunnels, no layers at the host, of the file";
const MOVED_GOAL: Goal = Goal::AtMost(1.0);
const MOVED_WITHOUT: &str = "all bytes over the tunnel at load, the worker has not got the file, of the file";
const SENT_WITHOUT: &str = "weights over the tunnel at load, the worker has not got the file, of the file";
const NAMED: &str = "weights named instead, of the file";
const LOAD_WITH: &str = "load time, the worker has the file, over plain --rpc";
const LOAD_WITHOUT: &str = "load time, the worker has not got the file, over plain --rpc";

/// Measures both arms.
pub(super) fn measure(report: &mut Report, options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file_bytes = std::fs::metadata(&options.model)?.len();
    let part = |bytes: u64| 100.0 * bytes as f64 / file_bytes as f64;
    let setting = Setting::of(options);
    let arms = Arms::start(&setting, folder.path())?;
    report.exact(SENT_WITH, "%", SENT_GOAL, part(arms.moved.weights_sent));
    report.exact(NAMED, "%", Goal::None, part(arms.moved.weights_named));
    report.exact(MOVED_WITH, "%", MOVED_GOAL, part(arms.moved.bytes));
    let pairs = if options.quick { PAIRS_QUICK } else { PAIRS };
    speed(report, &arms, pairs)?;
    let (with, plain) = (arms.load_seconds, arms.plain_seconds);
    drop(arms);
    let (moved, without) = without_the_file(&setting, folder.path())?;
    report.exact(SENT_WITHOUT, "%", Goal::None, part(moved.weights_sent));
    report.exact(MOVED_WITHOUT, "%", Goal::None, part(moved.bytes));
    report.exact(LOAD_WITH, "x", Goal::None, with / plain);
    report.exact(LOAD_WITHOUT, "x", Goal::None, without / plain);
    report.exact(MOVED_BOTH, "%", MOVED_GOAL, part(both_remote(&setting, folder.path())?.bytes));
    report.note(format!(
        "both arms: {} over two ggml-rpc-servers, half of the layers each (`--tensor-split {SHARES}`), `-t 1` everywhere, {TOKENS} tokens at \
         temperature 0, {pairs} pairs in changing order; tokens/s as llama-server times them. Ours: two qmt-node processes linked over loopback \
         (QUIC); the worker's rpc-server is reached through our tunnel, the host's own directly. Plain: llama-server with `--rpc` to both. \
         The ratio's interval is by bootstrap over pairs.",
        options.model.file_name().unwrap_or_default().to_string_lossy()
    ));
    report.note("load time: from asking for the model to its first readiness, the election's two seconds of gathering news and the stop of the model run alone before included; plain: from the start of llama-server to its readiness.");
    report.note("bytes at load: until the model is ready for the first time, which includes the two words that llama-server computes to warm up: where the last device is at another node (the row with two tunnels), 2 MiB of them are what it says of each word of the vocabulary.");
    Ok(())
}

/// What a run without this part lacks.
pub(super) fn lacking() -> Lacking {
    let compared = [LOAD_WITH, LOAD_WITHOUT].map(|what| (what, "x", Goal::None));
    let moved = [NAMED, SENT_WITHOUT, MOVED_WITHOUT].map(|what| (what, "%", Goal::None));
    let bounded = [MOVED_WITH, MOVED_BOTH].map(|what| (what, "%", MOVED_GOAL));
    let all = [(SPEED, "x", SPEED_GOAL), (SENT_WITH, "%", SENT_GOAL)].into_iter();
    let all = all.chain(bounded).chain(moved).chain(compared);
    all.map(|(what, unit, goal)| (what.to_owned(), unit, goal)).collect()
}

/// Both arms, loaded.
struct Arms {
    ours: Node,
    _workers: Vec<Node>,
    model: String,
    plain: LlamaServer,
    _servers: Vec<RpcServer>,
    load_seconds: f64,
    plain_seconds: f64,
    /// By ours, until it was loaded.
    moved: Moved,
}

/// A host and a worker, with the model split over both; and how long that took.
fn split(setting: &Setting<'_>, folder: &Path, worker_models: &Path) -> Result<(Node, Vec<Node>, f64)> {
    let shares = format!("tensor_split = \"{SHARES}\"\n");
    let host = setting.node(folder, "host", setting.models()?, &shares)?;
    let workers = vec![setting.node(folder, "worker", worker_models, &shares)?];
    setting.meet(&host, &workers, 2)?;
    let seconds = setting.load(&host, 2)?;
    Ok((host, workers, seconds))
}

impl Arms {
    fn start(setting: &Setting<'_>, folder: &Path) -> Result<Self> {
        let (ours, _workers, load_seconds) = split(setting, &folder.join("with"), setting.models()?)?;
        let moved = Moved::of(&ours)?;
        let llama = &setting.options.llama;
        let _servers = vec![RpcServer::start(llama)?, RpcServer::start(llama)?];
        let begin = Instant::now();
        let plain = LlamaServer::start(llama, setting.model, &_servers, SHARES, LOADED_WITHIN)?;
        let plain_seconds = begin.elapsed().as_secs_f64();
        Ok(Self {
            ours,
            _workers,
            model: setting.name()?,
            plain,
            _servers,
            load_seconds,
            plain_seconds,
            moved,
        })
    }
}

fn speed(report: &mut Report, arms: &Arms, pairs: usize) -> Result<()> {
    let ours = || tokens_per_second(&arms.ours.gateway, &arms.model, TOKENS);
    let plain = || tokens_per_second(&arms.plain.authority, &arms.model, TOKENS);
    let (of_ours, of_plain) = in_pairs(pairs, ours, plain)?;
    report.row("plain --rpc over two servers", "tokens/s", Goal::None, estimate(&of_plain));
    report.row("the same split through our tunnel", "tokens/s", Goal::None, estimate(&of_ours));
    report.row(SPEED, "x", SPEED_GOAL, ratio(&of_ours, &of_plain));
    Ok(())
}

/// Asks both arms in turn, each of them first as often as the other.
pub(super) fn in_pairs(
    pairs: usize,
    ours: impl Fn() -> Result<f64>,
    plain: impl Fn() -> Result<f64>,
) -> Result<(Vec<f64>, Vec<f64>)> {
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
    Ok((of_ours, of_plain))
}

/// Loads once more, with a worker that has no models: what was moved, and how long it took.
fn without_the_file(setting: &Setting<'_>, folder: &Path) -> Result<(Moved, f64)> {
    let empty = folder.join("empty");
    std::fs::create_dir_all(&empty)?;
    let (host, _workers, seconds) = split(setting, &folder.join("without"), &empty)?;
    let moved = Moved::of(&host)?;
    ensure!(
        moved.weights_named == 0,
        "{} bytes of weights were named to a worker without the file",
        moved.weights_named
    );
    Ok((moved, seconds))
}

/// Loads once more, with all layers at two workers that have the file: what was moved.
fn both_remote(setting: &Setting<'_>, folder: &Path) -> Result<Moved> {
    let (folder, models) = (folder.join("both"), setting.models()?);
    let shares = format!("tensor_split = \"{SHARES}\"\n");
    let host = setting.node(&folder, "host", models, &format!("{shares}{HOST_ALONE}"))?;
    let workers = ["worker", "other"].map(|name| setting.node(&folder, name, models, ""));
    let workers = workers.into_iter().collect::<Result<Vec<_>>>()?;
    setting.meet(&host, &workers, 2)?;
    setting.load(&host, 2)?;
    Moved::of(&host)
}
