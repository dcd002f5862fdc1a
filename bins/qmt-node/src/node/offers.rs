//! What a node says of itself in gossip: its offers of models and its own facts, as JSON values of bounded size.

use mesh_identity::Role;
use mesh_routing::Load;
use serde::{Deserialize, Serialize};

/// Values are cut so that each stays within gossip's bound of 4 KiB.
const VALUE_BYTES_MAX: usize = 4 * 1024;
/// Values used for offers to one audience at most; about 300 models.
const VALUES_MAX: usize = 6;
/// The key of the node's own facts.
pub(crate) const NODE_KEY: &str = "node";

/// The key of the node's load.
pub(crate) const LOAD_KEY: &str = "load";

/// How busy a node's models are: a word that holds for half a minute. What is exact comes with each answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LoadClass {
    /// Nothing is under way.
    Idle,
    /// Less than half of what it works on at a time.
    Light,
    /// Half of it or more.
    Busy,
    /// Requests wait.
    Full,
    /// A word that this version does not know, or none.
    #[default]
    #[serde(other)]
    Unknown,
}

impl LoadClass {
    /// The class of the requests under way at all models of a node. One model of unknown slots counts as one slot.
    pub(crate) fn of(load: Load) -> Self {
        match (load.running + load.waiting, u64::from(load.slots.unwrap_or(1).max(1))) {
            (0, _) => Self::Idle,
            (all, slots) if u64::from(all) >= slots => Self::Full,
            (all, slots) if u64::from(all) * 2 >= slots => Self::Busy,
            _ => Self::Light,
        }
    }

    /// A member's word; anything else is no word.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    /// Requests to count in for a node of which nothing better is known: enough to prefer one that has less to do.
    pub(crate) fn under_way(self) -> u32 {
        match self {
            Self::Idle | Self::Unknown => 0,
            Self::Light => 1,
            Self::Busy => 4,
            Self::Full => 16,
        }
    }
}

/// What a node is and has. Readers ignore fields they do not know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct NodeFacts {
    pub(crate) version: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) labels: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<MemoryFacts>,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryFacts {
    pub(crate) total: u64,
    pub(crate) free: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cap: Option<u64>,
}

/// One model that a node offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OfferFacts {
    pub(crate) model: String,
    pub(crate) state: OfferState,
    /// True for a backend that somebody else runs.
    #[serde(default)]
    pub(crate) provider: bool,
    /// Requests that it works on at a time, where bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) slots: Option<usize>,
    /// Size of its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) size_bytes: Option<u64>,
    /// Tokens of context of one request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) context_tokens: Option<u64>,
    /// How the state came about, for people; not sent for a model that is ready.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OfferState {
    Ready,
    Loading,
    Failed,
    Stopped,
    #[serde(other)]
    Unknown,
}

/// Keys of the offers to one audience.
fn offer_keys(audience: Role) -> impl Iterator<Item = String> {
    (0..VALUES_MAX).map(move |at| format!("offers/{audience}/{at}"))
}

/// The values to publish for one audience, every key included: an empty one clears what was there before.
pub(crate) fn encode_offers(audience: Role, offers: &[OfferFacts]) -> Vec<(String, Vec<u8>)> {
    encode_list(offer_keys(audience), offers)
}

/// The offers to one audience out of a member's values; what cannot be read is left out.
pub(crate) fn decode_offers<'a>(audience: Role, value: impl Fn(&str) -> Option<&'a [u8]>) -> Vec<OfferFacts> {
    decode_list(offer_keys(audience), value)
}

/// A list in as many values as it takes, each within gossip's bound; what finds no room in the last one is left out.
pub(crate) fn encode_list<T: Serialize>(
    keys: impl Iterator<Item = String>,
    items: &[T],
) -> Vec<(String, Vec<u8>)> {
    let mut rest = items.iter();
    let mut next = rest.next();
    keys.map(|key| {
        let mut value = Vec::new();
        while let Some(item) = next {
            let Ok(json) = serde_json::to_vec(item) else { break };
            if value.len() + json.len() + 2 > VALUE_BYTES_MAX {
                if json.len() + 2 > VALUE_BYTES_MAX {
                    next = rest.next(); // longer than any value: a name of 4 KiB is nobody's model
                    continue;
                }
                break;
            }
            value.push(if value.is_empty() { b'[' } else { b',' });
            value.extend_from_slice(&json);
            next = rest.next();
        }
        if !value.is_empty() {
            value.push(b']');
        }
        (key, value)
    })
    .collect()
}

/// What [`encode_list`] wrote; what cannot be read is left out.
pub(crate) fn decode_list<'a, T: serde::de::DeserializeOwned>(
    keys: impl Iterator<Item = String>,
    value: impl Fn(&str) -> Option<&'a [u8]>,
) -> Vec<T> {
    keys.filter_map(|key| value(&key))
        .filter_map(|bytes| serde_json::from_slice::<Vec<T>>(bytes).ok())
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn offer(model: String) -> OfferFacts {
        OfferFacts {
            model,
            state: OfferState::Ready,
            provider: false,
            slots: Some(4),
            size_bytes: Some(4_000_000_000),
            context_tokens: Some(4096),
            detail: String::new(),
        }
    }

    fn round_trip(offers: &[OfferFacts]) -> Vec<OfferFacts> {
        let values: BTreeMap<String, Vec<u8>> = encode_offers(Role::Member, offers).into_iter().collect();
        assert!(values.values().all(|value| value.len() <= VALUE_BYTES_MAX));
        decode_offers(Role::Member, |key| values.get(key).map(Vec::as_slice))
    }

    #[test]
    fn offers_survive_the_record_and_are_cut_to_its_bounds() {
        assert_eq!(round_trip(&[]), []);
        let few: Vec<_> = (0..3).map(|at| offer(format!("model-{at}"))).collect();
        assert_eq!(round_trip(&few), few);
        let many: Vec<_> = (0..5_000).map(|at| offer(format!("model-{at}"))).collect();
        let kept = round_trip(&many);
        assert!(kept.len() > 200 && kept[..] == many[..kept.len()]);
        let odd = [offer("x".repeat(5_000)), offer("small".to_owned())];
        assert_eq!(round_trip(&odd), odd[1..]);
    }

    #[test]
    fn a_load_is_a_word_and_unknown_words_say_nothing() {
        let class = |running, waiting, slots| LoadClass::of(Load { running, waiting, slots });
        assert_eq!(
            [class(0, 0, Some(4)), class(1, 0, Some(4)), class(2, 0, Some(4)), class(4, 1, Some(4))],
            [LoadClass::Idle, LoadClass::Light, LoadClass::Busy, LoadClass::Full]
        );
        assert_eq!([class(0, 0, None), class(1, 0, None)], [LoadClass::Idle, LoadClass::Full]);
        assert_eq!(serde_json::to_string(&LoadClass::Light).expect("a word"), "\"light\"");
        assert_eq!(LoadClass::read(b"\"full\""), LoadClass::Full);
        assert_eq!(LoadClass::read(b"\"frantic\"").under_way(), 0);
        assert_eq!(LoadClass::read(b"not json"), LoadClass::Unknown);
    }

    #[test]
    fn foreign_values_are_left_out() {
        assert_eq!(decode_offers(Role::Client, |_| Some(b"not json".as_slice())), []);
        let newer = br#"[{"model":"m","state":"hibernating","extra":1}]"#;
        let read = decode_offers(Role::Client, |key| key.ends_with("/0").then_some(newer.as_slice()));
        assert_eq!(read[0].state, OfferState::Unknown);
    }
}
