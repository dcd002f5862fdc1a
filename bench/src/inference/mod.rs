//! `inference`: models split over nodes.

#[cfg(target_os = "linux")]
mod chaos;
#[cfg(target_os = "linux")]
mod delay;
mod nodes;
mod placement;
mod split;
mod tunnel;
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
    /// The same speeds over a wire with delay.
    #[cfg(target_os = "linux")]
    Delay,
    /// Speeds as they were predicted, beside speeds as they are.
    Placement,
    /// Throughput and round trips of tunnels beside those of their links and of TCP.
    Tunnel,
    /// The next token after a worker was killed.
    #[cfg(target_os = "linux")]
    WorkerLoss,
    /// Streams of answers while nodes, servers and gateways are killed.
    #[cfg(target_os = "linux")]
    Chaos,
}

impl Part {
    /// Whether a quick look takes it: the others wait for models to load and nodes to die, many times.
    fn is_quick(self) -> bool {
        matches!(self, Self::Split | Self::Tunnel)
    }

    fn measure(self, report: &mut Report, options: &Options) -> Result<()> {
        match self {
            Self::Split => split::measure(report, options),
            #[cfg(target_os = "linux")]
            Self::Delay => delay::measure(report, options),
            Self::Placement => placement::measure(report, options),
            Self::Tunnel => tunnel::measure(report, options),
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
            Self::Delay => delay::lacking(),
            Self::Placement => placement::lacking(),
            Self::Tunnel => tunnel::lacking(),
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
        let measured = match options.parts.as_slice() {
            [] if options.quick && !part.is_quick() => {
                Err(anyhow!("left out by --quick; --part measures it"))
            }
            [] => part.measure(&mut report, options),
            parts if parts.contains(part) => part.measure(&mut report, options),
            _ => Err(anyhow!("left out by --part")),
        };
        if let Err(error) = measured {
            lack(&mut report, part.figures(), &error);
        }
    }
    for fact in facts {
        report.note(fact);
    }
    report.finish(options.report.as_deref(), "scripts/bench inference")
}
