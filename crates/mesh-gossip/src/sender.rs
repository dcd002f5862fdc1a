//! The sending side: one task per peer writes its queue to one long-lived stream.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_identity::{NodeId, ScopeId};
use mesh_transport::{Link, RecvStream, SendStream, Transport, write_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::exchange::GOSSIP;
use crate::limits;
use crate::metrics::Metrics;

/// A peer that takes a frame no sooner than this is stuck: the stream is given up, the next frame tries a new one.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// The stream at hand, and the connection that it is on.
struct Open {
    link: Link,
    send: SendStream,
    recv: RecvStream,
}

/// Writes one peer's frames.
pub(crate) struct Sender {
    pub(crate) transport: Transport,
    pub(crate) scope: ScopeId,
    pub(crate) peer: NodeId,
    pub(crate) metrics: Arc<Metrics>,
}

impl Sender {
    /// Writes what comes until the queue is closed and empty. A frame that cannot be written is dropped and counted.
    pub(crate) async fn run(self, mut queue: mpsc::Receiver<Bytes>) {
        let mut stream = None;
        while let Some(frame) = queue.recv().await {
            let written = tokio::time::timeout(WRITE_DEADLINE, self.write(&mut stream, &frame)).await;
            if written == Ok(true) {
                self.metrics.sent(&frame);
            } else {
                stream = None;
                self.metrics.dropped();
            }
        }
        if let Some(Open { mut send, mut recv, .. }) = stream {
            // The peer, which writes nothing, ends its side when it has read the last frame: before that the link may not close, or
            // the goodbye is lost. The link may be gone: then so is their reader.
            let read = async { (send.shutdown().await, recv.read_u8().await) };
            drop(tokio::time::timeout(WRITE_DEADLINE, read).await);
        }
    }

    /// Writes to the stream at hand, or once to a new one: the old one may have gone with an earlier link, or there is a
    /// better connection by now.
    async fn write(&self, stream: &mut Option<Open>, frame: &Bytes) -> bool {
        if let Some(mut left) = stream.take_if(|open| !open.link.is_current()) {
            // What was written still arrives; then that connection is free to end.
            drop(left.send.shutdown().await);
        }
        if let Some(Open { send, .. }) = stream
            && write_frame(send, frame, limits::FRAME_BYTES_MAX).await.is_ok()
        {
            return true;
        }
        *stream = None;
        let Some(link) = self.transport.linked(&self.scope, &self.peer) else { return false };
        let Ok(opened) = link.open(GOSSIP).await else { return false };
        let (send, recv) = opened.split();
        let Open { send, .. } = stream.insert(Open { link, send, recv });
        write_frame(send, frame, limits::FRAME_BYTES_MAX).await.is_ok()
    }
}
