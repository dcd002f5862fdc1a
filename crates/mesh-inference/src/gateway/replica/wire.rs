//! The messages of `replica/1`. Wire types: a change is a new version of the protocol.

use serde::{Deserialize, Serialize};

use super::AnswerId;
use crate::gateway::endpoint::Endpoint;

/// Largest message. A request of this size is larger than all but those with images, which are not copied.
pub(crate) const MESSAGE_MAX: usize = 2 * 1024 * 1024;
/// Events are sent in messages of about this size, so that one message is no long wait for another answer's.
pub(crate) const EVENTS_BYTES: usize = 64 * 1024;

/// From the gateway that gives the answer, or takes it over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ToHolder {
    /// Keep this new answer. First message of a stream.
    Keep { answer: [u8; 16], question: WireQuestion },
    /// Give me this answer from this event on (counted from 0); I write it from now on. First message of a stream.
    Take { answer: [u8; 16], from: u64 },
    /// The next events.
    Append { events: Vec<Vec<u8>> },
    /// The answer is complete.
    Over,
}

/// From the holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromHolder {
    /// To [`ToHolder::Keep`]: it will be kept.
    Ready,
    /// To the first message: no. To a later one: there is no room for more.
    Refused { why: String },
    /// To [`ToHolder::Take`]: what was asked; the events follow, as many as are asked for of `events`.
    Found { question: WireQuestion, events: u64, over: bool },
    /// Events of the log, in order.
    Events { events: Vec<Vec<u8>> },
    /// Everything up to this number of events is kept.
    Held { events: u64 },
    /// Another gateway writes this answer now, or it is forgotten.
    Superseded,
}

/// The request behind an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WireQuestion {
    pub(crate) chat: bool,
    pub(crate) model: String,
    pub(crate) body: Vec<u8>,
}

impl WireQuestion {
    pub(crate) fn endpoint(&self) -> Endpoint {
        if self.chat { Endpoint::Chat } else { Endpoint::Completions }
    }
}

impl From<AnswerId> for [u8; 16] {
    fn from(id: AnswerId) -> Self {
        id.0
    }
}

impl From<[u8; 16]> for AnswerId {
    fn from(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

/// Cuts a log into messages.
pub(crate) fn batches(events: &[bytes::Bytes]) -> impl Iterator<Item = Vec<Vec<u8>>> {
    let mut rest = events.iter().peekable();
    std::iter::from_fn(move || {
        rest.peek()?;
        let mut batch: Vec<Vec<u8>> = Vec::new();
        let mut bytes = 0;
        while let Some(event) = rest.next_if(|event| batch.is_empty() || bytes + event.len() <= EVENTS_BYTES)
        {
            bytes += event.len();
            batch.push(event.to_vec());
        }
        Some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_transport::{FrameReader, write_message};

    async fn bytes_of<T: Serialize>(message: T) -> Vec<u8> {
        let mut out = Vec::new();
        write_message(&mut out, &message, MESSAGE_MAX).await.unwrap();
        out
    }

    #[tokio::test]
    async fn golden_bytes() {
        let question = WireQuestion { chat: true, model: "m".into(), body: b"{}".to_vec() };
        let keep = ToHolder::Keep { answer: [7; 16], question: question.clone() };
        assert_eq!(
            bytes_of(&keep).await,
            [&[0, 0, 0, 23, 0][..], &[7; 16], &[1, 1, b'm', 2, b'{', b'}']].concat()
        );
        assert_eq!(
            bytes_of(ToHolder::Append { events: vec![b"x".to_vec()] }).await,
            [0, 0, 0, 4, 2, 1, 1, b'x']
        );
        assert_eq!(bytes_of(ToHolder::Over).await, [0, 0, 0, 1, 3]);
        assert_eq!(bytes_of(FromHolder::Ready).await, [0, 0, 0, 1, 0]);
        assert_eq!(bytes_of(FromHolder::Held { events: 300 }).await, [0, 0, 0, 3, 4, 0xac, 2]);
        let found = bytes_of(FromHolder::Found { question, events: 2, over: false }).await;
        let read: Option<FromHolder> =
            FrameReader::new(&found[..], MESSAGE_MAX).next_message().await.unwrap();
        assert!(matches!(read, Some(FromHolder::Found { events: 2, over: false, .. })));
    }

    #[test]
    fn logs_are_cut_into_messages() {
        let events: Vec<bytes::Bytes> = [10, EVENTS_BYTES, 5, 5].map(|size| vec![b'x'; size].into()).into();
        let sizes: Vec<usize> = batches(&events).map(|batch| batch.len()).collect();
        assert_eq!(sizes, [1, 1, 2]);
    }
}
