//! From a revocation to the end of what its certificate had open.

use anyhow::Result;

use super::rig::Rig;
use crate::report::{Goal, Report};
use crate::stats::estimate;

/// A node honours a revocation within two seconds, of which it may look at its files for one.
const CLOSED_MS_MAX: f64 = 1_000.0;

pub(crate) fn measure(report: &mut Report, rig: &Rig, rounds: usize, open: usize) -> Result<()> {
    let times: Result<Vec<f64>> = (100..).take(rounds).map(|serial| rig.revocation(serial, open)).collect();
    let what = format!("revocation to the last of {open} open connections closed");
    report.row(what, "ms", Goal::AtMost(CLOSED_MS_MAX), estimate(&times?));
    Ok(())
}
