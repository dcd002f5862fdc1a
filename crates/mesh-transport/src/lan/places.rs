//! Places that strangers take up: so many in all, and so many from one address.

use std::{collections::HashMap, hash::Hash, net::IpAddr};

/// Who holds a place, and from where.
pub(super) struct Places<K> {
    held: HashMap<K, Option<IpAddr>>,
    all_max: usize,
    per_address_max: usize,
}

impl<K: Copy + Eq + Hash> Places<K> {
    pub(super) fn new(all_max: usize, per_address_max: usize) -> Self {
        Self { held: HashMap::new(), all_max, per_address_max }
    }

    /// Takes a place; `false` when there is none for that address. Those without an address (relayed) share one limit.
    pub(super) fn enter(&mut self, key: K, from: Option<IpAddr>) -> bool {
        let from_there = self.held.values().filter(|other| **other == from).count();
        if self.held.len() >= self.all_max || from_there >= self.per_address_max {
            return false;
        }
        self.held.insert(key, from);
        true
    }

    /// Gives a place back, if it was held.
    pub(super) fn leave(&mut self, key: K) {
        self.held.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_all_and_for_each_address() {
        let mut places = Places::new(3, 2);
        let (here, there) = (Some(IpAddr::from([192, 0, 2, 1])), Some(IpAddr::from([192, 0, 2, 2])));
        assert!(places.enter(1, here) && places.enter(2, here));
        assert!(!places.enter(3, here));
        assert!(places.enter(3, there));
        assert!(!places.enter(4, there), "full");
        places.leave(1);
        assert!(places.enter(4, here));
        places.leave(9);
        assert!(!places.enter(5, there));
    }
}
