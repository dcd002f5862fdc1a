//! The event stream: a snapshot, then what changes, with heartbeats.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use mesh_control::{Event, HEARTBEAT, HEARTBEAT_FRAME};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use crate::node::Node;

struct Reader {
    node: Node,
    events: Receiver<Event>,
    snapshot_due: bool,
}

/// Server-sent events for one reader; ends when the node stops. A reader that lags gets a new snapshot.
pub(super) fn event_stream(node: Node) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    let events = node.subscribe();
    unfold(Reader { node, events, snapshot_due: true }, |mut reader| async move {
        let text = reader.next().await?;
        Some((Ok(Bytes::from(text)), reader))
    })
}

impl Reader {
    async fn next(&mut self) -> Option<String> {
        if std::mem::take(&mut self.snapshot_due) {
            return Some(self.node.snapshot_event().await.to_sse());
        }
        let stopped = self.node.stopping();
        let received = tokio::select! {
            () = stopped.cancelled() => return None,
            received = timeout(HEARTBEAT, self.events.recv()) => received,
        };
        match received {
            Err(_) => Some(HEARTBEAT_FRAME.to_owned()),
            Ok(Ok(event)) => Some(event.to_sse()),
            Ok(Err(RecvError::Lagged(_))) => Some(self.node.snapshot_event().await.to_sse()),
            Ok(Err(RecvError::Closed)) => None,
        }
    }
}
