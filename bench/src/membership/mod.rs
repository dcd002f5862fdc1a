//! `membership`: how soon all know who is there, with what, and what that costs.

mod processes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::machine;
use crate::report::Report;
use crate::transport::Lacking;
use crate::transport::laboratory::lack;

pub(crate) struct Options {
    pub(crate) quick: bool,
    /// None: all.
    pub(crate) parts: Vec<Part>,
    pub(crate) bin_dir: PathBuf,
    pub(crate) report: Option<PathBuf>,
}

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Real nodes on this machine.
    Processes,
}

impl Part {
    async fn measure(self, report: &mut Report, effort: &Effort, bin_dir: &Path) {
        match self {
            Self::Processes => processes::measure(report, effort, bin_dir).await,
        }
    }

    /// What a run without it lacks.
    fn figures(self) -> Lacking {
        match self {
            Self::Processes => processes::lacking(),
        }
    }
}

/// How much is measured.
struct Effort {
    kills: usize,
    revocations: usize,
    idle_time: Duration,
}

impl Effort {
    fn new(quick: bool) -> Self {
        if quick {
            Self { kills: 10, revocations: 5, idle_time: Duration::from_secs(10) }
        } else {
            Self { kills: 120, revocations: 60, idle_time: Duration::from_secs(60) }
        }
    }
}

/// Runs the benchmark; says whether all goals are met.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let effort = Effort::new(options.quick);
    let facts = machine::facts(None)?;
    let mut report = Report::new("membership");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        for part in Part::value_variants() {
            if options.parts.is_empty() || options.parts.contains(part) {
                part.measure(&mut report, &effort, &options.bin_dir).await;
            } else {
                lack(&mut report, part.figures(), &anyhow::anyhow!("left out by --part"));
            }
        }
    });
    for fact in facts {
        report.note(fact);
    }
    if options.quick {
        report
            .note("this was a `--quick` run: enough to see that everything runs, too few rounds to rely on.");
    }
    let command = if options.quick { "scripts/bench membership --quick" } else { "scripts/bench membership" };
    report.finish(options.report.as_deref(), command)
}
