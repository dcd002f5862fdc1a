//! Keeping copies of other gateways' answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mesh_transport::{
    Callers, FrameError, FrameReader, Handler, Peer, RecvStream, SendStream, Stream, write_message,
};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::store::{Question, Store, Turn, Unwritten};
use super::wire::{FromHolder, MESSAGE_MAX, ToHolder, WireQuestion, batches};
use super::{AnswerId, Log};
use crate::gateway::serve::Core;

/// From the opening of a stream to its first message, and for writing to a gateway that does not read.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves `replica/1`, to members alone: copies hold what people wrote.
pub(crate) struct ReplicaHandler {
    pub(crate) core: Arc<Core>,
    pub(crate) stop: CancellationToken,
    pub(crate) open: TaskTracker,
}

impl Handler for ReplicaHandler {
    fn callers(&self) -> Callers {
        Callers::Members
    }

    fn serve(&self, peer: Peer, stream: Stream) -> BoxFuture<'static, ()> {
        let (core, stop) = (self.core.clone(), self.stop.clone());
        let served = self.open.track_future(async move {
            let from = peer.id;
            let hold = Hold::new(&core.replicas, peer, stream);
            let held = tokio::select! {
                held = hold.serve(core.config.replicas.accept) => held,
                () = stop.cancelled() => return,
            };
            if let Err(error) = held {
                tracing::debug!(peer = from.short(), %error, "a copy's stream ended early");
            }
        });
        Box::pin(served)
    }
}

struct Hold<'a> {
    store: &'a Store,
    peer: Peer,
    send: SendStream,
    frames: FrameReader<RecvStream>,
}

/// The right to write an answer, given back when its stream ends.
struct Writing<'a> {
    store: &'a Store,
    answer: AnswerId,
    turn: Turn,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.store.leave(&self.answer, self.turn);
    }
}

impl<'a> Hold<'a> {
    fn new(store: &'a Store, peer: Peer, stream: Stream) -> Self {
        let (send, recv) = stream.split();
        Self { store, peer, send, frames: FrameReader::new(recv, MESSAGE_MAX) }
    }

    async fn serve(mut self, accept: bool) -> Result<(), FrameError> {
        let first = tokio::time::timeout(MESSAGE_TIMEOUT, self.frames.next_message()).await;
        let Ok(Some(first)) = first.unwrap_or(Ok(None)) else { return Ok(()) };
        match first {
            ToHolder::Keep { .. } if !accept => self.refuse("this node keeps no copies").await,
            ToHolder::Keep { answer, question } => {
                let answer = AnswerId::from(answer);
                let question = Question {
                    endpoint: question.endpoint(),
                    model: question.model.into(),
                    body: question.body.into(),
                };
                match self.store.insert(answer, question, Some((self.peer.scope, self.peer.id))) {
                    Some(turn) => {
                        let writing = Writing { store: self.store, answer, turn };
                        self.say(&FromHolder::Ready).await?;
                        self.follow(writing).await
                    }
                    None => self.refuse("there is no room for it here").await,
                }
            }
            ToHolder::Take { answer, from } => {
                let answer = AnswerId::from(answer);
                // An answer of another scope is as unknown as one that never was.
                let Some((log, turn)) = self.store.take(&answer, Some(&self.peer.scope)) else {
                    return self.refuse("no such answer is kept here").await;
                };
                let writing = Writing { store: self.store, answer, turn };
                self.tell(log, from).await?;
                self.follow(writing).await
            }
            ToHolder::Append { .. } | ToHolder::Over => Ok(()),
        }
    }

    async fn tell(&mut self, log: Log, from: u64) -> Result<(), FrameError> {
        let question = WireQuestion {
            chat: log.question.endpoint.is_chat(),
            model: log.question.model.to_string(),
            body: log.question.body.to_vec(),
        };
        let events = log.events.len();
        self.say(&FromHolder::Found { question, events: events as u64, over: log.over }).await?;
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(events);
        for events in batches(&log.events[from..]) {
            self.say(&FromHolder::Events { events }).await?;
        }
        Ok(())
    }

    /// Takes in what the writer says until it leaves or another one takes over.
    async fn follow(&mut self, writing: Writing<'_>) -> Result<(), FrameError> {
        while let Some(message) = self.frames.next_message().await? {
            match message {
                ToHolder::Append { events } => {
                    let events = events.into_iter().map(Bytes::from).collect();
                    match self.store.append(&writing.answer, writing.turn, events) {
                        Ok(events) => self.say(&FromHolder::Held { events: events as u64 }).await?,
                        Err(Unwritten::NoRoom) => {
                            return self.refuse("there is no room for more of it here").await;
                        }
                        Err(Unwritten::Superseded) => return self.say(&FromHolder::Superseded).await,
                    }
                }
                ToHolder::Over => self.store.over(&writing.answer, writing.turn),
                ToHolder::Keep { .. } | ToHolder::Take { .. } => return Ok(()),
            }
        }
        Ok(())
    }

    async fn refuse(&mut self, why: &str) -> Result<(), FrameError> {
        self.say(&FromHolder::Refused { why: why.to_owned() }).await
    }

    async fn say(&mut self, message: &FromHolder) -> Result<(), FrameError> {
        let said = write_message(&mut self.send, message, MESSAGE_MAX);
        tokio::time::timeout(MESSAGE_TIMEOUT, said)
            .await
            .unwrap_or_else(|_| Err(FrameError::Io(std::io::ErrorKind::TimedOut.into())))
    }
}
