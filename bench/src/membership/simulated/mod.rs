//! What happens in simulated meshes: the protocol's cores of mesh-gossip under a virtual clock, with signatures that cost
//! nothing, on a network that loses frames one by one.

mod baseline;
mod deaths;
mod joins;
mod long;
mod mesh;
mod news;
mod quiet;

use std::time::Duration;

use anyhow::{Context, Result};

use super::Options;
use crate::report::{Goal, Lacking, Report, lack};
use long::Long;

/// What can be measured alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Large,
    Small,
    Deaths,
    Revocations,
    Joins,
    Wrong,
    Baseline,
}

const LARGE: usize = 10_000;
const SMALL: [usize; 2] = [100, 1000];
/// Bytes for each pair of a node and one that it knows.
const MEMORY: (&str, Goal) =
    ("memory for a known peer, 10000 cores that know each other", Goal::AtMost(32.0));

impl Part {
    /// What cannot be measured is left out, and the report says so.
    pub(super) fn measure(self, report: &mut Report, options: &Options) {
        let (seeds, deaths) = if options.quick { (2, 3) } else { (4, 10) };
        let done = match self {
            Self::Large => large(report, options.quick),
            Self::Small => small(report, options.quick),
            Self::Deaths => {
                for case in deaths::CASES {
                    match case.measure(if case.nodes > 100 { 2 } else { seeds * 2 }, deaths) {
                        Ok(noticed) => case.tell(&noticed, report),
                        Err(error) => lack(report, case.lacking(), &error),
                    }
                }
                Ok(())
            }
            Self::Revocations => news::revocations(report, 2, deaths),
            Self::Joins => joins::measure(report, if options.quick { 1 } else { 2 }),
            Self::Wrong => Long::measure(report, options),
            Self::Baseline => match &options.foca {
                Some(program) => {
                    let (deaths, seconds) = if options.quick { (5, 60) } else { (20, 600) };
                    baseline::measure(report, program, deaths, seconds)
                }
                None => Err(anyhow::anyhow!("the program was not built; scripts/bench says why")),
            },
        };
        if let Err(error) = done.with_context(|| format!("{self:?}")) {
            lack(report, self.figures(), &error);
        }
    }

    /// What a run without it lacks.
    pub(super) fn figures(self) -> Lacking {
        let idle = |nodes| quiet::idle_rows(nodes).into_iter().map(|(what, goal)| (what, "kB/s", goal));
        let spreads = |large: bool| {
            let of_size = news::SPREADS.into_iter().filter(move |spread| (spread.nodes == LARGE) == large);
            of_size.flat_map(news::Spread::lacking)
        };
        match self {
            Self::Large => {
                let memory = (MEMORY.0.to_owned(), "bytes", MEMORY.1);
                [memory].into_iter().chain(idle(LARGE)).chain(spreads(true)).collect()
            }
            Self::Small => SMALL.into_iter().flat_map(idle).chain(spreads(false)).collect(),
            Self::Deaths => deaths::CASES.into_iter().flat_map(deaths::Case::lacking).collect(),
            Self::Revocations => news::revoked_lacking(),
            Self::Joins => joins::lacking(),
            Self::Wrong => Long::lacking(),
            Self::Baseline => baseline::lacking(),
        }
    }
}

/// Ten thousand cores in this process. Comes first: what other meshes leave behind would hide what these take.
fn large(report: &mut Report, quick: bool) -> Result<()> {
    let before = mesh::memory()?;
    let mut sim = mesh::settled(1, LARGE, news::even())?;
    let pairs = (LARGE * LARGE) as f64;
    report.exact(MEMORY.0, "bytes", MEMORY.1, (mesh::memory()? - before) as f64 / pairs);
    let span = Duration::from_secs(if quick { 5 } else { 30 });
    sim.run(Duration::from_secs(if quick { 5 } else { 20 }));
    quiet::tell_idle(LARGE, quiet::idle(&mut sim, span), report);
    for spread in news::SPREADS.into_iter().filter(|spread| spread.nodes == LARGE) {
        spread.report(report, &mut sim, if quick { 1 } else { 5 });
    }
    Ok(())
}

fn small(report: &mut Report, quick: bool) -> Result<()> {
    for nodes in SMALL {
        let mut sim = mesh::settled(1, nodes, news::even())?;
        sim.run(Duration::from_secs(20));
        let idle = quiet::idle(&mut sim, Duration::from_secs(if quick { 20 } else { 120 }));
        quiet::tell_idle(nodes, idle, report);
        for spread in news::SPREADS.into_iter().filter(|spread| spread.nodes == nodes) {
            spread.report(report, &mut sim, if quick { 3 } else { 30 });
        }
    }
    Ok(())
}

/// What a reader must know of the figures.
pub(super) fn notes(report: &mut Report) {
    report.note(
        "simulated nodes are the protocol's cores under a virtual clock; a signature is a hash of 64 bits there. Frames take 1 to 20 ms, \
         evenly spread, and overtake each other; at 20 % loss every fifth frame is lost, each by itself, pings and answers alike: harsher \
         than the streams that carry them between real nodes, which send again. Loss breaks no link."
    );
    report.note(
        "ten thousand cores begin with one table of records between them; the memory of a known peer is what each needs beside it. A node \
         alone holds every record itself.",
    );
    report.note(
        "silent death: a node stops, and nobody is told; its links break after a second. Percentiles are over all pairs of a death and a \
         living observer. memberlist is said to take about 10 s at 100 nodes (published figure, not measured here).",
    );
    report.note(format!(
        "a round is the delay of a push, 20 ms, and the way of a frame, 10 ms here: with nothing lost a value that crosses k links takes \
         k rounds. Idle traffic counts frames and 4 bytes of length for each; with headers, {} bytes more for each frame.",
        quiet::LINK_BYTES
    ));
}
