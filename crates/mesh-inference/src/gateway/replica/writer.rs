//! Having another member keep a copy of an answer, and getting it back.

use std::time::Duration;

use bytes::Bytes;
use mesh_transport::{FrameReader, RecvStream, SendStream, Transport, write_message};

use super::store::Question;
use super::wire::{FromHolder, MESSAGE_MAX, ToHolder, WireQuestion, batches};
use super::{AnswerId, Holder, PROTOCOL};

/// How long a holder may take for a word. Text waits for it, so a holder that is silent for longer is given up.
const HOLDER_TIMEOUT: Duration = Duration::from_secs(3);
/// Events taken from a holder, in bytes: what one answer may have there at most.
const EVENTS_MAX: usize = 64 * 1024 * 1024;

/// A copy of an answer at a member, written from here.
pub(crate) struct Replica {
    send: SendStream,
    frames: FrameReader<RecvStream>,
}

/// An answer got back from its holder.
pub(crate) struct Found {
    pub(crate) question: Question,
    /// The events that were asked for.
    pub(crate) events: Vec<Bytes>,
    pub(crate) over: bool,
    pub(crate) replica: Replica,
}

/// Why there is no copy, or none any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// The holder is gone, has no room, or makes no sense. Text for logs.
    #[error("{0}")]
    Holder(String),
    /// Another gateway writes the answer now: the caller has gone there.
    #[error("another gateway gives the answer now")]
    Superseded,
}

impl Replica {
    /// Has a member keep a copy of a new answer. Cancel safe: dropped early, the member keeps nothing or an empty copy.
    pub(crate) async fn keep(
        transport: &Transport,
        at: Holder,
        answer: AnswerId,
        question: &Question,
    ) -> Result<Self, Lost> {
        let question = WireQuestion {
            chat: question.endpoint.is_chat(),
            model: question.model.to_string(),
            body: question.body.to_vec(),
        };
        let mut replica = Self::open(transport, at).await?;
        replica.say(&ToHolder::Keep { answer: answer.into(), question }).await?;
        match replica.hear().await? {
            FromHolder::Ready => Ok(replica),
            other => Err(unexpected(other)),
        }
    }

    /// Gets an answer back from its holder, from event `from` on, and writes it from now on.
    pub(crate) async fn take(
        transport: &Transport,
        at: Holder,
        answer: AnswerId,
        from: u64,
    ) -> Result<Found, Lost> {
        let mut replica = Self::open(transport, at).await?;
        replica.say(&ToHolder::Take { answer: answer.into(), from }).await?;
        let (question, count, over) = match replica.hear().await? {
            FromHolder::Found { question, events, over } => (question, events.saturating_sub(from), over),
            other => return Err(unexpected(other)),
        };
        let mut events: Vec<Bytes> = Vec::new();
        let mut bytes = 0;
        while (events.len() as u64) < count {
            let FromHolder::Events { events: more } = replica.hear().await? else {
                return Err(Lost::Holder("its holder spoke out of turn".into()));
            };
            bytes += more.iter().map(Vec::len).sum::<usize>();
            if more.is_empty() || bytes > EVENTS_MAX {
                return Err(Lost::Holder("its holder sent what no answer is".into()));
            }
            events.extend(more.into_iter().map(Bytes::from));
        }
        let question = Question {
            endpoint: question.endpoint(),
            model: question.model.into(),
            body: question.body.into(),
        };
        Ok(Found { question, events, over, replica })
    }

    /// Adds events, and waits until the holder has them. Not cancel safe: drop the copy then.
    pub(crate) async fn append(&mut self, events: &[Bytes]) -> Result<(), Lost> {
        for events in batches(events) {
            self.say(&ToHolder::Append { events }).await?;
            match self.hear().await? {
                FromHolder::Held { .. } => {}
                other => return Err(unexpected(other)),
            }
        }
        Ok(())
    }

    /// Tells the holder that the answer is complete.
    pub(crate) async fn over(&mut self) -> Result<(), Lost> {
        self.say(&ToHolder::Over).await
    }

    async fn open(transport: &Transport, Holder { scope, node }: Holder) -> Result<Self, Lost> {
        let open = tokio::time::timeout(HOLDER_TIMEOUT, transport.open(&scope, &node, PROTOCOL)).await;
        let stream = open.map_err(|_| late())?.map_err(|error| Lost::Holder(error.to_string()))?;
        let (send, recv) = stream.split();
        Ok(Self { send, frames: FrameReader::new(recv, MESSAGE_MAX) })
    }

    async fn say(&mut self, message: &ToHolder) -> Result<(), Lost> {
        let said =
            tokio::time::timeout(HOLDER_TIMEOUT, write_message(&mut self.send, message, MESSAGE_MAX)).await;
        said.map_err(|_| late())?.map_err(|error| Lost::Holder(error.to_string()))
    }

    async fn hear(&mut self) -> Result<FromHolder, Lost> {
        let heard = tokio::time::timeout(HOLDER_TIMEOUT, self.frames.next_message()).await;
        let heard = heard.map_err(|_| late())?.map_err(|error| Lost::Holder(error.to_string()))?;
        heard.ok_or_else(|| Lost::Holder("its holder closed the stream".into()))
    }
}

fn late() -> Lost {
    Lost::Holder(format!("its holder said nothing within {HOLDER_TIMEOUT:?}"))
}

fn unexpected(message: FromHolder) -> Lost {
    match message {
        FromHolder::Refused { why } => Lost::Holder(why),
        FromHolder::Superseded => Lost::Superseded,
        _ => Lost::Holder("its holder spoke out of turn".into()),
    }
}
