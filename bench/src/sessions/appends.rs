//! Events a second, each acknowledged durable, and how long an acknowledgement takes.

use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_sessions::ids::SessionId;
use mesh_sessions::store::Store;

use super::bare::Bare;
use super::{Home, append, create, piece};
use crate::report::{Goal, Lacking, Report};
use crate::stats::{estimate, percentile, ratio, sort};

/// Sessions at once, and events that each appends at a time.
const CASES: [(usize, usize); 4] = [(1, 1), (64, 1), (8, 16), (1, 100)];

const NEAR: Goal = Goal::AtLeast(0.7);

fn name((sessions, events): (usize, usize)) -> String {
    let sessions = if sessions == 1 { "1 session".to_owned() } else { format!("{sessions} sessions") };
    format!("{sessions}, {events} at a time")
}

fn over(case: (usize, usize)) -> String {
    format!("events, {}, over bare inserts of the same groups", name(case))
}

pub(super) fn lacking() -> Lacking {
    CASES.into_iter().map(|case| (over(case), "x", NEAR)).collect()
}

pub(super) async fn measure(report: &mut Report, quick: bool) -> Result<()> {
    let (rounds, time) = if quick { (3, Duration::from_millis(150)) } else { (15, Duration::from_secs(1)) };
    for case in CASES {
        let Home { store, folder } = Home::new().await?;
        let mut sessions = Vec::new();
        for number in 0..case.0 {
            sessions.push(create(&store, number).await?);
        }
        let mut bare = Bare::open(folder.path()).await?;
        // The size of the groups, and both arms warm.
        let warm = burst(&store, &sessions, case.1, time).await?;
        let group = warm.group.round().max(1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "events of a group")]
        let group = group as usize;
        bare.rate(group, time).await?;
        let (mut ours, mut theirs, mut p99, mut p50) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            if round % 2 == 0 {
                theirs.push(bare.rate(group, time).await?);
            }
            let mut burst = burst(&store, &sessions, case.1, time).await?;
            if round % 2 == 1 {
                theirs.push(bare.rate(group, time).await?);
            }
            sort(&mut burst.acknowledged_ms);
            ours.push(burst.rate);
            p50.push(percentile(&burst.acknowledged_ms, 0.5));
            p99.push(percentile(&burst.acknowledged_ms, 0.99));
        }
        report.row(over(case), "x", NEAR, ratio(&ours, &theirs));
        report.row(format!("events, {}", name(case)), "/s", Goal::None, estimate(&ours));
        report.row(format!("bare rows, {group} at a time"), "/s", Goal::None, estimate(&theirs));
        report.row(format!("acknowledgement, {}, median", name(case)), "ms", Goal::None, estimate(&p50));
        report.row(format!("acknowledgement, {}, p99", name(case)), "ms", Goal::None, estimate(&p99));
        bare.close().await?;
        store.close().await;
    }
    Ok(())
}

struct Burst {
    /// Events a second.
    rate: f64,
    /// Events of a commit, on average.
    group: f64,
    /// How long each append waited.
    acknowledged_ms: Vec<f64>,
}

/// Every session appends as fast as it is acknowledged, for so long.
async fn burst(store: &Store, sessions: &[SessionId], events: usize, time: Duration) -> Result<Burst> {
    let (before, start) = (store.counts(), Instant::now());
    let mut writers = tokio::task::JoinSet::new();
    for session in sessions.iter().copied() {
        let store = store.clone();
        writers.spawn(async move {
            let mut waited = Vec::new();
            while start.elapsed() < time {
                let asked = Instant::now();
                let bodies = (0..events).map(piece).collect();
                store.append(append(session, bodies)).await?;
                waited.push(asked.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(waited)
        });
    }
    let mut acknowledged_ms = Vec::new();
    while let Some(waited) = writers.join_next().await {
        acknowledged_ms.extend(waited??);
    }
    let (after, took) = (store.counts(), start.elapsed());
    let written = (after.events - before.events) as f64;
    let group = written / (after.commits - before.commits) as f64;
    Ok(Burst { rate: written / took.as_secs_f64(), group, acknowledged_ms })
}
