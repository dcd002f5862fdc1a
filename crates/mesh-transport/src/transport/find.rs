//! What drivers find goes into the address book.

use std::sync::Arc;

use super::Inner;
use crate::connection::Driver;

/// Listens to one driver until it finds nothing more or the transport ends.
pub(super) async fn find_by(inner: Arc<Inner>, driver: Arc<dyn Driver>) {
    loop {
        let found = tokio::select! {
            biased;
            () = inner.stop_accepting.cancelled() => break,
            found = driver.found() => match found { Some(found) => found, None => break },
        };
        tracing::debug!(peer = %found.node.short(), addresses = found.addr.direct.len() + found.addr.lan.len(), "found by a driver");
        inner.book.set_found(found);
    }
}
