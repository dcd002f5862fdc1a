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

/// Stores that were not closed in order; each is given so much of a log before, which is not far below the most it gets.
const KILLED_ROUNDS: usize = 5;
const LOG_MB: u64 = 15;

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
    for round in 0..rounds {
        clean.push(resume(folder.path(), session, &mut last).await?);
        if round < KILLED_ROUNDS {
            leave_open(folder.path(), session, &mut last).await?;
            killed.push(resume(folder.path(), session, &mut last).await?);
        }
    }
    report.row(row(events), "ms", GOAL, estimate(&clean));
    let killed_row = format!("{}, not closed in order, {LOG_MB} MB in SQLite's log", row(events));
    report.row(killed_row, "ms", Goal::None, estimate(&killed));
    Ok(())
}

/// Leaves the store as a process that is killed leaves it: marked as open, and what was written last in SQLite's log alone.
/// (It is in the file as well, which was closed in order. An opening cannot know, and reads the log.)
async fn leave_open(folder: &Path, session: SessionId, last: &mut u64) -> Result<()> {
    let (log, kept) = (folder.join("sessions.db-wal"), folder.join("kept"));
    let store = open(folder).await?;
    while std::fs::metadata(&log)?.len() < LOG_MB * 1_000_000 {
        store.append(append(session, (0..1_000).map(piece).collect())).await?;
        *last += 1_000;
    }
    std::fs::copy(&log, &kept)?;
    store.close().await;
    std::fs::rename(&kept, &log)?;
    std::fs::write(folder.join("sessions.db.lock"), "open\n")?;
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
