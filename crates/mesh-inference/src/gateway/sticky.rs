//! Conversations stay where their beginning is in the prompt cache.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Mutex, PoisonError};

use mesh_routing::Target;
use serde::Deserialize;

use super::attempt::Maker;
use super::endpoint::Endpoint;
use super::survive::{Fields, split_value};

/// Conversations remembered, in two halves: when one is full, the older half is forgotten. 48 bytes each.
const HALF_MAX: usize = 2048;
/// Of a text completion's prompt, this much names the conversation, in bytes.
const PROMPT_BYTES: usize = 1024;

/// Who answered which conversation last.
#[derive(Debug, Default)]
pub(crate) struct Sticky {
    halves: Mutex<Halves>,
}

#[derive(Debug, Default)]
struct Halves {
    young: HashMap<u64, Maker>,
    old: HashMap<u64, Maker>,
}

impl Sticky {
    pub(crate) fn last(&self, conversation: u64) -> Option<Maker> {
        let halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        halves.young.get(&conversation).or_else(|| halves.old.get(&conversation)).copied()
    }

    pub(crate) fn note(&self, conversation: u64, maker: Maker) {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        if halves.young.len() >= HALF_MAX && !halves.young.contains_key(&conversation) {
            halves.old = std::mem::take(&mut halves.young);
        }
        halves.young.insert(conversation, maker);
    }
}

/// Puts the peer that answered last first, if routing names it at all: it names neither the unhealthy nor the full.
pub(crate) fn prefer(targets: &mut [Target], last: Option<Maker>) {
    let Some(Maker::Peer(last)) = last else { return };
    let at = targets.iter().position(|target| matches!(target, Target::Peer { node, .. } if *node == last));
    if let Some(at) = at {
        targets[..=at].rotate_right(1);
    }
}

/// What stays the same of a conversation as it grows: the model, and the messages up to the first of the user, or the
/// beginning of the prompt. None for requests that have neither.
pub(crate) fn conversation(
    hasher: &RandomState,
    endpoint: Endpoint,
    model: &str,
    body: &[u8],
) -> Option<u64> {
    let fields = Fields::of(body)?;
    let mut hash = hasher.build_hasher();
    model.hash(&mut hash);
    match endpoint {
        Endpoint::Chat => hash.write(beginning(fields.raw("messages")?)?.as_bytes()),
        Endpoint::Completions => {
            let prompt = fields.raw("prompt")?.as_bytes();
            hash.write(&prompt[..prompt.len().min(PROMPT_BYTES)]);
        }
        Endpoint::Embeddings | Endpoint::Responses => return None,
    }
    Some(hash.finish())
}

/// The messages up to and with the first of the user, as they stand.
fn beginning(messages: &str) -> Option<&str> {
    #[derive(Deserialize)]
    struct Speaker {
        role: String,
    }
    let inner = messages.strip_prefix('[')?;
    let mut rest = inner;
    loop {
        let (message, behind) = split_value(rest.trim_start_matches([' ', '\t', '\r', '\n', ',']))?;
        let speaker: Speaker = serde_json::from_str(message).ok()?;
        if speaker.role == "user" {
            return inner.get(..inner.len() - behind.len());
        }
        rest = behind;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_identity::{NodeId, NodeKey, ScopeId};

    fn node(seed: u8) -> NodeId {
        NodeKey::from_seed([seed; 32]).node_id()
    }

    #[test]
    fn a_conversation_is_known_by_its_beginning() {
        let hasher = RandomState::new();
        let chat = |messages: &str| {
            let body = format!("{{\"model\":\"m\",\"messages\":[{messages}]}}");
            conversation(&hasher, Endpoint::Chat, "m", body.as_bytes())
        };
        let (system, one) = (r#"{"role":"system","content":"be"}"#, r#"{"role":"user","content":"one"}"#);
        let grown = format!(
            "{system}, {one},{{\"role\":\"assistant\",\"content\":\"[]\"}},{{\"role\":\"user\",\"content\":\"two\"}}"
        );
        assert!(chat(&format!("{system}, {one}")).is_some());
        assert_eq!(chat(&format!("{system}, {one}")), chat(&grown));
        assert_ne!(
            chat(&format!("{system}, {one}")),
            chat(&format!("{system}, {}", one.replace("one", "two")))
        );
        assert_eq!(chat(system), None, "nobody has asked anything");
        for odd in ["", "1", "{}", "{\"role\":7}", "{"] {
            assert_eq!(chat(odd), None, "{odd}");
        }
        let text = |prompt: &str| {
            conversation(
                &hasher,
                Endpoint::Completions,
                "m",
                format!("{{\"prompt\":\"{prompt}\"}}").as_bytes(),
            )
        };
        let long = "x".repeat(PROMPT_BYTES);
        assert_eq!(text(&format!("{long}a")), text(&format!("{long}b")));
        assert_ne!(text("a"), text("b"));
    }

    #[test]
    fn the_peer_of_the_last_answer_comes_first() {
        let target = |seed| Target::Peer { scope: ScopeId::from_bytes([1; 32]), node: node(seed) };
        let mut targets = [Target::Local, target(1), target(2)];
        prefer(&mut targets, Some(Maker::Peer(node(2))));
        assert_eq!(targets, [target(2), Target::Local, target(1)]);
        prefer(&mut targets, Some(Maker::Peer(node(9))));
        prefer(&mut targets, None);
        assert_eq!(targets, [target(2), Target::Local, target(1)]);
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let sticky = Sticky::default();
        for conversation in 0..10_000 {
            sticky.note(conversation, Maker::Backend(conversation));
            sticky.note(7, Maker::Backend(7));
        }
        assert_eq!(sticky.last(9_999), Some(Maker::Backend(9_999)));
        assert_eq!(sticky.last(7), Some(Maker::Backend(7)));
        assert_eq!(sticky.last(8), None);
        let halves = sticky.halves.lock().unwrap();
        assert!(halves.young.len() + halves.old.len() <= 2 * HALF_MAX);
    }
}
