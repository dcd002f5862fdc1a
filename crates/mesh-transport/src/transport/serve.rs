//! A link at work: streams in and out until it ends.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinSet},
    time::Instant,
};
use tracing::Instrument;

use super::{
    Inner, LinkEvent, grant,
    links::{CountedStream, LinkConn},
    probe, pulse, redial,
};
use crate::{
    error::{CloseCode, ClosedWhy, ConnectionLost, OpenError, Refusal, ResetCode, StreamFault},
    peer::{PROTOCOL_NAME_MAX, Protocol},
    proto::wire,
    stream::Stream,
};

/// Registers a connection that has passed hello and serves it; returns the one to use for the peer.
pub(super) fn adopt(inner: &Arc<Inner>, conn: Arc<LinkConn>) -> Arc<LinkConn> {
    if is_second_node(inner, &conn) {
        return conn;
    }
    let registered = inner.links.register(conn.clone());
    inner.unreached.forget(&conn.peer.scope, &conn.peer.id);
    for old in registered.replaced {
        old.close(CloseCode::Superseded, "replaced by a newer connection");
    }
    close_once_idle(inner, registered.superseded);
    pulse::linked(inner, &conn);
    // Who dials anew may have lost what is still preferred here.
    for preferred in registered.preferred {
        probe::ask(inner, preferred);
    }
    if inner.is_closing() {
        conn.close(CloseCode::Shutdown, "shutting down");
    }
    // A revocation may have come between hello and here.
    judge_again(inner, &conn);
    let span = tracing::debug_span!("transport.link", peer = %conn.peer.id.short());
    inner.tasks.spawn(run(inner.clone(), conn).instrument(span));
    registered.primary
}

/// Whether two nodes use the peer's key. If so both are told, by the way their connections are closed.
fn is_second_node(inner: &Inner, conn: &LinkConn) -> bool {
    let node = conn.peer.id;
    let place = conn.conn.remote().unwrap_or_else(|| "an unknown address".into());
    let Some([one, other]) = inner.instances.note(node, conn.instance, place, Instant::now()) else {
        return false;
    };
    let places = format!("{one} and {other}");
    for conn in inner.links.matching(|old| old.peer.id == node) {
        conn.close(CloseCode::KeyInUseTwice, &places);
    }
    conn.close(CloseCode::KeyInUseTwice, &places);
    // No subscriber is not an error.
    drop(inner.events.send(LinkEvent::KeyInUseTwice { node, places, told_by: None }));
    true
}

/// Closes a connection whose grant no longer holds.
pub(super) fn judge_again(inner: &Inner, conn: &LinkConn) {
    let Err(refusal) = inner.admission.check(&conn.peer.scope, conn.peer.id, &conn.shown.signed()) else {
        return;
    };
    let code = match refusal {
        Refusal::GrantExpired => CloseCode::Expired,
        _ => CloseCode::Revoked,
    };
    conn.close(code, "the grant shown in hello no longer holds");
}

/// Serves one connection until it has ended and its handlers are reaped.
async fn run(inner: Arc<Inner>, conn: Arc<LinkConn>) {
    let mut handlers = JoinSet::new();
    let room = Arc::new(Semaphore::new(inner.config.inbound_streams_max.clamp(1, Semaphore::MAX_PERMITS)));
    let mut paths = conn.conn.path_changes();
    let why = loop {
        tokio::select! {
            why = conn.closed() => break why,
            () = inner.cancel.cancelled() => {
                conn.close(CloseCode::Shutdown, "shutting down");
                break ClosedWhy::Local(CloseCode::Shutdown);
            }
            Some(done) = handlers.join_next() => reap(&inner, done),
            Ok(()) = paths.changed() => {
                inner.links.path_changed(&conn);
                pulse::linked(&inner, &conn);
            }
            accepted = accept(&conn, &room), if !inner.stop_accepting.is_cancelled() => match accepted {
                Ok((stream, permit)) => {
                    handlers.spawn(serve(inner.clone(), conn.clone(), stream, permit).in_current_span());
                }
                // What ended it is told by the connection itself.
                Err(_) => break conn.closed().await,
            },
        }
    };
    let why = asked_of_machine(&inner, &conn, why).await;
    tracing::debug!(%why, "link ended");
    if let ClosedWhy::Peer { code: CloseCode::KeyInUseTwice, reason } = &why {
        let (node, places) = (inner.me, reason.clone());
        drop(inner.events.send(LinkEvent::KeyInUseTwice { node, places, told_by: Some(conn.peer.id) }));
    }
    inner.links.remove(&conn, why.clone());
    pulse::unlinked(&inner, &conn);
    redial::ended(&inner, &conn, &why);
    // Handlers of a link that was cut have nothing left to do, and only time to notice it.
    let grace = if conn.cut.is_cut() { CUT_GRACE } else { inner.config.handler_grace };
    let reaped = async {
        while let Some(done) = handlers.join_next().await {
            reap(&inner, done)
        }
    };
    tokio::select! {
        () = inner.cancel.cancelled() => {}
        _ = tokio::time::timeout(grace, reaped) => {}
    }
    handlers.shutdown().await;
}

/// How a connection ended that failed without a word: the peer's machine may know.
async fn asked_of_machine(inner: &Arc<Inner>, conn: &Arc<LinkConn>, why: ClosedWhy) -> ClosedWhy {
    let ClosedWhy::Failed(_) = why else { return why };
    // Who wants a link meanwhile dials.
    close_once_idle(inner, inner.links.set_silent(conn, true));
    if pulse::is_gone(inner, conn).await { ClosedWhy::Gone } else { why }
}

/// For handlers to end by themselves, each in its own way, such as by a reset of what it serves.
const CUT_GRACE: Duration = Duration::from_millis(100);

/// The next inbound stream, once there is room to serve it: a peer that opens more waits.
async fn accept(
    conn: &LinkConn,
    room: &Arc<Semaphore>,
) -> Result<(Stream, OwnedSemaphorePermit), ConnectionLost> {
    let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
    Ok((conn.conn.accept().await?, permit))
}

fn reap(inner: &Inner, done: Result<(), JoinError>) {
    if let Err(error) = done
        && error.is_panic()
    {
        inner.metrics.handler_panics.add();
        tracing::error!(error = &error as &dyn std::error::Error, "stream handler panicked");
    }
}

/// Held by both halves of an inbound stream.
struct Inbound {
    _counted: CountedStream,
    _room: OwnedSemaphorePermit,
}

async fn serve(inner: Arc<Inner>, conn: Arc<LinkConn>, mut stream: Stream, room: OwnedSemaphorePermit) {
    stream.hold(Arc::new(Inbound { _counted: conn.streams.enter(), _room: room }));
    stream.tie(&conn.cut);
    let header = tokio::time::timeout(inner.config.header_timeout, read_header(&mut stream)).await;
    let Ok(Some((name, length))) = header else {
        inner.metrics.streams_refused.add();
        return stream.reset(ResetCode::BAD_HEADER);
    };
    let name = wire::header_name(&name[..length]);
    if name == Some(probe::ALIVE.as_str()) {
        drop(stream.shutdown().await);
        return probe::hint(&inner, &conn);
    }
    if name == Some(grant::GRANT.as_str()) {
        return grant::take(&inner, &conn, stream).await;
    }
    if name == Some(pulse::PULSE.as_str()) {
        return pulse::answer(&inner, &conn, stream).await;
    }
    let handler = name.map(|name| {
        let handlers = inner.handlers.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        handlers.get_key_value(name).map(|(name, handler)| (*name, handler.clone()))
    });
    match handler {
        None => {
            inner.metrics.streams_refused.add();
            stream.reset(ResetCode::BAD_HEADER);
        }
        Some(None) => {
            inner.metrics.streams_refused.add();
            stream.reset(ResetCode::UNKNOWN_PROTOCOL);
        }
        Some(Some((_, handler))) if !handler.callers().admits(&conn.peer) => {
            inner.metrics.streams_refused.add();
            stream.reset(ResetCode::NOT_ALLOWED);
        }
        Some(Some((protocol, handler))) => {
            inner.metrics.streams_served.add();
            let span = tracing::debug_span!("transport.accept", peer = %conn.peer.id.short(), protocol);
            handler.serve(conn.peer.clone(), stream).instrument(span).await;
        }
    }
}

/// The protocol's name and its length; `None` if there is no header.
async fn read_header(stream: &mut Stream) -> Option<([u8; PROTOCOL_NAME_MAX], usize)> {
    let length = wire::header_length(stream.read_u8().await.ok()?)?;
    let mut name = [0; PROTOCOL_NAME_MAX];
    stream.read_exact(&mut name[..length]).await.ok()?;
    Some((name, length))
}

/// Opens a stream on one connection and sends its header, without waiting for an answer.
pub(super) async fn open_stream(
    inner: &Inner,
    conn: &LinkConn,
    protocol: Protocol,
) -> Result<Stream, OpenError> {
    // Counted first, so that a connection about to close for idleness waits.
    let counted = conn.streams.enter();
    let mut stream = conn.conn.open().await?;
    stream.hold(Arc::new(counted));
    stream.tie(&conn.cut);
    if let Err(error) = stream.write_all(&wire::stream_header(protocol.as_str())).await {
        return Err(match StreamFault::of(&error) {
            Some(StreamFault::Lost(lost)) => OpenError::Lost(lost.clone()),
            _ => OpenError::Lost(ConnectionLost { why: ClosedWhy::Failed(error.to_string()) }),
        });
    }
    inner.metrics.streams_opened.add();
    Ok(stream)
}

/// Sees to the end of connections that lost the rule.
pub(super) fn close_once_idle(inner: &Arc<Inner>, superseded: Vec<Arc<LinkConn>>) {
    for conn in superseded {
        inner.tasks.spawn(close_when_idle(inner.clone(), conn));
    }
}

/// Closes a connection that lost the rule, once no stream was on it for a while.
async fn close_when_idle(inner: Arc<Inner>, conn: Arc<LinkConn>) {
    let idle = async {
        loop {
            let changed = conn.streams.changed();
            if conn.streams.alive() > 0 {
                changed.await;
            } else if tokio::time::timeout(inner.config.superseded_linger, changed).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = inner.cancel.cancelled() => {}
        _ = conn.conn.closed() => {}
        () = idle => {
            // The winner may have ended meanwhile; then this is the link.
            if inner.links.is_retired(&conn) {
                conn.close(CloseCode::Superseded, "the other connection is used");
            }
        }
    }
}
