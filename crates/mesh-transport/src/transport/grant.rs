//! Grants while a link stands: a later one is shown on it, and a link ends with the last that was shown.

use std::{sync::Arc, time::Duration};

use mesh_identity::{CLOCK_SKEW, ScopeId, SignedGrant, UnixTime};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{Inner, links::LinkConn, serve::open_stream};
use crate::{
    call::{self, Call, CallFault},
    error::{self, CallError, CloseCode},
    peer::{Peer, Protocol},
    stream::Stream,
};

pub(super) const GRANT: Protocol = Protocol::new("grant/1");

/// For a peer to take the grant.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest grant taken: those of the longest chains have less than 1 KiB.
const GRANT_BYTES_MAX: usize = 16 * 1024;

/// Shows the caller's next grant.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Show {
    grant: Vec<u8>,
}

impl Call for Show {
    const PROTOCOL: Protocol = GRANT;
    type Reply = ();
}

/// Shows our present grant on every link of the scope.
pub(super) fn show(inner: &Arc<Inner>, scope: &ScopeId) {
    let Some(credential) = inner.admission.credential(scope) else { return };
    let grant = credential.encode();
    for conn in inner.links.matching(|conn| conn.peer.scope == *scope) {
        let (inner, show) = (inner.clone(), Show { grant: grant.clone() });
        inner.tasks.clone().spawn(async move {
            let shown = tokio::select! {
                () = inner.cancel.cancelled() => return,
                shown = timeout(DEADLINE, show_on(&inner, &conn, &show)) => shown,
            };
            if let Err(error) = shown.unwrap_or(Err(CallError::Deadline(DEADLINE))) {
                let (peer, error) = (conn.peer.id.short(), error::chain(&error));
                tracing::debug!(
                    peer,
                    error,
                    "a renewed grant was not taken; the link ends with the one before"
                );
            }
        });
    }
}

async fn show_on(inner: &Inner, conn: &LinkConn, show: &Show) -> Result<(), CallError> {
    let stream = open_stream(inner, conn, GRANT).await?;
    call::call_on(stream, show, DEADLINE, inner.config.call_bytes_max).await
}

/// Takes a peer's next grant, for every connection to it.
pub(super) async fn take(inner: &Inner, conn: &LinkConn, stream: Stream) {
    let taken = |peer: Peer, show: Show| {
        let taken = renew(inner, &peer, &show).inspect_err(|_| inner.metrics.grants_refused.add());
        std::future::ready(taken)
    };
    call::serve_one(conn.peer.clone(), stream, GRANT_BYTES_MAX, &taken).await;
}

fn renew(inner: &Inner, peer: &Peer, show: &Show) -> Result<(), CallFault> {
    let malformed = |_| CallFault::new(CallFault::BAD_REQUEST, "not a grant");
    let signed = SignedGrant::decode(&show.grant).map_err(malformed)?;
    let refused = |refusal: error::Refusal| CallFault::not_allowed(refusal.to_string());
    let grant = super::hello::check(inner, &peer.scope, peer.id, &signed).map_err(refused)?;
    // What a peer may do was given to its handlers by value: another role, or another name, is for another link.
    if grant.permissions != peer.permissions || grant.name != peer.name {
        return Err(CallFault::not_allowed("a grant of another kind: dial again"));
    }
    let signed = Arc::new(signed);
    for conn in inner.links.matching(|conn| conn.peer.id == peer.id && conn.peer.scope == peer.scope) {
        conn.shown.renew(&signed, &grant);
    }
    Ok(())
}

/// Ends each link when the last grant that was shown on it ends.
pub(super) async fn watch(inner: Arc<Inner>) {
    let mut events = inner.events.subscribe();
    loop {
        let now = inner.unix_now();
        for conn in inner.links.matching(|conn| conn.is_expired(now)) {
            conn.close(CloseCode::Expired, "the grant that was shown has ended");
        }
        // The wall clock may be set: it is looked at often enough whatever it says.
        let next =
            next_end(&inner).map_or(inner.config.expiry_check, |end| end.min(inner.config.expiry_check));
        tokio::select! {
            () = inner.cancel.cancelled() => break,
            () = tokio::time::sleep(next) => {}
            // A new link may end sooner; lagging is news too.
            _ = events.recv() => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Between two looks, since links come and go in crowds.
const PAUSE: Duration = Duration::from_millis(20);

/// How long the link that ends first still stands.
fn next_end(inner: &Inner) -> Option<Duration> {
    let now = inner.unix_now();
    let links = inner.links.matching(|_| true);
    let ends = links.iter().filter_map(|conn| conn.shown.expires().time());
    // Over is what has passed the tolerance, counted in whole seconds.
    let left = |end: UnixTime| (end.plus(CLOCK_SKEW).0 + 1).saturating_sub(now.0);
    ends.map(left).min().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_golden() {
        let show = Show { grant: vec![7, 8] };
        assert_eq!(crate::frame::encode(&show).expect("encodes"), [2, 7, 8]);
    }
}
