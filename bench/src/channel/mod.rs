//! `agent-channel`: delegations over HTTPS with certificates at both ends, beside a bare echo of axum over rustls; how soon a
//! revocation is honoured; the registry's file with many writers.

mod asking;
mod meshwide;
pub(crate) mod registry;
mod revoking;
mod rig;
mod serving;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;

use self::rig::Rig;
use self::serving::{ECHO, TYPED};
use crate::machine;
use crate::report::{Goal, Lacking, Report, lack};
use crate::stats::{estimate, percentile, ratio, sort};

pub(crate) struct Options {
    pub(crate) quick: bool,
    /// None: all.
    pub(crate) parts: Vec<Part>,
    /// With qmt-node and qmt-cli, for the part with real nodes.
    pub(crate) bin_dir: Option<PathBuf>,
    pub(crate) report: Option<PathBuf>,
}

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Delegations over kept connections, beside the bare echo.
    Delegations,
    /// Handshakes, one after the other.
    Handshakes,
    /// A revocation at one server.
    Revocation,
    /// A revocation over a mesh of real nodes.
    Mesh,
    /// The registry's file with fifty writers.
    Registry,
}

impl Part {
    fn measure(self, report: &mut Report, effort: &Effort, options: &Options) -> Result<()> {
        match self {
            Self::Delegations => delegations(report, &Rig::new()?, effort),
            Self::Handshakes => handshakes(report, &Rig::new()?, effort),
            Self::Revocation => revoking::measure(report, &Rig::new()?, effort.revocations),
            Self::Mesh => {
                let bin_dir = options.bin_dir.as_ref();
                let bin_dir = bin_dir.context("--bin-dir says where qmt-node and qmt-cli are")?;
                meshwide::measure(report, bin_dir, effort.mesh_rounds)
            }
            Self::Registry => registry::measure(report, effort.registry_rounds, effort.time),
        }
    }

    /// What a run without it lacks.
    fn figures(self) -> Lacking {
        let named = |figures: &[(&str, &'static str, Goal)]| {
            figures.iter().map(|(what, unit, goal)| ((*what).to_owned(), *unit, *goal)).collect()
        };
        match self {
            Self::Delegations => named(&[
                (BESIDE, "x", BESIDE_GOAL),
                (OURS, "/s", Goal::None),
                (BARE, "/s", Goal::None),
                (BARE_TYPED, "/s", Goal::None),
                (OUR_TIME, "ms", Goal::None),
                (BARE_TIME, "ms", Goal::None),
            ]),
            Self::Handshakes => named(&[(HANDSHAKES, "/s", Goal::None), (HANDSHAKE_TIME, "ms", Goal::None)]),
            Self::Revocation => revoking::lacking(),
            Self::Mesh => meshwide::lacking(),
            Self::Registry => registry::lacking(),
        }
    }
}

/// How much is measured.
struct Effort {
    rounds: usize,
    time: Duration,
    handshakes: usize,
    revocations: usize,
    mesh_rounds: usize,
    registry_rounds: usize,
}

impl Effort {
    fn new(quick: bool) -> Self {
        if quick {
            Self {
                rounds: 4,
                time: Duration::from_millis(300),
                handshakes: 50,
                revocations: 5,
                mesh_rounds: 3,
                registry_rounds: 2,
            }
        } else {
            Self {
                rounds: 20,
                time: Duration::from_secs(1),
                handshakes: 500,
                revocations: 40,
                mesh_rounds: 20,
                registry_rounds: 10,
            }
        }
    }
}

/// Kept connections, each asking as soon as it is answered.
const CONNECTIONS: usize = 8;

const BESIDE: &str = "delegations a second, beside the bare echo";
const BESIDE_GOAL: Goal = Goal::AtLeast(0.7);
const OURS: &str = "delegations a second";
const BARE: &str = "the bare echo";
const BARE_TYPED: &str = "the bare echo that reads and writes the JSON of delegations";
const OUR_TIME: &str = "99th percentile of a delegation";
const BARE_TIME: &str = "99th percentile of the bare echo";
const HANDSHAKES: &str = "handshakes a second, one after the other, each with a ping";
const HANDSHAKE_TIME: &str = "99th percentile of a handshake with a ping";

/// Runs the benchmark; says whether all goals are met.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let effort = Effort::new(options.quick);
    let facts = machine::facts(None)?;
    let mut report = Report::new("agent-channel");
    for part in Part::value_variants() {
        let measured = if options.parts.is_empty() || options.parts.contains(part) {
            part.measure(&mut report, &effort, options)
        } else {
            Err(anyhow!("left out by --part"))
        };
        if let Err(error) = measured {
            lack(&mut report, part.figures(), &error);
        }
    }
    report.note("servers and clients share the machine's cores and its loopback. Ratios carry over to other machines, milliseconds do not.");
    for fact in facts {
        report.note(fact);
    }
    let command =
        if options.quick { "scripts/bench agent-channel --quick" } else { "scripts/bench agent-channel" };
    report.finish(options.report.as_deref(), command)
}

fn delegations(report: &mut Report, rig: &Rig, effort: &Effort) -> Result<()> {
    let ways = [(rig.channel(), ECHO), (rig.echo(), ECHO), (rig.echo(), TYPED)];
    let (mut rates, mut times) = (ways.map(|_| Vec::new()), ways.map(|_| Vec::new()));
    let mut connections = Vec::new();
    for (server, _) in ways {
        connections.push(rig.connections(server, CONNECTIONS)?);
    }
    for round in 0..effort.rounds {
        for turn in 0..ways.len() {
            let way = (round + turn) % ways.len();
            let (rate, took) = rig.load(&mut connections[way], ways[way].1, effort.time)?;
            rates[way].push(rate);
            times[way].push(percentile(&took, 0.99));
        }
    }
    report.row(BESIDE, "x", BESIDE_GOAL, ratio(&rates[0], &rates[1]));
    for (what, rates) in [OURS, BARE, BARE_TYPED].into_iter().zip(&rates) {
        report.row(what, "/s", Goal::None, estimate(rates));
    }
    for (what, times) in [OUR_TIME, BARE_TIME].into_iter().zip(&times) {
        report.row(what, "ms", Goal::None, estimate(times));
    }
    report.note(format!(
        "delegations: {} rounds of {} s each way, by turns; {CONNECTIONS} kept connections, each asking as soon as it is answered. The agent answers at once with \
         what it was asked. The echo is axum over tokio-rustls with the same certificates, the same clients and the same requests, and returns the body as it came, without \
         looking into it; its second row is one that reads and writes the same JSON as a delegation.",
        effort.rounds,
        effort.time.as_secs_f64()
    ));
    Ok(())
}

fn handshakes(report: &mut Report, rig: &Rig, effort: &Effort) -> Result<()> {
    let mut times = rig.handshakes(effort.handshakes)?;
    let rates: Vec<f64> =
        times.chunks(25).map(|some| some.len() as f64 * 1e3 / some.iter().sum::<f64>()).collect();
    report.row(HANDSHAKES, "/s", Goal::None, estimate(&rates));
    sort(&mut times);
    report.exact(HANDSHAKE_TIME, "ms", Goal::None, percentile(&times, 0.99));
    report.note(format!(
        "handshakes: {} one after the other, each with a ping; both ends verify.",
        effort.handshakes
    ));
    Ok(())
}
