//! Where peers can be dialed, per scope.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use mesh_identity::{NodeAddr, NodeId, ScopeId};
use tokio::sync::watch;

use crate::connection::Found;

/// Nodes that drivers have found, remembered at once; a driver bounds its own further.
const FOUND_MAX: usize = 4096;

/// Addresses of peers, per scope; bounded. Cheap to share by reference.
///
/// What drivers find by themselves is kept beside, since a network knows no scopes: it is dialed in every scope in which
/// the node is wanted, after what is known there.
#[derive(Debug)]
pub struct AddressBook {
    entries: Mutex<BTreeMap<(ScopeId, NodeId), NodeAddr>>,
    entries_max: usize,
    found: watch::Sender<BTreeMap<NodeId, NodeAddr>>,
    /// Counts changes of `entries`.
    changes: watch::Sender<u64>,
}

impl AddressBook {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self {
            entries: Mutex::default(),
            entries_max,
            found: watch::Sender::default(),
            changes: watch::Sender::default(),
        }
    }

    /// Remembers the address, in place of an older one. `false` if the book is full and the node is new in it.
    pub fn insert(&self, scope: ScopeId, node: NodeId, addr: NodeAddr) -> bool {
        let mut entries = self.lock();
        if entries.len() >= self.entries_max && !entries.contains_key(&(scope, node)) {
            return false;
        }
        if entries.insert((scope, node), addr.clone()) != Some(addr) {
            self.changes.send_modify(|changes| *changes += 1);
        }
        true
    }

    /// The address last remembered for the node in this scope.
    pub fn get(&self, scope: &ScopeId, node: &NodeId) -> Option<NodeAddr> {
        self.lock().get(&(*scope, *node)).cloned()
    }

    /// Forgets one node in one scope.
    pub fn remove(&self, scope: &ScopeId, node: &NodeId) {
        self.lock().remove(&(*scope, *node));
    }

    /// Forgets everything about a scope.
    pub fn remove_scope(&self, scope: &ScopeId) {
        self.lock().retain(|(s, _), _| s != scope);
    }

    /// The nodes of a scope with an address, in order of their ids.
    pub fn nodes(&self, scope: &ScopeId) -> Vec<NodeId> {
        self.lock().keys().filter(|(s, _)| s == scope).map(|(_, node)| *node).collect()
    }

    /// The nodes that drivers have found, whatever scopes they are in; the value is the latest. Nothing about them is
    /// proved before a link is.
    pub fn found(&self) -> watch::Receiver<BTreeMap<NodeId, NodeAddr>> {
        self.found.subscribe()
    }

    /// Counts the changes of what is known in scopes.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether a driver has found the node.
    pub(crate) fn is_found(&self, node: &NodeId) -> bool {
        self.found.borrow().contains_key(node)
    }

    pub(crate) fn set_found(&self, Found { node, addr }: Found) {
        self.found.send_if_modified(|found| {
            if addr.is_empty() {
                return found.remove(&node).is_some();
            }
            let room = found.len() < FOUND_MAX || found.contains_key(&node);
            room && found.insert(node, addr.clone()).is_none_or(|before| before != addr)
        });
    }

    /// Where to dial the node in this scope: what is known there, then what was found.
    pub fn to_dial(&self, scope: &ScopeId, node: &NodeId) -> NodeAddr {
        self.with_found(node, self.get(scope, node).unwrap_or_default())
    }

    /// The address, and behind it what drivers have found of the node.
    pub(crate) fn with_found(&self, node: &NodeId, mut addr: NodeAddr) -> NodeAddr {
        if let Some(found) = self.found.borrow().get(node) {
            for (known, found) in [(&mut addr.direct, &found.direct), (&mut addr.lan, &found.lan)] {
                let new: Vec<_> = found.iter().filter(|one| !known.contains(one)).copied().collect();
                known.extend(new);
            }
        }
        addr
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(ScopeId, NodeId), NodeAddr>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use mesh_identity::NodeKey;

    use super::*;

    fn addr(texts: &[&str]) -> NodeAddr {
        let lan = texts.iter().map(|text| text.parse().expect("an address")).collect();
        NodeAddr { lan, ..NodeAddr::default() }
    }

    #[test]
    fn what_was_found_is_dialed_after_what_is_known_and_in_any_scope() {
        let book = AddressBook::new(10);
        let (one, two) = (ScopeId::lan(Some(b"1")), ScopeId::lan(Some(b"2")));
        let node = NodeKey::from_seed([1; 32]).node_id();
        book.insert(one, node, addr(&["192.0.2.1:1", "192.0.2.2:1"]));
        book.set_found(Found { node, addr: addr(&["192.0.2.2:1", "192.0.2.3:1"]) });
        assert_eq!(book.to_dial(&one, &node), addr(&["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"]));
        assert_eq!(book.to_dial(&two, &node), addr(&["192.0.2.2:1", "192.0.2.3:1"]));
        assert_eq!(book.get(&two, &node), None, "nothing of it is of a scope");
        book.set_found(Found { node, addr: NodeAddr::default() });
        assert_eq!(book.to_dial(&two, &node), NodeAddr::default());
    }

    #[test]
    fn subscribers_are_told_of_changes_alone() {
        let book = AddressBook::new(10);
        let node = NodeKey::from_seed([1; 32]).node_id();
        let mut found = book.found();
        book.set_found(Found { node, addr: addr(&["192.0.2.1:1"]) });
        assert_eq!(found.borrow_and_update().get(&node), Some(&addr(&["192.0.2.1:1"])));
        book.set_found(Found { node, addr: addr(&["192.0.2.1:1"]) });
        assert!(!found.has_changed().expect("the book lives"));
        book.set_found(Found { node, addr: NodeAddr::default() });
        assert!(found.has_changed().expect("the book lives") && found.borrow().is_empty());
    }
}
