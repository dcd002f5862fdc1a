//! Goals beside figures, on the terminal and in docs/benchmarks/.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::stats::Estimate;

/// What a figure is to reach. It is met when the figure itself does; the interval beside it says how sure that is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// Shown for comparison only.
    None,
}

/// Figures that a run does not have: what, in which unit, with which goal.
pub(crate) type Lacking = Vec<(String, &'static str, Goal)>;

/// The exit code of a benchmark: 0 when all goals are met, 1 when some are not, 2 when it could not run.
pub(crate) fn exit_code<E>(all_met: &Result<bool, E>) -> u8 {
    match all_met {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(_) => 2,
    }
}

/// From this line on a page is written by hand, and a new run keeps it.
const BY_HAND: &str = "<!-- From here on written by hand; a new run keeps it. -->";

#[derive(Debug)]
struct Row {
    what: String,
    unit: &'static str,
    goal: Goal,
    /// None where it was not measured; a note says why.
    figure: Option<Estimate>,
}

#[derive(Debug)]
pub(crate) struct Report {
    name: &'static str,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Report {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, rows: Vec::new(), notes: Vec::new() }
    }

    pub(crate) fn row(&mut self, what: impl Into<String>, unit: &'static str, goal: Goal, figure: Estimate) {
        self.push(Row { what: what.into(), unit, goal, figure: Some(figure) });
    }

    /// A figure that this run does not have. Its goal counts as one that is not met.
    pub(crate) fn not_measured(&mut self, what: impl Into<String>, unit: &'static str, goal: Goal) {
        self.push(Row { what: what.into(), unit, goal, figure: None });
    }

    fn push(&mut self, row: Row) {
        println!("{}", row.line());
        self.rows.push(row);
    }

    pub(crate) fn exact(&mut self, what: impl Into<String>, unit: &'static str, goal: Goal, figure: f64) {
        self.row(what, unit, goal, Estimate { median: figure, low: figure, high: figure });
    }

    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Prints the closing line, writes the page, and says whether all goals are met.
    pub(crate) fn finish(self, page: Option<&Path>, command: &str) -> Result<bool> {
        let goals: Vec<bool> = self.rows.iter().filter_map(Row::is_met).collect();
        let met = goals.iter().filter(|met| **met).count();
        if let Some(page) = page {
            write(page, &self.page(command, met, goals.len()))
                .with_context(|| format!("cannot write {}", page.display()))?;
        }
        let missing = self.rows.iter().filter(|row| row.figure.is_none()).count();
        let missing = if missing > 0 { format!(", {missing} figures not measured") } else { String::new() };
        println!("{}: met {met} of {}{missing}", self.name, goals.len());
        Ok(met == goals.len())
    }

    fn page(&self, command: &str, met: usize, goals: usize) -> String {
        let mut text = format!(
            "# Benchmark `{}`\n\nMet {met} of {goals} goals. Written by `{command}`, which repeats it.\n\n",
            self.name
        );
        text.push_str("| what | goal | figure | 95 % interval | met |\n|---|---|---|---|---|\n");
        for row in &self.rows {
            let met = match (row.figure, row.is_met()) {
                (Some(_), Some(true)) => "yes",
                (Some(_), Some(false)) => "**no**",
                (_, None) | (None, _) => "-",
            };
            let (figure, interval) = (row.figure_text(), row.interval_text());
            let _ = writeln!(text, "| {} | {} | {figure} | {interval} | {met} |", row.what, row.goal_text());
        }
        text.push('\n');
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text
    }
}

/// Says of `figures` that they were not measured, and why.
pub(crate) fn lack(report: &mut Report, figures: Lacking, error: &anyhow::Error) {
    let names: Vec<_> = figures.iter().map(|(what, ..)| format!("\"{what}\"")).collect();
    eprintln!("not measured: {error:#}");
    report.note(format!("not measured: {}: {}.", names.join(", "), first_line(&format!("{error:#}"))));
    for (what, unit, goal) in figures {
        report.not_measured(what, unit, goal);
    }
}

/// A page has no room for a node's whole log.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim_end_matches('.')
}

impl Row {
    fn is_met(&self) -> Option<bool> {
        let reaches = |holds: &dyn Fn(Estimate) -> bool| Some(self.figure.is_some_and(holds));
        match self.goal {
            Goal::AtMost(goal) => reaches(&|figure| figure.median <= goal),
            Goal::AtLeast(goal) => reaches(&|figure| figure.median >= goal),
            Goal::None => None,
        }
    }

    fn figure_text(&self) -> String {
        self.figure.map_or_else(
            || "not measured".to_owned(),
            |figure| format!("{} {}", number(figure.median), self.unit),
        )
    }

    fn goal_text(&self) -> String {
        match self.goal {
            Goal::AtMost(goal) => format!("<= {} {}", number(goal), self.unit),
            Goal::AtLeast(goal) => format!(">= {} {}", number(goal), self.unit),
            Goal::None => "-".to_owned(),
        }
    }

    fn interval_text(&self) -> String {
        match self.figure {
            Some(figure) if figure.low != figure.high => {
                format!("{} .. {}", number(figure.low), number(figure.high))
            }
            Some(_) | None => "-".to_owned(),
        }
    }

    fn line(&self) -> String {
        let met = match self.is_met() {
            Some(_) if self.figure.is_none() => "",
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "",
        };
        format!(
            "{:<64} goal {:<12} figure {:>15} [{}] {met}",
            self.what,
            self.goal_text(),
            self.figure_text(),
            self.interval_text()
        )
    }
}

/// Writes the page anew but for what was written there by hand.
fn write(page: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = page.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let old = match std::fs::read_to_string(page) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        old => old.unwrap_or_default(),
    };
    let by_hand = old.find(BY_HAND).map_or(BY_HAND, |at| old[at..].trim_end());
    std::fs::write(page, format!("{text}\n{by_hand}\n"))
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goal_is_met_when_the_figure_reaches_it_however_wide_the_interval() {
        let row = |goal, median| Row {
            what: String::new(),
            unit: "ms",
            goal,
            figure: Some(Estimate { median, low: 0.1, high: 1.5 }),
        };
        assert_eq!(row(Goal::AtMost(0.6), 0.6).is_met(), Some(true));
        assert_eq!(row(Goal::AtMost(0.6), 0.7).is_met(), Some(false));
        assert_eq!(row(Goal::AtLeast(0.6), 0.5).is_met(), Some(false));
        assert_eq!(row(Goal::AtLeast(0.6), 0.6).is_met(), Some(true));
        assert_eq!(row(Goal::None, 0.6).is_met(), None);
    }

    fn report(added: f64) -> Report {
        let mut report = Report::new("sample");
        report.row("added", "ms", Goal::AtMost(0.6), Estimate { median: added, low: 0.5, high: 0.9 });
        report.row(
            "rate",
            "req/s",
            Goal::AtLeast(100.0),
            Estimate { median: 150.0, low: 140.0, high: 163.4 },
        );
        report.exact("seen", "MB", Goal::None, 12.34);
        report.note("one thing to know.");
        report
    }

    #[test]
    fn exit_codes_tell_met_from_missed_from_not_run() {
        assert_eq!(exit_code(&report(0.5).finish(None, "x")), 0);
        assert_eq!(exit_code(&report(0.7).finish(None, "x")), 1);
        assert_eq!(exit_code(&report(0.5).finish(Some(Path::new("/proc/nowhere/all.md")), "x")), 2);
    }

    #[test]
    fn page_shows_goal_beside_figure() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let page = folder.path().join("sample.md");
        assert!(!report(0.7).finish(Some(&page), "scripts/bench sample")?);
        let text = std::fs::read_to_string(&page)?;
        let expected = "# Benchmark `sample`\n\n\
            Met 1 of 2 goals. Written by `scripts/bench sample`, which repeats it.\n\n\
            | what | goal | figure | 95 % interval | met |\n\
            |---|---|---|---|---|\n\
            | added | <= 0.600 ms | 0.700 ms | 0.500 .. 0.900 | **no** |\n\
            | rate | >= 100 req/s | 150 req/s | 140 .. 163 | yes |\n\
            | seen | - | 12.3 MB | - | - |\n\n\
            - one thing to know.\n\n\
            <!-- From here on written by hand; a new run keeps it. -->\n";
        assert_eq!(text, expected);
        Ok(())
    }

    #[test]
    fn a_goal_without_a_figure_is_not_met_and_said_to_be_not_measured() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let page = folder.path().join("sample.md");
        let mut some = report(0.5);
        some.not_measured("seen far", "ms", Goal::AtMost(7.0));
        assert!(!some.finish(Some(&page), "x")?);
        let text = std::fs::read_to_string(&page)?;
        assert!(text.contains("| seen far | <= 7.000 ms | not measured | - | - |\n"), "{text}");
        assert!(text.contains("Met 2 of 3 goals."), "{text}");
        Ok(())
    }

    #[test]
    fn what_was_written_by_hand_outlives_a_run() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let page = folder.path().join("sample.md");
        report(0.5).finish(Some(&page), "first")?;
        let mut text = std::fs::read_to_string(&page)?;
        text.push_str("\n## Where the time goes\n\nHere.\n");
        std::fs::write(&page, text)?;
        for run in ["second", "third"] {
            report(0.7).finish(Some(&page), run)?;
        }
        let text = std::fs::read_to_string(&page)?;
        assert!(text.contains("`third`") && !text.contains("`second`"), "{text}");
        assert!(
            text.ends_with("by hand; a new run keeps it. -->\n\n## Where the time goes\n\nHere.\n"),
            "{text}"
        );
        Ok(())
    }
}
