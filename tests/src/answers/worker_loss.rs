//! A worker killed under an answer: how soon the next token comes, and how much of that is the model's own loading and reading.

use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hyper::StatusCode;
use serde_json::{Value, json};

use super::caller::{Stream, post};
use super::heard::Heard;
use super::{gateway_of, ready};
use crate::fleet::{Fleet, PATIENCE, Setup};

const HOST: usize = 0;
const WORKER: usize = 1;
const PROMPT: &str = "Name the three longest rivers of the world.";
/// Tokens of an answer: several seconds of a small model over two nodes.
const TOKENS: usize = 200;
/// From the first token to the kill.
const KILLED_AFTER: Duration = Duration::from_millis(1_500);
/// What the host's log says of a split that begins, and of a model that is loaded.
const HOSTED: &str = "hosts a model with the memory of others";
const READY: &str = "a model is ready";
/// Longest wait for anything in an answer; the host may take its whole time to be back.
const SILENCE: Duration = Duration::from_secs(120);

/// What is measured.
#[derive(Debug)]
pub struct WorkerLosses<'a> {
    /// The program `qmt-node`.
    pub node: &'a Path,
    /// The folder of llama-server and rpc-server.
    pub llama: &'a Path,
    /// The model's file.
    pub model: &'a Path,
    /// How often.
    pub rounds: usize,
}

/// One worker that was killed.
#[derive(Debug, Clone, Copy)]
pub struct WorkerLoss {
    /// From the kill to the next text.
    pub next_token: Duration,
    /// What llama-server took to start and load the model anew, by its node's log.
    pub relaunch: Duration,
    /// What it took to read the prompt and the text so far, asked once more.
    pub prefill: Duration,
}

impl WorkerLoss {
    /// What was added to that by noticing, deciding and going on.
    pub fn beyond(&self) -> Duration {
        self.next_token.saturating_sub(self.relaunch + self.prefill)
    }
}

impl WorkerLosses<'_> {
    /// Kills the worker of a split model in the middle of an answer, round by round.
    ///
    /// # Errors
    /// When the model is not split, or an answer does not go on.
    pub async fn measure(&self) -> Result<Vec<WorkerLoss>> {
        let name = self.model.file_stem().context("the model has no name")?.to_string_lossy().into_owned();
        let all = format!(
            "inference.bin_dir = {:?}\ninference.calibrate = false\ninference.assign = false\ninference.threads = 1\n",
            self.llama
        );
        let host = format!(
            "{all}inference.models = [{:?}]\ninference.split = true\ninference.ctx_size = 1024\n",
            self.model
        );
        let configs = [host, format!("{all}inference.max_vram = 2\n")];
        let configure = |number: usize| configs[number].clone();
        let setup = Setup { program: self.node, nodes: 2, hosts: Vec::new(), configure: &configure };
        let mut fleet = Fleet::start(setup).await?;
        let (mut losses, mut hosted) = (Vec::new(), 0);
        for _ in 0..self.rounds {
            until_split(&fleet, &name, hosted).await?;
            hosted = fleet.node(HOST).log().matches(HOSTED).count();
            losses.push(lose(&mut fleet, &name).await?);
            fleet.restart(WORKER, &configs[WORKER]).await?;
        }
        Ok(losses)
    }
}

/// Waits until the model runs over both once more than `before` times. That a node claims a split is not enough: what ran
/// alone may still be on its way out, and answers.
async fn until_split(fleet: &Fleet, model: &str, before: usize) -> Result<()> {
    let begin = Instant::now();
    loop {
        let log = fleet.node(HOST).log();
        let is_hosted = log.matches(HOSTED).count() > before && log.rfind(HOSTED) < log.rfind(READY);
        let models = fleet.node(HOST).client().models().await?;
        let view = models.iter().find(|view| view.name == model);
        let is_split = view.is_some_and(|view| ready(view).any(|provider| provider.workers.len() > 1));
        if is_hosted && is_split {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "{model} is not split: {models:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn lose(fleet: &mut Fleet, model: &str) -> Result<WorkerLoss> {
    let gateway = gateway_of(fleet, HOST).await?;
    let asked = json!({ "role": "user", "content": PROMPT });
    let body = json!({
        "model": model, "stream": true, "temperature": 0, "ignore_eos": true, "max_tokens": TOKENS, "messages": [asked],
    });
    let begin = Instant::now();
    let mut stream = loop {
        // Its head comes with the first token, whose prompt has to be read.
        let request = post(gateway, "/v1/chat/completions", &body);
        let (status, stream) = Stream::open_within(SILENCE, gateway, request).await?;
        if status.is_success() {
            break stream;
        }
        // The model may be on its way from one node to two.
        let is_loading = status == StatusCode::SERVICE_UNAVAILABLE && begin.elapsed() < PATIENCE;
        ensure!(is_loading, "{status}: {}", String::from_utf8_lossy(&stream.whole().await));
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let mut heard = Heard::default();
    let killed = {
        let mut read = pin!(stream.read(SILENCE, &mut heard));
        tokio::select! {
            done = &mut read => bail!("the answer was over before the worker was killed: {done:?}"),
            () = tokio::time::sleep(KILLED_AFTER) => {}
        }
        let killed = Instant::now();
        fleet.kill(WORKER);
        read.await?;
        killed
    };
    let pause = heard.pauses.first().context("the answer was not interrupted")?;
    let so_far = heard.text.get(..pause.told).unwrap_or_default();
    let said = json!({ "role": "assistant", "content": so_far });
    let again = json!({
        "model": model, "max_tokens": 1, "cache_prompt": false, "messages": [asked, said], "continue_final_message": true,
        "add_generation_prompt": false,
    });
    Ok(WorkerLoss {
        next_token: pause.to - killed,
        relaunch: last_start(&fleet.node(HOST).log())?,
        prefill: prefill(gateway, &again).await?,
    })
}

async fn prefill(gateway: SocketAddr, body: &Value) -> Result<Duration> {
    let (status, stream) =
        Stream::open_within(SILENCE, gateway, post(gateway, "/v1/chat/completions", body)).await?;
    let answer: Value = serde_json::from_slice(&stream.whole().await).with_context(|| format!("{status}"))?;
    let millis = answer["timings"]["prompt_ms"].as_f64().context("llama-server told no timings")?;
    Ok(Duration::from_secs_f64(millis / 1e3))
}

/// What the last start of llama-server took, from its node's log: `took=1.3s` or `took=803.1ms`.
fn last_start(log: &str) -> Result<Duration> {
    let line = log.lines().rfind(|line| line.contains(READY)).context("no start in the log")?;
    let took =
        line.split_whitespace().find_map(|word| word.strip_prefix("took=")).context("no time in the log")?;
    let (digits, scale) = match took.strip_suffix("ms") {
        Some(digits) => (digits, 1e-3),
        None => (took.strip_suffix('s').context("no seconds in the log")?, 1.0),
    };
    Ok(Duration::from_secs_f64(digits.parse::<f64>()? * scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_start_is_read_from_a_log() -> Result<()> {
        let log = "INFO a model is ready model=\"m\" port=1 took=2.5s\nINFO other\nINFO a model is ready model=\"m\" port=1 took=803.5ms\n";
        assert_eq!(last_start(log)?, Duration::from_micros(803_500));
        let first = log.lines().next().context("a line")?;
        assert_eq!(last_start(first)?, Duration::from_millis(2_500));
        assert!(last_start("").is_err());
        Ok(())
    }
}
