//! Two nodes with one key: told to whoever looks, with what to do about it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_identity::NodeId;

use super::Node;

/// Keys remembered at once; who copies more knows it.
const KEYS_MAX: usize = 16;
/// How often the same is logged again.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// How long it is shown after it was last noticed: two nodes that are still there are noticed again before.
const SHOWN: Duration = Duration::from_secs(900);

/// What to do about it.
pub(super) const MEND: &str =
    "delete mesh_identity.key in ~/.qmt of one of the two machines, restart its node, and join anew with it";

/// Keys that are in use at two nodes.
#[derive(Default)]
pub(super) struct CopiedKeys(Mutex<BTreeMap<NodeId, Copied>>);

struct Copied {
    sentence: String,
    noticed: Instant,
    logged: Option<Instant>,
}

impl CopiedKeys {
    /// Notes it; the sentence, if it is time to log it.
    fn note(&self, node: NodeId, sentence: String, now: Instant) -> Option<String> {
        let mut keys = self.lock();
        keys.retain(|_, copied| now.duration_since(copied.noticed) < SHOWN);
        if keys.len() >= KEYS_MAX && !keys.contains_key(&node) {
            return None;
        }
        let logged = keys.get(&node).and_then(|copied| copied.logged);
        let is_due = logged.is_none_or(|last| now.duration_since(last) >= LOG_EVERY);
        let logged = if is_due { Some(now) } else { logged };
        keys.insert(node, Copied { sentence: sentence.clone(), noticed: now, logged });
        is_due.then_some(sentence)
    }

    /// One sentence for each key.
    pub(super) fn sentences(&self, now: Instant) -> Vec<String> {
        let keys = self.lock();
        let shown = keys.values().filter(|copied| now.duration_since(copied.noticed) < SHOWN);
        shown.map(|copied| copied.sentence.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Copied>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Two nodes are alive that have this id.
    pub(super) async fn note_copied_key(&self, node: NodeId, places: &str) {
        let sentence = if node == self.id() {
            format!("another node uses the key of this one; they are at {places}")
        } else {
            format!("two nodes use one key, with the id {}; they are at {places}", node.short())
        };
        if let Some(sentence) = self.inner.copied_keys.note(node, sentence, Instant::now()) {
            tracing::error!(mend = MEND, "{sentence}");
            self.tell_status().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_identity::NodeKey;

    use super::*;

    #[test]
    fn it_is_shown_for_a_while_and_logged_once_a_minute() {
        let node = |seed| NodeKey::from_seed([seed; 32]).node_id();
        let (keys, now) = (CopiedKeys::default(), Instant::now());
        let note = |after| keys.note(node(1), "twice".to_owned(), now + Duration::from_secs(after));
        assert_eq!(note(0).as_deref(), Some("twice"));
        assert_eq!(note(59), None);
        assert!(note(61).is_some());
        assert_eq!(keys.sentences(now + Duration::from_secs(61)), ["twice"]);
        assert!(keys.sentences(now + Duration::from_secs(61) + SHOWN).is_empty());
        for seed in 2..100 {
            keys.note(node(seed), "twice".to_owned(), now + Duration::from_secs(61));
        }
        assert_eq!(keys.sentences(now + Duration::from_secs(61)).len(), KEYS_MAX);
    }
}
