//! Copies of answers at another member, so that they outlive the gateway that gave them: `replica/1`.
//!
//! A gateway keeps the answers that their callers asked to be able to resume, each as a log of numbered events, and has
//! one member keep a copy of each. The copy is ahead of the caller: an event is sent once the copy has it.

mod holder;
mod store;
mod wire;
mod writer;

use std::fmt;
use std::str::FromStr;

use mesh_identity::{NodeId, ScopeId};
use mesh_transport::Protocol;

pub(crate) use holder::ReplicaHandler;
pub(crate) use store::{Log, Question, Store, Turn, Unwritten};
pub(crate) use writer::{Found, Lost, Replica};

/// Keeping and fetching copies of answers, one answer on each stream.
pub(crate) const PROTOCOL: Protocol = Protocol::new("replica/1");

/// What names an answer: 128 random bits, since whoever knows it may read the answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct AnswerId([u8; 16]);

impl AnswerId {
    /// None when the system has no randomness to give.
    pub(crate) fn random() -> Option<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).ok()?;
        Some(Self(bytes))
    }
}

/// Never in full: it is what lets one read the answer.
impl fmt::Debug for AnswerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AnswerId({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

/// A member that keeps a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Where it is a member.
    pub(crate) scope: ScopeId,
    pub(crate) node: NodeId,
}

/// The response id that a caller gets: the answer, and who holds its copy. Text: `ANSWER` or `ANSWER.SCOPE.NODE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResponseId {
    pub(crate) answer: AnswerId,
    pub(crate) holder: Option<Holder>,
}

/// The number of an event, counted from 1, and who holds the copy where the response id does not say so: a holder that is lost is
/// replaced in the middle of an answer. Text: `NUMBER` or `NUMBER.SCOPE.NODE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventId {
    pub(crate) number: usize,
    pub(crate) holder: Option<Holder>,
}

impl fmt::Display for ResponseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.answer.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        put_holder(f, self.holder)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number)?;
        put_holder(f, self.holder)
    }
}

fn put_holder(f: &mut fmt::Formatter<'_>, holder: Option<Holder>) -> fmt::Result {
    match holder {
        Some(Holder { scope, node }) => write!(f, ".{scope}.{node}"),
        None => Ok(()),
    }
}

/// Reads what [`put_holder`] wrote.
fn holder_of<'a>(mut parts: impl Iterator<Item = &'a str>) -> Result<Option<Holder>, ()> {
    match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => Ok(None),
        (Some(scope), Some(node), None) => {
            let (scope, node) = (scope.parse().map_err(|_| ())?, node.parse().map_err(|_| ())?);
            Ok(Some(Holder { scope, node }))
        }
        _ => Err(()),
    }
}

impl FromStr for ResponseId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('.');
        let answer = parts.next().filter(|hex| hex.len() == 32 && hex.bytes().all(is_hex)).ok_or(())?;
        let mut bytes = [0; 16];
        for (at, byte) in bytes.iter_mut().enumerate() {
            let pair = answer.get(at * 2..at * 2 + 2).ok_or(())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| ())?;
        }
        let holder = holder_of(parts)?;
        Ok(Self { answer: AnswerId(bytes), holder })
    }
}

impl FromStr for EventId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('.');
        let digits =
            parts.next().filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit())).ok_or(())?;
        Ok(Self { number: digits.parse().map_err(|_| ())?, holder: holder_of(parts)? })
    }
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_identity::NodeKey;
    use proptest::prelude::*;

    #[test]
    fn response_ids_come_back_from_text() {
        let answer = AnswerId([0xa7; 16]);
        let holder =
            Holder { scope: ScopeId::from_bytes([3; 32]), node: NodeKey::from_seed([1; 32]).node_id() };
        for id in [EventId { number: 0, holder: None }, EventId { number: 170, holder: Some(holder) }] {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for text in ["", "-1", "+1", "x", "1.", "1.a", "1.a.b.c"] {
            assert_eq!(text.parse::<EventId>(), Err(()), "{text}");
        }
        for id in [ResponseId { answer, holder: None }, ResponseId { answer, holder: Some(holder) }] {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert!(!format!("{answer:?}").contains("a7a7a7"));
    }

    proptest! {
        #[test]
        fn arbitrary_texts_never_panic(text in "[0-9a-z.ü+]{0,200}") {
            if let Ok(id) = text.parse::<ResponseId>() {
                prop_assert_eq!(id.to_string(), text.clone());
            }
            let _ = text.parse::<EventId>();
        }
    }
}
