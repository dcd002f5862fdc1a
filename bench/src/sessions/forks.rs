//! Forks of a long session, beside bare inserts of one row.

use std::time::Instant;

use anyhow::Result;
use mesh_sessions::event::Body;
use mesh_sessions::ids::EventNumber;

use super::bare::Bare;
use super::{Home, id, long, owner};
use crate::report::{Goal, Lacking, Report};
use crate::stats::{estimate, ratio};

const EVENTS: usize = 100_000;
const TIME: (&str, Goal) =
    ("fork of a session of 100000 events, over one bare durable insert", Goal::AtMost(1.2));
const SPACE: (&str, Goal) = ("what a fork adds to the file", Goal::AtMost(4096.0));

pub(super) fn lacking() -> Lacking {
    vec![(TIME.0.to_owned(), "x", TIME.1), (SPACE.0.to_owned(), "B", SPACE.1)]
}

pub(super) async fn measure(report: &mut Report, quick: bool) -> Result<()> {
    let forks = if quick { 100 } else { 1_000 };
    let Home { store, folder } = Home::new().await?;
    let parent = long(&store, 0, EVENTS).await?;
    let mut bare = Bare::open(folder.path()).await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let before = store.bytes().await?;
    for number in 1..=forks {
        let insert = Instant::now();
        bare.insert(1).await?;
        theirs.push(insert.elapsed().as_secs_f64() * 1e3);
        // All over the session, the running end included.
        let cut = EventNumber((EVENTS - number * 97 % EVENTS) as u64);
        let (fork, owner) = (id(number)?, owner());
        let started = Instant::now();
        store.fork(parent, cut, fork, 1, vec![Body::Forked { parent, cut, owner }]).await?;
        ours.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let added = (store.bytes().await? - before) as f64 / forks as f64;
    report.row(TIME.0, "x", TIME.1, ratio(&ours, &theirs));
    report.row("fork, median", "ms", Goal::None, estimate(&ours));
    report.row("one bare durable insert, median", "ms", Goal::None, estimate(&theirs));
    report.exact(SPACE.0, "B", SPACE.1, added);
    bare.close().await?;
    store.close().await;
    Ok(())
}
