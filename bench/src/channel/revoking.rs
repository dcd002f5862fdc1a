//! From a revocation to the end of what its certificate had open.

use anyhow::Result;

use super::rig::Rig;
use crate::report::{Goal, Lacking, Report};
use crate::stats::estimate;

/// A node honours a revocation within two seconds, of which it may look at its files for one.
const CLOSED_MS_MAX: f64 = 1_000.0;

/// Connections that are open when a certificate is revoked.
const OPEN: usize = 100;

pub(crate) fn lacking() -> Lacking {
    vec![(what(), "ms", Goal::AtMost(CLOSED_MS_MAX))]
}

fn what() -> String {
    format!("revocation to the last of {OPEN} open connections closed")
}

pub(crate) fn measure(report: &mut Report, rig: &Rig, rounds: usize) -> Result<()> {
    let times: Result<Vec<f64>> = (100..).take(rounds).map(|serial| rig.revocation(serial, OPEN)).collect();
    report.row(what(), "ms", Goal::AtMost(CLOSED_MS_MAX), estimate(&times?));
    report.note(format!(
        "revocation: {rounds} rounds, from the new list in the server's hand to the last of {OPEN} open connections being closed, as its client sees it; a node looks at its files each second."
    ));
    Ok(())
}
