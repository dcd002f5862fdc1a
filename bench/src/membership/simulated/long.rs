//! Living nodes taken for dead: hours of simulated time, the longest of which a page keeps from an earlier run.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::super::Options;
use super::quiet::{Wrong, wrongly};
use crate::report::{Goal, Lacking, Report};

/// Nodes of each mesh.
const NODES: usize = 100;
const NODE_HOURS: f64 = 10_000.0;
const ROW: (&str, Goal) = ("living nodes convicted at 20 % loss, in 10000 node-hours", Goal::AtMost(0.0));
/// Percent, and node-hours of a run that is not a quick one.
const HARSHER: [(u32, f64); 3] = [(30, 100.0), (40, 50.0), (50, 25.0)];
/// How the note with a long run begins.
const NOTE: &str = "long run of ";

pub(super) struct Long;

fn short_row(node_hours: f64) -> String {
    format!("living nodes convicted at 20 % loss, in {node_hours:.0} node-hours of this run")
}

fn harsher_row(loss: u32) -> String {
    format!("living nodes convicted at {loss} % loss, extrapolated to 10000 node-hours")
}

impl Long {
    pub(super) fn lacking() -> Lacking {
        let mut all = vec![(ROW.0.to_owned(), "nodes", ROW.1)];
        all.extend(HARSHER.map(|(loss, _)| (harsher_row(loss), "nodes", Goal::None)));
        all
    }

    pub(super) fn measure(report: &mut Report, options: &Options) -> Result<()> {
        if options.long {
            let begun = std::time::Instant::now();
            let wrong = measured(20, NODE_HOURS)?;
            report.exact(ROW.0, "nodes", ROW.1, wrong.convicted as f64);
            let minutes = begun.elapsed().as_secs_f64() / 60.0;
            report.note(format!("{NOTE}{}: {}, in {minutes:.0} minutes.", today(), told(wrong)));
        } else {
            let hours = if options.quick { 10.0 } else { 300.0 };
            let wrong = measured(20, hours)?;
            report.exact(short_row(hours), "nodes", Goal::AtMost(0.0), wrong.convicted as f64);
            report.note(format!("20 % loss in this run: {}.", told(wrong)));
            match options.report.as_deref().and_then(kept) {
                Some((convicted, note)) => {
                    report.exact(format!("{} (long run, see below)", ROW.0), "nodes", ROW.1, convicted);
                    report.note(note);
                }
                None => {
                    report.not_measured(ROW.0, "nodes", ROW.1);
                    report.note(format!("not measured: \"{}\": it takes `--long`.", ROW.0));
                }
            }
        }
        let mut counted = String::new();
        for (loss, hours) in HARSHER {
            let wrong = measured(loss, if options.quick { hours / 10.0 } else { hours })?;
            let scaled = wrong.convicted as f64 * NODE_HOURS / wrong.node_hours;
            report.exact(harsher_row(loss), "nodes", Goal::None, scaled);
            let _ = write!(counted, "; at {loss} % {}", told(wrong));
        }
        report.note(format!("counted in this run{counted}. What is extrapolated is in proportion to that."));
        Ok(())
    }
}

fn measured(loss: u32, node_hours: f64) -> Result<Wrong> {
    let meshes = u64::try_from(std::thread::available_parallelism()?.get())?;
    wrongly(NODES, loss, meshes, node_hours / NODES as f64 / meshes as f64)
}

fn told(wrong: Wrong) -> String {
    format!(
        "{} living nodes convicted in {:.0} node-hours of meshes of {NODES} ({} times a node stopped routing to a living one; {:.2e} \
         inputs)",
        wrong.convicted, wrong.node_hours, wrong.suspected, wrong.inputs as f64
    )
}

/// The last long run that a page tells of: how many were convicted, and its note.
fn kept(page: &Path) -> Option<(f64, String)> {
    let text = fs::read_to_string(page).ok()?;
    let note = text.lines().find_map(|line| line.strip_prefix("- ").filter(|note| note.starts_with(NOTE)))?;
    let convicted = note.strip_prefix(NOTE)?.split_once(": ")?.1.split(' ').next()?.parse().ok()?;
    Some((convicted, note.to_owned()))
}

fn today() -> String {
    let output = std::process::Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output();
    output.map_or_else(
        |_| "an unknown day".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_keeps_the_last_long_run() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let page = folder.path().join("page.md");
        assert!(kept(&page).is_none());
        let wrong = Wrong { node_hours: 10_000.0, convicted: 3, suspected: 9, inputs: 1_000_000 };
        let mut report = Report::new("sample");
        report.note(format!("{NOTE}2026-11-21 15:00 UTC: {}, in 20 minutes.", told(wrong)));
        report.finish(Some(&page), "x")?;
        let (convicted, note) = kept(&page).unwrap_or_default();
        assert_eq!(convicted, 3.0);
        assert!(
            note.starts_with("long run of 2026-11-21 15:00 UTC: 3 living nodes convicted in 10000"),
            "{note}"
        );
        Ok(())
    }
}
