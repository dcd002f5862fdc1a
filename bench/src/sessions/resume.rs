//! Opening a store with a very long session, and going on in it.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};
use mesh_sessions::ids::{EventNumber, SessionId};

use super::{Home, append, long, open, piece};
use crate::report::{Goal, Lacking, Report};
use crate::stats::estimate;

/// In a session of so many events.
const EVENTS: (usize, usize) = (1_000_000, 100_000);
const GOAL: Goal = Goal::AtMost(50.0);

fn row(events: usize) -> String {
    format!("open and resume a session of {events} events")
}

pub(super) fn lacking() -> Lacking {
    vec![(row(EVENTS.0), "ms", GOAL)]
}

pub(super) async fn measure(report: &mut Report, quick: bool) -> Result<()> {
    let (events, rounds) = if quick { (EVENTS.1, 5) } else { (EVENTS.0, 30) };
    let Home { store, folder } = Home::new().await?;
    let session = long(&store, 0, events).await?;
    store.close().await;
    let (mut clean, mut killed) = (Vec::new(), Vec::new());
    let mut last = events as u64;
    for _ in 0..rounds {
        clean.push(resume(folder.path(), session, &mut last).await?);
        // As a process that is killed leaves it.
        std::fs::write(folder.path().join("sessions.db.lock"), "open\n")?;
        killed.push(resume(folder.path(), session, &mut last).await?);
    }
    report.row(row(events), "ms", GOAL, estimate(&clean));
    report.row(format!("{}, not closed in order", row(events)), "ms", Goal::None, estimate(&killed));
    Ok(())
}

/// Opens, reads the last ten events by a follower, appends one, and gets it: milliseconds.
async fn resume(folder: &Path, session: SessionId, last: &mut u64) -> Result<f64> {
    let started = Instant::now();
    let store = open(folder).await?;
    let mut follower = store.follow(session, EventNumber(*last - 10)).await?;
    store.append(append(session, vec![piece(0)])).await?;
    for _ in 0..11 {
        follower.next().await?;
    }
    let took = started.elapsed().as_secs_f64() * 1e3;
    *last += 1;
    ensure!(follower.at().0 == *last, "event {} after {last}", follower.at());
    drop(follower);
    store.close().await;
    Ok(took)
}
