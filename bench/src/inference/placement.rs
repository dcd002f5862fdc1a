//! Speeds as placement predicts them, beside speeds as they are.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use mesh_inference::gguf::tiny::TinyModel;
use serde_json::Value;

use super::Options;
use super::nodes::{Setting, tokens_per_second};
use crate::processes::Node;
use crate::report::{Goal, Lacking, Report};
use crate::stats::median;

/// How near a prediction is to be, and to how many of all.
const NEAR: f64 = 0.3;
const PART: &str = "placements predicted to within 30 %, of all";
const PART_GOAL: Goal = Goal::AtLeast(80.0);
const WORST: &str = "the worst prediction over the speed as it is";
/// Tokens of one answer, and answers of which the median counts.
const TOKENS: u32 = 24;
const ANSWERS: usize = 5;
const ANSWERS_QUICK: usize = 2;

/// One placement.
struct Placement<'a> {
    model: &'a Path,
    called: &'a str,
    threads: u32,
    ctx_size: u32,
    /// Nodes beside the host that take a part.
    workers: usize,
}

impl fmt::Display for Placement<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { called, threads, ctx_size, workers, .. } = self;
        match workers {
            0 => write!(f, "{called} alone")?,
            1 => write!(f, "{called} over two nodes")?,
            more => write!(f, "{called} over {} nodes", more + 1)?,
        }
        write!(f, ", {threads} threads, {ctx_size} tokens of context")
    }
}

/// Measures all placements.
pub(super) fn measure(report: &mut Report, options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let made = Made::write(folder.path(), options.quick)?;
    let mut ratios = Vec::new();
    for (number, placement) in placements(options, &made).iter().enumerate() {
        let home = folder.path().join(format!("{number}"));
        let (predicted, measured) = placement.run(options, &home).with_context(|| placement.to_string())?;
        println!("  {placement}: predicted {predicted:.1}, measured {measured:.1} tokens/s");
        report.exact(format!("predicted over measured: {placement}"), "x", Goal::None, predicted / measured);
        ratios.push(predicted / measured);
    }
    let is_near = |ratio: &&f64| (1.0 - NEAR..=1.0 + NEAR).contains(*ratio);
    let near = ratios.iter().filter(is_near).count();
    report.exact(PART, "%", PART_GOAL, 100.0 * near as f64 / ratios.len() as f64);
    let worst = ratios.iter().copied().max_by(|a, b| a.ln().abs().total_cmp(&b.ln().abs()));
    report.exact(WORST, "x", Goal::None, worst.context("no placements")?);
    report.note(format!(
        "placements: predicted by `qmt-cli plan` at the host once each node has measured its speed as it does by itself, measured by \
         llama-server over {TOKENS} tokens, median of {} answers. Models beside {}: llama architecture, random weights as 32-bit floats.",
        answers(options.quick),
        options.model.file_name().unwrap_or_default().to_string_lossy()
    ));
    Ok(())
}

/// What a run without this part lacks.
pub(super) fn lacking() -> Lacking {
    vec![(PART.to_owned(), "%", PART_GOAL), (WORST.to_owned(), "x", Goal::None)]
}

fn answers(quick: bool) -> usize {
    if quick { ANSWERS_QUICK } else { ANSWERS }
}

/// Models of other sizes than the one that is given.
struct Made {
    small: PathBuf,
    large: PathBuf,
}

impl Made {
    fn write(folder: &Path, quick: bool) -> Result<Self> {
        let model = |name: &str, layers, embedding, feed_forward| {
            let model =
                TinyModel { name: name.into(), layers, embedding, feed_forward, ..TinyModel::default() };
            let folder = folder.join(name);
            std::fs::create_dir_all(&folder)?;
            let path = folder.join(format!("{name}.gguf"));
            model.write(&path).map(|()| path)
        };
        let large = if quick { PathBuf::new() } else { model("large", 16, 1024, 2816)? };
        Ok(Self { small: model("small", 12, 384, 1024)?, large })
    }
}

fn placements<'a>(options: &'a Options, made: &'a Made) -> Vec<Placement<'a>> {
    let of = |model: &'a Path, called, threads, ctx_size, workers| Placement {
        model,
        called,
        threads,
        ctx_size,
        workers,
    };
    let given = |threads, ctx_size, workers| of(&options.model, "the model", threads, ctx_size, workers);
    if options.quick {
        return vec![given(1, 512, 0), given(1, 512, 1)];
    }
    let large = |threads, ctx_size, workers| of(&made.large, "a model of 800 MB", threads, ctx_size, workers);
    let small = |threads, ctx_size, workers| of(&made.small, "a model of 80 MB", threads, ctx_size, workers);
    vec![
        given(1, 512, 0),
        given(2, 512, 0),
        given(1, 4096, 0),
        given(1, 512, 1),
        given(2, 512, 1),
        given(1, 4096, 1),
        given(1, 512, 2),
        large(1, 512, 0),
        large(2, 1024, 0),
        large(1, 512, 1),
        large(1, 1024, 2),
        small(1, 512, 0),
        small(2, 512, 0),
        small(1, 512, 1),
        small(1, 512, 2),
    ]
}

impl Placement<'_> {
    /// Tokens a second: as predicted, and as they are.
    fn run(&self, options: &Options, folder: &Path) -> Result<(f64, f64)> {
        let Self { model, threads, ctx_size, workers, .. } = *self;
        let setting = Setting { options, model, threads, ctx_size, calibrate: true };
        let (name, models) = (setting.name()?, setting.models()?);
        let devices = workers + 1;
        // A split takes the fewest workers that suffice unless a share is named for each.
        let shares = vec!["1"; devices].join(",");
        let shares = if workers > 0 { format!("tensor_split = \"{shares}\"\n") } else { String::new() };
        let host = setting.node(folder, "host", models, &shares)?;
        let workers = (0..workers).map(|number| setting.node(folder, &format!("worker{number}"), models, ""));
        let workers = workers.collect::<Result<Vec<Node>>>()?;
        // Each runs the model once by itself, which is when a node measures its speed.
        for node in workers.iter().chain([&host]) {
            setting.load(node, 1)?;
            if !workers.is_empty() {
                node.cli(&["drop", &name])?;
            }
        }
        let plan = if workers.is_empty() {
            host.cli(&["plan", &name])?
        } else {
            setting.meet(&host, &workers, devices)?
        };
        let predicted = predicted(&plan).context("the plan predicts nothing")?;
        if !workers.is_empty() {
            setting.load(&host, devices)?;
        }
        let ask = || tokens_per_second(&host.gateway, &name, TOKENS);
        ask()?;
        let measured = (0..answers(options.quick)).map(|_| ask()).collect::<Result<Vec<f64>>>()?;
        Ok((predicted, median(&measured)))
    }
}

fn predicted(plan: &Value) -> Option<f64> {
    plan["alternatives"][0]["prediction"]["tokens_per_second"].as_f64()
}
