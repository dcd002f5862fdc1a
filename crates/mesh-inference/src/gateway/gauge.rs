//! How many requests each backend, or each peer, has here in this moment.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts by key. Cheap to clone; keys without requests take no memory.
#[derive(Debug)]
pub(crate) struct Gauge<K> {
    counts: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K> Clone for Gauge<K> {
    fn clone(&self) -> Self {
        Self { counts: self.counts.clone() }
    }
}

impl<K> Default for Gauge<K> {
    fn default() -> Self {
        Self { counts: Arc::default() }
    }
}

impl<K: Hash + Eq + Clone> Gauge<K> {
    /// Counts one request until the returned value is dropped; None when `key` already has `max`.
    pub(crate) fn enter(&self, key: &K, max: usize) -> Option<Entered<K>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(key) {
            Some(count) if *count >= max => return None,
            Some(count) => *count += 1,
            None if max == 0 => return None,
            None => {
                counts.insert(key.clone(), 1);
            }
        }
        Some(Entered { gauge: self.clone(), key: key.clone() })
    }

    pub(crate) fn count(&self, key: &K) -> usize {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied().unwrap_or(0)
    }
}

/// One counted request.
#[derive(Debug)]
pub(crate) struct Entered<K: Hash + Eq> {
    gauge: Gauge<K>,
    key: K,
}

impl<K: Hash + Eq> Drop for Entered<K> {
    fn drop(&mut self) {
        let mut counts = self.gauge.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_up_to_the_bound_and_forgets_idle_keys() {
        let gauge = Gauge::default();
        let first = gauge.enter(&"a", 2).unwrap();
        let second = gauge.enter(&"a", 2).unwrap();
        assert!(gauge.enter(&"a", 2).is_none());
        assert!(gauge.enter(&"b", 1).is_some());
        drop(first);
        assert_eq!(gauge.count(&"a"), 1);
        drop(second);
        assert!(gauge.counts.lock().unwrap().is_empty());
    }
}
