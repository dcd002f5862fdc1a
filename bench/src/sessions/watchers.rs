//! A thousand watchers of one session.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_sessions::ids::EventNumber;
use tokio::task::JoinSet;

use super::{Home, append, create, piece};
use crate::report::{Goal, Lacking, Report};
use crate::stats::{estimate, estimate_at};

const WATCHERS: usize = 1_000;
const MEMORY: &str = "memory of a watcher, of 1000";
const DELAY: &str = "from acknowledgement to the last of 1000 watchers, median";

pub(super) fn lacking() -> Lacking {
    vec![(MEMORY.to_owned(), "KiB", Goal::None), (DELAY.to_owned(), "ms", Goal::None)]
}

pub(super) async fn measure(report: &mut Report, quick: bool) -> Result<()> {
    let events = if quick { 50 } else { 500 };
    let Home { store, folder: _folder } = Home::new().await?;
    let session = create(&store, 0).await?;
    let before = resident()?;
    let mut watchers = JoinSet::new();
    for _ in 0..WATCHERS {
        let mut follower = store.follow(session, EventNumber(1)).await?;
        watchers.spawn(async move {
            let mut seen = Vec::with_capacity(events);
            for _ in 0..events {
                follower.next().await?;
                seen.push(Instant::now());
            }
            anyhow::Ok(seen)
        });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let memory = (resident()? - before) / WATCHERS as f64;
    let mut acknowledged = Vec::with_capacity(events);
    for number in 0..events {
        store.append(append(session, vec![piece(number)])).await?;
        acknowledged.push(Instant::now());
        // A fast model says fifty pieces a second.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut last = acknowledged.clone();
    while let Some(seen) = watchers.join_next().await {
        for (last, seen) in last.iter_mut().zip(seen??) {
            *last = (*last).max(seen);
        }
    }
    let delays: Vec<f64> = last
        .iter()
        .zip(&acknowledged)
        .map(|(last, asked)| last.duration_since(*asked).as_secs_f64() * 1e3)
        .collect();
    report.exact(MEMORY, "KiB", Goal::None, memory);
    report.row(DELAY, "ms", Goal::None, estimate(&delays));
    report.row(
        "from acknowledgement to the last of 1000 watchers, p99",
        "ms",
        Goal::None,
        estimate_at(&delays, 0.99),
    );
    store.close().await;
    Ok(())
}

/// Memory of this process, in KiB.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("no /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}
