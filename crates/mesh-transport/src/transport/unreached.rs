//! Why peers that were dialed have no link: for people who ask.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use mesh_identity::{NodeId, ScopeId};

use crate::error::DialError;

/// Failures remembered at once: those of a mesh of a thousand nodes in some scopes. What is over is not remembered.
const FAILURES_MAX: usize = 4096;

/// The last failed dial of each peer that has no link.
#[derive(Default)]
pub(super) struct Unreached(Mutex<BTreeMap<(ScopeId, NodeId), DialError>>);

impl Unreached {
    /// A dial has failed.
    pub(super) fn note(&self, scope: ScopeId, node: NodeId, error: DialError) {
        let mut failures = self.lock();
        if failures.len() < FAILURES_MAX || failures.contains_key(&(scope, node)) {
            failures.insert((scope, node), error);
        }
    }

    /// There is a link.
    pub(super) fn forget(&self, scope: &ScopeId, node: &NodeId) {
        self.lock().remove(&(*scope, *node));
    }

    /// The scope was left.
    pub(super) fn forget_scope(&self, scope: &ScopeId) {
        self.lock().retain(|(of, _), _| of != scope);
    }

    pub(super) fn why(&self, scope: &ScopeId, node: &NodeId) -> Option<DialError> {
        self.lock().get(&(*scope, *node)).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(ScopeId, NodeId), DialError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
