//! `inference`: models split over nodes.

#[cfg(target_os = "linux")]
mod chaos;
mod split;
#[cfg(target_os = "linux")]
mod worker_loss;

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::ValueEnum;

use crate::machine;
use crate::report::{Lacking, Report, lack};

pub(crate) struct Options {
    pub(crate) quick: bool,
    /// None: all.
    pub(crate) parts: Vec<Part>,
    /// Folder with qmt-node and qmt-cli.
    pub(crate) bin_dir: PathBuf,
    /// The folder of llama-server and rpc-server.
    pub(crate) llama: PathBuf,
    /// The model's file.
    pub(crate) model: PathBuf,
    pub(crate) report: Option<PathBuf>,
}

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// A split through our tunnels beside plain `--rpc`: speed, bytes moved, load time.
    Split,
    /// Streams of answers while nodes, servers and gateways are killed.
    #[cfg(target_os = "linux")]
    Chaos,
    /// The next token after a worker was killed.
    #[cfg(target_os = "linux")]
    WorkerLoss,
}

impl Part {
    fn measure(self, report: &mut Report, options: &Options) -> Result<()> {
        match self {
            Self::Split => split::measure(report, options),
            #[cfg(target_os = "linux")]
            Self::Chaos => chaos::measure(report, options),
            #[cfg(target_os = "linux")]
            Self::WorkerLoss => worker_loss::measure(report, options),
        }
    }

    /// What a run without it lacks.
    fn figures(self) -> Lacking {
        match self {
            Self::Split => split::lacking(),
            #[cfg(target_os = "linux")]
            Self::Chaos => chaos::lacking(),
            #[cfg(target_os = "linux")]
            Self::WorkerLoss => worker_loss::lacking(),
        }
    }
}

/// Runs the benchmark; says whether all goals are met.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let facts = machine::facts(None)?;
    let mut report = Report::new("inference");
    for part in Part::value_variants() {
        let measured = if options.parts.is_empty() || options.parts.contains(part) {
            part.measure(&mut report, options)
        } else {
            Err(anyhow!("left out by --part"))
        };
        if let Err(error) = measured {
            lack(&mut report, part.figures(), &error);
        }
    }
    report.note("not measured by this benchmark yet: delays of 5 and 20 ms on both arms, predictions of placement, throughput and added round trip of tunnels (`cargo run --release -p mesh-tunnel --example measure`).");
    for fact in facts {
        report.note(fact);
    }
    report.finish(options.report.as_deref(), "scripts/bench inference")
}
