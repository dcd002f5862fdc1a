//! A worker killed in the middle of an answer: how soon the next token comes.

use anyhow::Result;
use qmt_tests::answers::{WorkerLoss, WorkerLosses};

use super::Options;
use crate::report::{Goal, Lacking, Report};
use crate::stats::{estimate, estimate_at};

const ROUNDS: usize = 30;
const ROUNDS_QUICK: usize = 2;

/// A part of a round, in seconds.
type Figure = fn(&WorkerLoss) -> f64;

/// What is told of each round.
const FIGURES: [(&str, Figure); 4] = [
    ("worker killed -> next token", |loss| loss.next_token.as_secs_f64()),
    ("of that, llama-server's start", |loss| loss.relaunch.as_secs_f64()),
    ("of that, prefill of the prompt and the text so far", |loss| loss.prefill.as_secs_f64()),
    ("worker killed -> next token, beyond relaunch and prefill", |loss| loss.beyond().as_secs_f64()),
];

pub(super) fn measure(report: &mut Report, options: &Options) -> Result<()> {
    let rounds = if options.quick { ROUNDS_QUICK } else { ROUNDS };
    let node = options.bin_dir.join("qmt-node");
    let losses = WorkerLosses { node: &node, llama: &options.llama, model: &options.model, rounds };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let losses = runtime.block_on(losses.measure())?;
    for (what, figure) in FIGURES {
        let seconds: Vec<f64> = losses.iter().map(figure).collect();
        report.row(format!("{what}, p50"), "s", Goal::None, estimate(&seconds));
        report.row(format!("{what}, p99"), "s", Goal::None, estimate_at(&seconds, 0.99));
    }
    report.note(format!(
        "worker killed: {rounds} times the node of the one worker of a split over two nodes (`kill -9`) under a stream at the host's gateway; the host \
         then runs the model alone. Relaunch is what its log says of llama-server's start; prefill is asked for once more without a cache."
    ));
    Ok(())
}

/// What a run without this part lacks.
pub(super) fn lacking() -> Lacking {
    let both =
        |(what, _): &(&str, _)| ["p50", "p99"].map(|part| (format!("{what}, {part}"), "s", Goal::None));
    FIGURES.iter().flat_map(both).collect()
}
