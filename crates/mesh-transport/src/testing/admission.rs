//! Membership kept in memory: the real checks on the real forms.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::BoxFuture;
use mesh_identity::{
    AdmissionRequest, Authority, Grant, InviteError, InviteOptions, InviteToken, MemoryLedger, NodeId,
    RevocationSet, ScopeId, SignedGrant, SignedRevocation, UnixTime, redeem,
};

use crate::{admission::Admission, error::Refusal};

/// What one node knows of the scopes it is in.
#[derive(Default)]
pub struct TestAdmission {
    scopes: Mutex<BTreeMap<ScopeId, Membership>>,
}

struct Membership {
    grant: Arc<SignedGrant>,
    authority: Option<Arc<Authority>>,
    ledger: Arc<MemoryLedger>,
    revoked: RevocationSet,
}

impl TestAdmission {
    /// Shows this grant in its scope from now on.
    pub fn join(&self, grant: SignedGrant) {
        let scope = grant.scope();
        let (ledger, revoked) = (Arc::default(), RevocationSet::new(scope));
        self.lock().insert(scope, Membership { grant: Arc::new(grant), authority: None, ledger, revoked });
    }

    /// Admits others from now on. The scope must have been joined.
    ///
    /// # Panics
    /// If it was not.
    pub fn appoint(&self, authority: Authority) {
        let mut scopes = self.lock();
        let membership = scopes.get_mut(&authority.scope()).expect("joined before");
        membership.authority = Some(Arc::new(authority));
    }

    /// Is no member any more.
    pub fn leave(&self, scope: &ScopeId) {
        self.lock().remove(scope);
    }

    /// Signs an invite with this node's authority.
    ///
    /// # Panics
    /// If it has none, or the options are wrong.
    pub fn invite(&self, scope: &ScopeId, options: &InviteOptions) -> InviteToken {
        let authority = self.lock().get(scope).and_then(|m| m.authority.clone()).expect("may admit");
        authority.issue_invite(options, UnixTime::now()).expect("options are good")
    }

    /// How many nodes have used the invite.
    pub fn uses(&self, token: &InviteToken) -> usize {
        self.lock().get(&token.scope()).map_or(0, |m| m.ledger.holders(&token.id()).len())
    }

    /// Revokes an invite in this node's ledger.
    pub fn revoke_invite(&self, token: &InviteToken) {
        if let Some(membership) = self.lock().get(&token.scope()) {
            membership.ledger.revoke(token.id());
        }
    }

    /// Takes in a signed revocation.
    ///
    /// # Panics
    /// If it does not verify.
    pub fn revoke(&self, scope: &ScopeId, revocation: &SignedRevocation) {
        let verified = revocation.verify(scope, UnixTime::now()).expect("a good revocation");
        if let Some(membership) = self.lock().get_mut(scope) {
            membership.revoked.insert(verified);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ScopeId, Membership>> {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admission for TestAdmission {
    fn credential(&self, scope: &ScopeId) -> Option<Arc<SignedGrant>> {
        self.lock().get(scope).map(|m| m.grant.clone())
    }

    fn check(&self, scope: &ScopeId, subject: NodeId, grant: &SignedGrant) -> Result<Grant, Refusal> {
        let scopes = self.lock();
        let membership = scopes.get(scope).ok_or(Refusal::NotAdmitted)?;
        let grant = grant
            .verify(scope, UnixTime::now(), &membership.revoked)
            .map_err(|error| Refusal::from(&error))?;
        if grant.subject != subject {
            return Err(Refusal::NotAdmitted);
        }
        Ok(grant)
    }

    fn admit(
        &self,
        scope: &ScopeId,
        proved: NodeId,
        request: AdmissionRequest,
    ) -> BoxFuture<'_, Result<SignedGrant, InviteError>> {
        let found =
            self.lock().get(scope).map(|m| (m.authority.clone(), m.ledger.clone(), m.revoked.clone()));
        Box::pin(async move {
            let (authority, ledger, revoked) = found.ok_or(InviteError::WrongScope)?;
            let authority = authority.ok_or(InviteError::WrongIssuer)?;
            redeem(&authority, &request, proved, &*ledger, &revoked, UnixTime::now()).await
        })
    }
}
