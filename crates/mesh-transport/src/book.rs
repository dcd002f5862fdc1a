//! Where peers can be dialed, per scope.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use mesh_identity::{NodeAddr, NodeId, ScopeId};

/// Addresses of peers, per scope; bounded. Cheap to share by reference.
#[derive(Debug)]
pub struct AddressBook {
    entries: Mutex<BTreeMap<(ScopeId, NodeId), NodeAddr>>,
    entries_max: usize,
}

impl AddressBook {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self { entries: Mutex::default(), entries_max }
    }

    /// Remembers the address, in place of an older one. `false` if the book is full and the node is new in it.
    pub fn insert(&self, scope: ScopeId, node: NodeId, addr: NodeAddr) -> bool {
        let mut entries = self.lock();
        if entries.len() >= self.entries_max && !entries.contains_key(&(scope, node)) {
            return false;
        }
        entries.insert((scope, node), addr);
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

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(ScopeId, NodeId), NodeAddr>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
