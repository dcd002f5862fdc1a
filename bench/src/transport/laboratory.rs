//! What is measured between real nodes in a lab of networks, where this machine can have one.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::path::Path;

use anyhow::{Result, anyhow};
use futures_util::FutureExt;

use super::nat::Matrix;
use super::stall::{Carried, Change};
use super::{Effort, found, found::How, stall, wired};
use crate::report::{Report, lack};

pub(super) const HOWS: [How; 2] = [How::Multicast, How::StaticPeer];
pub(super) const CARRIED: [Carried; 2] = [Carried::Lan, Carried::Internet];

pub(super) fn changes_of(effort: &Effort) -> &'static [Change] {
    const ALL: &[Change] = &[Change::Address, Change::Interface, Change::Frozen];
    // The others take half a minute each, which is too long for a look.
    if effort.quick { &ALL[..1] } else { ALL }
}

/// Of a thousand packets.
pub(super) fn losses_of(effort: &Effort) -> &'static [u16] {
    if effort.quick { &[5] } else { &[0, 5] }
}

pub(super) async fn discovery(report: &mut Report, effort: &Effort, bin_dir: &Path) {
    for how in HOWS {
        match guarded(found::measure(bin_dir, how, effort.starts)).await {
            Ok(times) => found::tell(report, how, &times),
            Err(error) => lack(report, how.lacking(), &error),
        }
    }
}

pub(super) async fn nats(report: &mut Report, effort: &Effort, bin_dir: &Path) {
    match guarded(Matrix::measure(bin_dir, effort.punches, effort.quick)).await {
        Ok(matrix) => matrix.tell(report),
        Err(error) => lack(report, Matrix::lacking(), &error),
    }
}

pub(super) async fn changes(report: &mut Report, effort: &Effort, bin_dir: &Path) {
    let changes = changes_of(effort);
    for carried in CARRIED {
        match guarded(stall::measure(bin_dir, carried, changes, effort.changes)).await {
            Ok(stalls) => stall::tell(report, carried, changes, &stalls),
            Err(error) => lack(report, stall::lacking(carried, changes), &error),
        }
    }
}

pub(super) async fn wire(report: &mut Report, effort: &Effort) {
    for loss_per_mille in losses_of(effort).iter().copied() {
        match guarded(wired::measure(loss_per_mille, effort.wire_time)).await {
            Ok(rates) => wired::tell(report, loss_per_mille, &rates),
            Err(error) => lack(report, wired::lacking(loss_per_mille), &error),
        }
    }
}

/// A lab that cannot be built panics, as its tests want it; here the other figures are still wanted.
pub(crate) async fn guarded<T>(measuring: impl Future<Output = Result<T>>) -> Result<T> {
    let done = AssertUnwindSafe(measuring).catch_unwind().await;
    done.unwrap_or_else(|panic| Err(anyhow!("{}", words(&*panic))))
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Goal;

    #[tokio::test]
    async fn what_panics_is_not_measured_and_the_rest_goes_on() -> Result<()> {
        let error = guarded(async { if true { panic!("no bridge") } else { Ok(()) } }).await;
        let error = error.expect_err("a panic");
        assert_eq!(error.to_string(), "no bridge");
        assert_eq!(guarded(async { Ok(7) }).await?, 7);
        let folder = tempfile::tempdir()?;
        let page = folder.path().join("page.md");
        let mut report = Report::new("sample");
        lack(&mut report, vec![("a stall".to_owned(), "s", Goal::AtMost(1.0))], &error);
        assert!(!report.finish(Some(&page), "x")?);
        let text = std::fs::read_to_string(&page)?;
        assert!(text.contains("| a stall | <= 1.000 s | not measured |"), "{text}");
        assert!(text.contains("- not measured: \"a stall\": no bridge.\n"), "{text}");
        Ok(())
    }
}
