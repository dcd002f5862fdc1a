//! `transport`: how fast links are, how soon they are there, and how they take it when the network changes.

mod flow;
mod found;
pub(crate) mod laboratory;
mod loopback;
mod nat;
mod node;
mod stall;
mod ways;
mod wired;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use self::found::How;
use self::laboratory::guarded;
use self::nat::Matrix;
use crate::machine;
use crate::report::{Goal, Lacking, Report, lack};

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
    /// Throughput beside the bare libraries and raw TCP.
    Throughput,
    /// Round trips beside the bare libraries.
    RoundTrips,
    /// Start to link on a LAN.
    Discovery,
    /// Direct paths behind NATs.
    Nats,
    /// Stalls when the network changes.
    Changes,
    /// Throughput over a wire with delay and loss.
    Wire,
}

impl Part {
    /// What cannot be measured is left out, and the report says so.
    async fn measure(self, report: &mut Report, effort: &Effort, bin_dir: &Path) {
        match self {
            Self::Throughput => {
                if let Err(error) = guarded(loopback::throughput(report, effort)).await {
                    lack(report, self.figures(effort), &error);
                }
            }
            Self::RoundTrips => {
                if let Err(error) = guarded(loopback::round_trips(report, effort)).await {
                    lack(report, self.figures(effort), &error);
                }
            }
            Self::Discovery => laboratory::discovery(report, effort, bin_dir).await,
            Self::Nats => laboratory::nats(report, effort, bin_dir).await,
            Self::Changes => laboratory::changes(report, effort, bin_dir).await,
            Self::Wire => laboratory::wire(report, effort).await,
        }
    }

    /// What a run without it lacks.
    fn figures(self, effort: &Effort) -> Lacking {
        match self {
            Self::Throughput => loopback::lacking_throughput(),
            Self::RoundTrips => vec![("round trips on loopback".to_owned(), "ms", Goal::None)],
            Self::Discovery => laboratory::HOWS.into_iter().flat_map(How::lacking).collect(),
            Self::Nats => Matrix::lacking(),
            Self::Changes => {
                let changes = laboratory::changes_of(effort);
                let all = laboratory::CARRIED.into_iter();
                all.flat_map(|carried| stall::lacking(carried, changes)).collect()
            }
            Self::Wire => {
                laboratory::losses_of(effort).iter().flat_map(|loss| wired::lacking(*loss)).collect()
            }
        }
    }
}

/// How much is measured.
struct Effort {
    quick: bool,
    rate_rounds: usize,
    rate_time: Duration,
    latency_rounds: usize,
    /// Exchanges in a round: few, so that what else the machine does falls on all alike.
    requests: usize,
    /// Of a second node on a LAN.
    starts: usize,
    /// Of a second node behind a NAT, for each pair of NATs.
    punches: usize,
    /// Of each kind, under two nodes.
    changes: usize,
    wire_time: Duration,
}

impl Effort {
    fn new(quick: bool) -> Self {
        if quick {
            Self {
                quick,
                rate_rounds: 2,
                rate_time: Duration::from_millis(100),
                latency_rounds: 4,
                requests: 50,
                starts: 2,
                punches: 1,
                changes: 1,
                wire_time: Duration::from_secs(1),
            }
        } else {
            Self {
                quick,
                rate_rounds: 20,
                rate_time: Duration::from_millis(400),
                latency_rounds: 30,
                requests: 200,
                starts: 20,
                punches: 5,
                changes: 3,
                wire_time: Duration::from_secs(5),
            }
        }
    }
}

/// Runs the benchmark; says whether all goals are met.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let effort = Effort::new(options.quick);
    let facts = machine::facts(None)?;
    let mut report = Report::new("transport");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        for part in Part::value_variants() {
            if options.parts.is_empty() || options.parts.contains(part) {
                part.measure(&mut report, &effort, &options.bin_dir).await;
            } else {
                lack(&mut report, part.figures(&effort), &anyhow::anyhow!("left out by --part"));
            }
        }
    });
    report.note(format!(
        "throughput: {} rounds; in each, every way gets a new connection, is warmed up, and is written to for {} s by one stream \
         and by eight, in writes of 64 KiB, both ends in this process. A ratio is that of the medians; its interval resamples \
         rounds as pairs.",
        effort.rate_rounds,
        effort.rate_time.as_secs_f64()
    ));
    report.note(
        "bare libraries stand with every parameter at its default: libp2p's TCP with noise and yamux, noq's QUIC (which our LAN driver \
         uses too, with the same TLS) and iroh's; no hello, no stream header, no limits, and no swarm around libp2p's muxer.",
    );
    report.note(format!(
        "round trips: {} rounds of {} exchanges each way, one after the other; the median of a round, and what is added to the bare \
         library's in the same round.",
        effort.latency_rounds, effort.requests
    ));
    report.note(
        "real nodes: processes in network namespaces, with routers of nftables between them. Start to link: from the start of the second \
         node's process to the first node's link to it. Stall: both nodes ping each other every 50 ms; the longest time without an answer \
         in either direction, from the moment at which the change is over.",
    );
    report.note("figures over the wire are one try each, for information; the wire is threads of this process on the same cores.");
    for fact in facts {
        report.note(fact);
    }
    if options.quick {
        report
            .note("this was a `--quick` run: enough to see that everything runs, too few rounds to rely on.");
    }
    let command = if options.quick { "scripts/bench transport --quick" } else { "scripts/bench transport" };
    report.finish(options.report.as_deref(), command)
}
