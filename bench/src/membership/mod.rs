//! `membership`: how soon all know who is there, with what, and what that costs.

mod processes;
mod simulated;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::machine;
use crate::report::{Lacking, Report, lack};

pub(crate) struct Options {
    pub(crate) quick: bool,
    /// None: all.
    pub(crate) parts: Vec<Part>,
    /// Ten thousand simulated node-hours at 20 % loss, too.
    pub(crate) long: bool,
    pub(crate) bin_dir: PathBuf,
    /// The program that runs foca in the simulated network.
    pub(crate) foca: Option<PathBuf>,
    pub(crate) report: Option<PathBuf>,
}

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Ten thousand simulated nodes: memory, idle traffic, spread of a record.
    Large,
    /// A hundred and a thousand: idle traffic, spread of a record.
    Small,
    /// Silent deaths among simulated nodes.
    Deaths,
    /// Revocations among simulated nodes.
    Revocations,
    /// A join among ghosts, simulated.
    Joins,
    /// Living nodes taken for dead, simulated.
    Wrong,
    /// foca in the simulated network.
    Foca,
    /// Real nodes on this machine.
    Processes,
}

impl Part {
    fn simulated(self) -> Option<simulated::Part> {
        match self {
            Self::Large => Some(simulated::Part::Large),
            Self::Small => Some(simulated::Part::Small),
            Self::Deaths => Some(simulated::Part::Deaths),
            Self::Revocations => Some(simulated::Part::Revocations),
            Self::Joins => Some(simulated::Part::Joins),
            Self::Wrong => Some(simulated::Part::Wrong),
            Self::Foca => Some(simulated::Part::Baseline),
            Self::Processes => None,
        }
    }

    async fn measure(self, report: &mut Report, effort: &Effort, options: &Options) {
        match self.simulated() {
            Some(part) => part.measure(report, options),
            None => processes::measure(report, effort, &options.bin_dir).await,
        }
    }

    /// What a run without it lacks.
    fn figures(self) -> Lacking {
        self.simulated().map_or_else(processes::lacking, simulated::Part::figures)
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
                part.measure(&mut report, &effort, options).await;
            } else {
                lack(&mut report, part.figures(), &anyhow::anyhow!("left out by --part"));
            }
        }
    });
    simulated::notes(&mut report);
    for fact in facts {
        report.note(fact);
    }
    if options.quick {
        report
            .note("this was a `--quick` run: enough to see that everything runs, too few rounds to rely on.");
    }
    let command = match (options.quick, options.long) {
        (true, _) => "scripts/bench membership --quick",
        (false, true) => "scripts/bench membership --long",
        (false, false) => "scripts/bench membership",
    };
    report.finish(options.report.as_deref(), command)
}
