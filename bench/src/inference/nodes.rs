//! Real nodes that run a model together.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Options;
use crate::processes::{self, Node, ask_json};

pub(super) const LOADED_WITHIN: Duration = Duration::from_secs(120);
const PROMPT: &str = "The three longest rivers of the world are";

const MESH: &str = "[mesh]\nenabled = true\ntransport = \"iroh\"\ninternet.relay_mode = \"disabled\"\n";

/// What all nodes of a measurement have in common.
#[derive(Clone, Copy)]
pub(super) struct Setting<'a> {
    pub(super) options: &'a Options,
    /// The model's file.
    pub(super) model: &'a Path,
    pub(super) threads: u32,
    pub(super) ctx_size: u32,
    /// Whether nodes measure how fast they are.
    pub(super) calibrate: bool,
}

impl<'a> Setting<'a> {
    /// One thread, 512 tokens of context, no speed measured.
    pub(super) fn of(options: &'a Options) -> Self {
        Self { options, model: &options.model, threads: 1, ctx_size: 512, calibrate: false }
    }

    /// The model's name.
    pub(super) fn name(&self) -> Result<String> {
        Ok(self.model.file_stem().context("the model has no name")?.to_string_lossy().into_owned())
    }

    /// The folder of the model.
    pub(super) fn models(&self) -> Result<&'a Path> {
        self.model.parent().context("the model lies in no folder")
    }

    /// Starts a node with the models of a folder and, for inference, these lines beside.
    pub(super) fn node(&self, folder: &Path, name: &str, models: &Path, more: &str) -> Result<Node> {
        let Self { threads, ctx_size, calibrate, options, .. } = self;
        let config = format!(
            "{MESH}node_name = \"{name}\"\n[inference]\nthreads = {threads}\nctx_size = {ctx_size}\ncalibrate = {calibrate}\n\
             assign = false\nmodel_dirs = [{models:?}]\nbin_dir = {:?}\n{more}",
            options.llama
        );
        Node::start(&options.bin_dir, &folder.join(name), &config)
    }

    /// Lets the workers join the host, and waits until the host can plan a split over so many devices: its plan.
    pub(super) fn meet(&self, host: &Node, workers: &[Node], devices: usize) -> Result<Value> {
        let invite = host.cli(&["invite", "--uses", "0"])?;
        for worker in workers {
            worker.cli(&["join", invite["token"].as_str().context("no token")?])?;
        }
        let (name, mut found) = (self.name()?, Value::Null);
        processes::wait_for_long("a split that can be planned", LOADED_WITHIN, || {
            found = host.cli(&["plan", &name, "--split"])?;
            let split = &found["alternatives"][0]["way"]["split"];
            Ok(split["devices"].as_array().is_some_and(|planned| planned.len() == devices))
        })?;
        Ok(found)
    }

    /// Loads the model, split over so many devices where it is to be more than one; returns how long that took.
    pub(super) fn load(&self, host: &Node, devices: usize) -> Result<f64> {
        let name = self.name()?;
        let begin = Instant::now();
        let split = if devices > 1 { &["--split"][..] } else { &[] };
        host.cli(&[&["load", &name, "--no-wait"][..], split].concat())?;
        processes::wait_for_long("the model is ready", LOADED_WITHIN, || {
            let models = host.cli(&["models"])?;
            let models =
                models.as_array().into_iter().flatten().filter(|model| model["name"] == name.as_str());
            let providers =
                models.flat_map(|model| model["providers"].as_array().cloned().unwrap_or_default());
            let is_wanted = |provider: &Value| {
                let shares = provider["workers"].as_array().map_or(0, Vec::len);
                provider["state"] == "ready" && shares.max(1) == devices
            };
            Ok(providers.into_iter().any(|provider| is_wanted(&provider)))
        })?;
        Ok(begin.elapsed().as_secs_f64())
    }
}

/// How fast one answer of so many tokens is, as llama-server times it.
pub(super) fn tokens_per_second(authority: &str, model: &str, tokens: u32) -> Result<f64> {
    let body = json!({
        "model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "cache_prompt": false
    });
    let answer = ask_json(authority, "/v1/completions", &body)?;
    let made = answer["usage"]["completion_tokens"].as_u64().context("no usage")?;
    ensure!(made == u64::from(tokens), "{made} tokens instead of {tokens}: {answer}");
    answer["timings"]["predicted_per_second"].as_f64().context("llama-server told no timings")
}

/// What the tunnels of a node have carried since it started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moved {
    /// In both directions.
    pub(super) bytes: u64,
    pub(super) weights_sent: u64,
    pub(super) weights_named: u64,
}

impl Moved {
    pub(super) fn of(node: &Node) -> Result<Self> {
        let status = node.cli(&["status"])?;
        let of = |name: &str| status["tunnels"][name].as_u64().with_context(|| format!("no {name}"));
        Ok(Self {
            bytes: of("sent_bytes")? + of("received_bytes")?,
            weights_sent: of("weights_sent_bytes")?,
            weights_named: of("weights_by_reference_bytes")?,
        })
    }
}
