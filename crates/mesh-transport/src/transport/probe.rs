//! Whether a connection still lives, asked where there is reason to doubt it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::io::AsyncReadExt;

use super::{
    Inner,
    links::LinkConn,
    redial,
    serve::{close_once_idle, open_stream},
};
use crate::{error::StreamFault, peer::Protocol};

/// A stream that the other side ends, or resets, as soon as it has read the header.
pub(super) const ALIVE: Protocol = Protocol::new("alive/1");

/// The least time for an answer: beyond what a busy machine takes, and short enough to dial anew within a second.
const ANSWER_MIN: Duration = Duration::from_millis(500);
/// The most time.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// So many round trips are given, for a lost packet on the way.
const ROUND_TRIPS: u32 = 4;

/// Hints are taken this often: two nodes that prefer different connections must not ask each other without end.
const HINTS_EVERY: Duration = Duration::from_secs(1);

/// Asks whether the connection lives. While it owes the answer, others are preferred to it; it is not cut: its own
/// silence ends it, and an answer that comes late puts it back in its place.
pub(super) fn ask(inner: &Arc<Inner>, conn: Arc<LinkConn>) {
    if !conn.marks.probed.swap(true, Ordering::SeqCst) {
        inner.tasks.spawn(judge(inner.clone(), conn));
    }
}

/// The peer asks on a connection that is not used here: it may have reason to doubt the one that is.
pub(super) fn hint(inner: &Arc<Inner>, asked: &Arc<LinkConn>) {
    let Some(used) = inner.links.linked(&asked.peer.scope, &asked.peer.id) else { return };
    if Arc::ptr_eq(&used, asked) || used.marks.hinted.swap(true, Ordering::SeqCst) {
        return;
    }
    ask(inner, used.clone());
    let cancel = inner.cancel.clone();
    inner.tasks.spawn(async move {
        let _ = cancel.run_until_cancelled(tokio::time::sleep(HINTS_EVERY)).await;
        used.marks.hinted.store(false, Ordering::SeqCst);
    });
}

async fn judge(inner: Arc<Inner>, conn: Arc<LinkConn>) {
    let judged = async {
        let mut answer = std::pin::pin!(answers(&inner, &conn));
        let rtt = conn.path().rtt.unwrap_or_default();
        let within = (rtt * ROUND_TRIPS).clamp(ANSWER_MIN, ANSWER_MAX);
        if tokio::time::timeout(within, &mut answer).await.is_ok() {
            return;
        }
        tracing::debug!(peer = %conn.peer.id.short(), path = ?conn.path(), "a connection does not answer");
        close_once_idle(&inner, inner.links.set_silent(&conn, true));
        if inner.links.linked(&conn.peer.scope, &conn.peer.id).is_some_and(|best| best.is_silent()) {
            redial::soon(&inner, (conn.peer.scope, conn.peer.id));
        }
        if answer.await {
            close_once_idle(&inner, inner.links.set_silent(&conn, false));
        }
    };
    tokio::select! {
        () = inner.cancel.cancelled() => {}
        _ = conn.conn.closed() => {}
        () = judged => {}
    }
    conn.marks.probed.store(false, Ordering::SeqCst);
}

/// Resolves with whether the other side is there.
async fn answers(inner: &Inner, conn: &LinkConn) -> bool {
    let Ok(mut stream) = open_stream(inner, conn, ALIVE).await else { return false };
    match stream.read_u8().await {
        Ok(_) => true,
        Err(error) => !matches!(StreamFault::of(&error), Some(StreamFault::Lost(_))),
    }
}
