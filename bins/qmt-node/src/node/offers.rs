//! What a node says of itself in gossip: its offers of models and its own facts, as JSON values of bounded size.

use mesh_identity::Role;
use serde::{Deserialize, Serialize};

/// Values are cut so that each stays within gossip's bound of 4 KiB.
const VALUE_BYTES_MAX: usize = 4 * 1024;
/// Values used for offers to one audience at most; about 300 models.
const VALUES_MAX: usize = 6;
/// The key of the node's own facts.
pub(crate) const NODE_KEY: &str = "node";

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
    let mut rest = offers.iter();
    let mut next = rest.next();
    offer_keys(audience)
        .map(|key| {
            let mut value = Vec::new();
            while let Some(offer) = next {
                let Ok(json) = serde_json::to_vec(offer) else { break };
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

/// The offers to one audience out of a member's values; what cannot be read is left out.
pub(crate) fn decode_offers<'a>(audience: Role, value: impl Fn(&str) -> Option<&'a [u8]>) -> Vec<OfferFacts> {
    offer_keys(audience)
        .filter_map(|key| value(&key))
        .filter_map(|bytes| serde_json::from_slice::<Vec<OfferFacts>>(bytes).ok())
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
    fn foreign_values_are_left_out() {
        assert_eq!(decode_offers(Role::Client, |_| Some(b"not json".as_slice())), []);
        let newer = br#"[{"model":"m","state":"hibernating","extra":1}]"#;
        let read = decode_offers(Role::Client, |key| key.ends_with("/0").then_some(newer.as_slice()));
        assert_eq!(read[0].state, OfferState::Unknown);
    }
}
