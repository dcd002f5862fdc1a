//! Inbound connections: limits, hello, then a link.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument;

use super::{
    Inner,
    dial::{CloseOnDrop, link_conn},
    gate::Place,
    hello::{self, HelloFailure},
    serve,
};
use crate::{
    connection::{Connection, Driver},
    error::{CloseCode, Refusal},
};

/// Accepts on one driver until the transport or the driver ends.
pub(super) async fn accept_from(inner: Arc<Inner>, driver: Arc<dyn Driver>) {
    loop {
        let conn = tokio::select! {
            biased;
            () = inner.stop_accepting.cancelled() => break,
            conn = driver.accept() => match conn { Some(conn) => conn, None => break },
        };
        let (permit, place) =
            match (inner.connections.clone().try_acquire_owned(), inner.hellos.enter(conn.origin())) {
                (Ok(permit), Some(place)) => (permit, place),
                (permit, _) => {
                    turn_away(&inner, &*conn, permit.is_err());
                    continue;
                }
            };
        let span = tracing::debug_span!("transport.accept", peer = %conn.peer().short());
        inner.tasks.spawn(welcome(inner.clone(), conn, permit, place).instrument(span));
    }
}

/// Refuses a connection at a limit: counted, and logged at most once a minute.
fn turn_away(inner: &Inner, conn: &dyn Connection, links_full: bool) {
    inner.metrics.connections_refused.add();
    if let Some(held_back) = inner.limit_warning.due() {
        let limit = if links_full { "connections" } else { "connections in hello" };
        let connections_max = inner.connections_max;
        tracing::warn!(limit, connections_max, held_back, "inbound connection refused at a limit");
    }
    conn.close(CloseCode::Busy, "at the limit, try later");
}

async fn welcome(inner: Arc<Inner>, conn: Arc<dyn Connection>, permit: OwnedSemaphorePermit, place: Place) {
    let closer = CloseOnDrop(Some(conn.clone()));
    let answered = tokio::select! {
        biased;
        () = inner.cancel.cancelled() => return conn.close(CloseCode::Shutdown, "shutting down"),
        answered = hello::as_acceptor(&inner, &conn) => answered,
    };
    let (scope, linked) = match answered {
        Ok(answered) => answered,
        Err(failure) => return refuse(&inner, &*conn, failure).await,
    };
    inner.metrics.hellos_welcomed.add();
    if linked.issued.is_some() {
        // The dialer stores its grant and comes back with it.
        until_closed(&inner, &*conn).await;
        return conn.close(CloseCode::Done, "redeemed");
    }
    let Some(link) = link_conn(&inner, conn.clone(), scope, linked, false, permit) else {
        return conn.close(CloseCode::ScopeClosed, "left the scope");
    };
    drop(place);
    closer.keep();
    serve::adopt(&inner, link);
}

async fn refuse(inner: &Inner, conn: &dyn Connection, failure: HelloFailure) {
    match &failure {
        HelloFailure::Refused(_) | HelloFailure::Untrusted(_) => inner.metrics.hellos_refused.add(),
        HelloFailure::TimedOut => inner.metrics.hellos_silent.add(),
        _ => inner.metrics.hellos_faulty.add(),
    }
    tracing::debug!(?failure, "hello did not end with a link");
    if let HelloFailure::Refused(refusal) = &failure {
        // Closing at once could overtake the answer.
        until_closed(inner, conn).await;
        if matches!(refusal, Refusal::Busy) {
            return conn.close(CloseCode::Busy, "at the limit, try later");
        }
    }
    conn.close(failure.close_code(), "refused");
}

/// Waits for the dialer to close, as long as a hello may take.
async fn until_closed(inner: &Inner, conn: &dyn Connection) {
    tokio::select! {
        () = inner.cancel.cancelled() => {}
        _ = tokio::time::timeout(inner.config.hello_timeout, conn.closed()) => {}
    }
}
