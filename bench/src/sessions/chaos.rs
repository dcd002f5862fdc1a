//! Sessions over nodes that are killed and cut off at random moments: what is lost, doubled or out of order.

use std::path::Path;

use anyhow::Result;
use qmt_tests::sessions::{Runs, Tally};

use crate::report::{Goal, Lacking, Report};

const RUNS: u64 = 1_000;
const RUNS_QUICK: u64 = 10;
/// Most of a run is waiting for nodes that find each other again.
const PAIRS: usize = 8;
/// What is done to whom; the moments differ from run to run, as processes do.
const SEED: u64 = 6;

/// How much there was of something.
type Count = fn(&Tally) -> usize;

/// What must not be.
const NEVER: [(&str, Count); 5] = [
    ("acknowledged or read events lost or changed", |tally| tally.lost),
    ("prompts, pieces of answers and runs of tools doubled", |tally| tally.doubled),
    ("events out of order", |tally| tally.reordered),
    ("turns without exactly one terminal event that says that they are done", |tally| tally.wrong_ends),
    ("runs that did not come to their end", |tally| tally.unfinished),
];

fn in_words(what: &str, runs: u64) -> String {
    format!("{what}, {runs} runs")
}

pub(super) fn lacking() -> Lacking {
    NEVER.iter().map(|(what, _)| (in_words(what, RUNS), "", Goal::AtMost(0.0))).collect()
}

pub(super) async fn measure(report: &mut Report, node: &Path, runs: Option<u64>, quick: bool) -> Result<()> {
    let count = runs.unwrap_or(if quick { RUNS_QUICK } else { RUNS });
    let tally = Runs { node, seed: SEED, count, pairs: PAIRS }.perform().await?;
    println!("{tally}");
    for (what, wrong) in NEVER {
        report.exact(in_words(what, count), "", Goal::AtMost(0.0), wrong(&tally) as f64);
    }
    let blows: Vec<String> =
        tally.blows.iter().map(|(kind, count)| format!("{} {count}", kind.name())).collect();
    report.note(format!(
        "chaos: pairs of real nodes, one with an agent (a model that is known beforehand, and a shell that writes a line), the other prompts \
         and reads it; {}. {} prompts, {} events, {} model calls made anew, {} tools of which nobody knows whether they ran to their end.",
        blows.join(", "), tally.prompts, tally.events, tally.called_again, tally.unknown_tools
    ));
    for fault in &tally.faults {
        report.note(format!("wrong: {fault}"));
    }
    Ok(())
}
