//! `console`: what the page weighs, how fast it is there, what it costs a browser at three hundred members, and the node.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use qmt_tests::browser::Browser;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::load::throughput;
use crate::machine;
use crate::processes::{self, Node};
use crate::report::{Goal, Lacking, Report, lack};
use crate::stats::{estimate, ratio};
use crate::stub::MODEL;

/// The page's bounds.
const WEIGHT_GOAL_KB: f64 = 200.0;
/// Nothing on the page may stand still for longer, in milliseconds.
const FREEZE_GOAL_MS: f64 = 100.0;
/// An open console may cost the gateway this much of its requests.
const COST_GOAL: f64 = 0.97;
const MEMBERS: usize = 300;
/// Members that change in each of [`CHANGES`] steps, and the time between two.
const CHANGED: usize = 10;
const CHANGES: usize = 100;
const CHANGE_EVERY_MS: u64 = 100;
/// For a browser to paint what it shows.
const PAINT_MS: u64 = 10_000;
/// Callers of the gateway.
const CALLERS: usize = 8;

const WEIGHT: &str = "all files of the page";
const PICTURE: &str = "first picture, on loopback";
const FREEZE: &str = "longest task at 300 members of which ten change every 100 ms";
const BROWSER: &str = "the browser's processors meanwhile, of one";
const COST: &str = "gateway: requests/s with a console open, of those without";
const SCRAPE: &str = "one reading of /metrics";

pub(crate) struct Options {
    pub(crate) quick: bool,
    pub(crate) bin_dir: PathBuf,
    pub(crate) report: Option<PathBuf>,
}

/// Runs the benchmark; says whether all goals are met.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let facts = machine::facts(None)?;
    let mut report = Report::new("console");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut lacking = lacking();
    if let Err(error) = runtime.block_on(measure(&mut report, &mut lacking, options)) {
        lack(&mut report, lacking, &error);
    }
    report.note("Chromium without a window, on the same machine as the node; 300 members are put into the page as its event stream would tell them. A browser tells of tasks above 50 ms: 0 says that there was none.");
    for fact in facts {
        report.note(fact);
    }
    report.finish(options.report.as_deref(), "scripts/bench console")
}

fn lacking() -> Lacking {
    vec![
        (WEIGHT.to_owned(), "kB", Goal::AtMost(WEIGHT_GOAL_KB)),
        (PICTURE.to_owned(), "ms", Goal::None),
        (FREEZE.to_owned(), "ms", Goal::AtMost(FREEZE_GOAL_MS)),
        (BROWSER.to_owned(), "", Goal::None),
        (COST.to_owned(), "", Goal::AtLeast(COST_GOAL)),
        (SCRAPE.to_owned(), "ms", Goal::None),
    ]
}

/// What is measured is taken out of `lacking`.
async fn measure(report: &mut Report, lacking: &mut Lacking, options: &Options) -> Result<()> {
    let home = tempfile::tempdir()?;
    let (_stub, backend) = processes::stub()?;
    let config = format!(
        "inference.model_dirs = []\ninference.lend = false\napi.port = 0\nconsole.port = 0\n\
         [[providers]]\nname = \"stub\"\nbase_url = \"http://{backend}/v1\"\nmodels = [\"{MODEL}\"]\n"
    );
    let node = Node::start(&options.bin_dir, home.path(), &config)?;
    node.wait_for_model(MODEL)?;
    let rounds = if options.quick { 3 } else { 10 };
    let browser = Browser::start(1280, 900).await?;
    sign_in(&node, &browser).await?;

    let mut done = |what: &str| lacking.retain(|(figure, ..)| figure != what);

    report.exact(WEIGHT, "kB", Goal::AtMost(WEIGHT_GOAL_KB), weight(&browser, &url(&node)?).await?);
    done(WEIGHT);
    report.row(PICTURE, "ms", Goal::None, estimate(&pictures(&browser, &url(&node)?, rounds).await?));
    done(PICTURE);
    let (freeze, share) = busy(&browser).await?;
    report.exact(FREEZE, "ms", Goal::AtMost(FREEZE_GOAL_MS), freeze);
    report.exact(BROWSER, "", Goal::None, share);
    done(FREEZE);
    done(BROWSER);

    let time = Duration::from_secs(if options.quick { 1 } else { 4 });
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // By turns, and each first as often as the other.
        for open in [round % 2 == 0, round % 2 == 1] {
            browser.open(&if open { url(&node)? } else { "about:blank".to_owned() }).await?;
            if open {
                browser.shows(&["live"]).await?;
            }
            let each = throughput(&node.gateway, CALLERS, time).await?;
            if open { with.push(each) } else { without.push(each) }
        }
    }
    report.row(COST, "", Goal::AtLeast(COST_GOAL), ratio(&with, &without));
    done(COST);
    report.row(SCRAPE, "ms", Goal::None, estimate(&scrapes(&url(&node)?, rounds * 20).await?));
    Ok(())
}

fn url(node: &Node) -> Result<String> {
    let status = node.cli(&["status"])?;
    Ok(status["console_url"].as_str().context("the node has no console")?.to_owned())
}

async fn sign_in(node: &Node, browser: &Browser) -> Result<()> {
    let link = node.cli(&["console"])?;
    browser.open(link["url"].as_str().context("no link")?).await?;
    browser.shows(&["live"]).await
}

/// Kilobytes of all that a browser without a cache loads.
async fn weight(browser: &Browser, url: &str) -> Result<f64> {
    open_anew(browser, url).await?;
    let sizes = "const all = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]; \
                 return all.filter((one) => !one.name.includes('/api/')).reduce((sum, one) => sum + one.decodedBodySize, 0)";
    let bytes = browser.run(sizes).await?.as_f64().context("no sizes")?;
    ensure!(bytes > 10_000.0, "a page of {bytes} bytes");
    Ok(bytes / 1e3)
}

/// Milliseconds to the first picture, by round.
async fn pictures(browser: &Browser, url: &str, rounds: usize) -> Result<Vec<f64>> {
    let mut first = Vec::new();
    for _ in 0..rounds {
        open_anew(browser, url).await?;
        // What is on the page is not painted yet: the browser is waited for, and asked for a frame where it sees no cause for one.
        let paint = format!(
            "return await new Promise((done) => {{ \
               new PerformanceObserver((list) => list.getEntriesByName('first-contentful-paint').forEach((one) => done(one.startTime))).observe({{ type: 'paint', buffered: true }}); \
               requestAnimationFrame(() => {{}}); setTimeout(() => done(null), {PAINT_MS}); }})"
        );
        let paint = browser.run(&paint).await?;
        first.push(paint.as_f64().context("the browser painted nothing")?);
    }
    Ok(first)
}

/// Not the page that is there: one that has nothing of it.
async fn open_anew(browser: &Browser, url: &str) -> Result<()> {
    browser.open("about:blank").await?;
    browser.open(url).await?;
    browser.shows(&["live"]).await
}

/// The longest task in milliseconds while members change, and the browser's share of a processor.
async fn busy(browser: &Browser) -> Result<(f64, f64)> {
    let begin = (Instant::now(), browser.processor_seconds()?);
    let script = format!(
        "const {{ state, changed }} = await import('/state.js'); \
         const one = [...state.nodes.values()][0] ?? {{ id: 'x', scope: 's', name: 'x', role: 'member', models: [], capabilities: [], path: 'direct', since: 1 }}; \
         for (let at = 0; at < {MEMBERS}; at++) {{ const id = `many-${{at}}`; state.nodes.set(`${{one.scope}}/${{id}}`, {{ ...one, id, name: id, state: 'alive', path: 'direct', rtt_ms: 1 }}); }} \
         changed(); \
         let longest = 0; new PerformanceObserver((list) => {{ for (const task of list.getEntries()) longest = Math.max(longest, task.duration); }}).observe({{ type: 'longtask' }}); \
         for (let step = 0; step < {CHANGES}; step++) {{ \
           for (let at = 0; at < {CHANGED}; at++) {{ const id = `many-${{(step * {CHANGED} + at) % {MEMBERS}}}`; const key = `${{one.scope}}/${{id}}`; state.nodes.set(key, {{ ...state.nodes.get(key), rtt_ms: step, state: step % 2 ? 'alive' : 'suspect' }}); }} \
           changed(); await new Promise((wake) => setTimeout(wake, {CHANGE_EVERY_MS})); }} \
         return longest"
    );
    let longest = browser.run(&script).await?.as_f64().context("no tasks were told")?;
    let (time, used) = (begin.0.elapsed().as_secs_f64(), browser.processor_seconds()? - begin.1);
    Ok((longest, used / time))
}

/// Milliseconds of each reading.
async fn scrapes(url: &str, count: usize) -> Result<Vec<f64>> {
    let authority = url.trim_start_matches("http://");
    let stream = TcpStream::connect(authority).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let mut times = Vec::new();
    for _ in 0..count {
        let request = hyper::Request::get("/metrics").header("host", authority).body(Empty::<Bytes>::new())?;
        // The one before is at its end when its connection says so, not when its last byte is here.
        sender.ready().await?;
        let begin = Instant::now();
        let answer = sender.send_request(request).await?;
        ensure!(answer.status() == 200, "/metrics answered {}", answer.status());
        let text = answer.into_body().collect().await?.to_bytes();
        times.push(begin.elapsed().as_secs_f64() * 1e3);
        ensure!(text.starts_with(b"# HELP"), "/metrics: {:?}", Value::from(String::from_utf8_lossy(&text)));
    }
    connection.abort();
    Ok(times)
}
