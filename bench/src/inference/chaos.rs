//! Streams of answers over nodes that are killed and halted at random moments: what callers get, and how long they wait.

use anyhow::Result;
use qmt_tests::answers::{Row, Run, Tally};

use super::Options;
use crate::report::{Goal, Lacking, Report};

const KILLS: usize = 1_000;
const KILLS_QUICK: usize = 20;
/// What is done to whom; the moments differ from run to run, as processes do.
const SEED: u64 = 5;

/// How much there was of something.
type Count = fn(&Tally) -> usize;

/// What must not be.
const NEVER: [(&str, Count); 6] = [
    ("characters lost", |tally| tally.lost),
    ("characters doubled", |tally| tally.doubled),
    ("characters reordered", |tally| tally.reordered),
    ("answers without exactly one terminal event", |tally| tally.wrong_ends),
    ("answers ended in a declared error", |tally| tally.errors),
    ("answers whose tokens were counted wrongly", |tally| tally.wrong_counts),
];

/// Kills, and prints what came of it as a table.
pub(super) fn measure(report: &mut Report, options: &Options) -> Result<()> {
    let kills = if options.quick { KILLS_QUICK } else { KILLS };
    let (node, stand_in) = (options.bin_dir.join("qmt-node"), options.bin_dir.join("qmt-stand-in"));
    let run = Run { node: &node, stand_in: &stand_in, llama: Some(&options.llama), seed: SEED, kills };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let tally = runtime.block_on(run.perform())?;
    println!("{tally}");
    for (what, count) in NEVER {
        report.exact(in_words(what, kills), "", Goal::AtMost(0.0), count(&tally) as f64);
    }
    for (kind, row) in tally.rows() {
        tell(report, kind.name(), row);
    }
    report.note(format!(
        "kills: {kills} blows to processes of ten nodes on one machine, under {} answers that ended well; {} of them were given to \
         their end by another gateway than the one asked. Callers that cannot resume lost {} answers with their gateways, which is not counted as \
         lost. A pause is from the last text before an interruption to the next; halted processes are noticed by their silence.",
        tally.ended, tally.resumed, tally.gateway_gone
    ));
    for fault in &tally.faults {
        report.note(format!("wrong: {fault}"));
    }
    Ok(())
}

fn tell(report: &mut Report, name: &str, row: &Row) {
    let (number, under_way, hit) = (row.number, row.under_way, row.pauses.len());
    for (part, label) in [(0.5, "p50"), (0.99, "p99")] {
        if let Some(pause) = row.pause(part) {
            let what = format!(
                "{name}, {number} times under {under_way} answers: pause of {hit} interrupted ones, {label}"
            );
            report.exact(what, "s", Goal::None, pause.as_secs_f64());
        }
    }
}

fn in_words(what: &str, kills: usize) -> String {
    format!("{what}, {kills} kills")
}

/// What a run without this part lacks.
pub(super) fn lacking() -> Lacking {
    NEVER.iter().map(|(what, _)| (in_words(what, KILLS), "", Goal::AtMost(0.0))).collect()
}
