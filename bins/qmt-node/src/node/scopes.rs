//! The scopes this node is in: its grants, its authority to admit, and what is revoked. Asked by the transport at every hello.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures_util::future::BoxFuture;
use mesh_identity::{
    AdmissionRequest, Authority, Chain, Expiry, Grant, GrantError, Insertion, InviteError, InviteId,
    InviteToken, NodeId, NodeKey, NodeName, Revocation, RevocationSet, Revoked, ScopeId, ScopeRoot,
    SignedGrant, UnixTime, redeem,
};
use mesh_transport::{Admission, Refusal};
use tokio::sync::mpsc;

use super::uninvited::Uninvited;
use crate::store::audit::{Entry, Kind};
use crate::store::{Recorded, Store};

/// Announcements of admissions that may wait for the node's task; more are dropped, since the ledger has them.
const ADMITTED_MAX: usize = 64;

/// Grants of others that are kept from hello, to tell later what a revocation ended: as many as twice the members of a
/// scope, at half a kilobyte each.
const SHOWN_GRANTS_MAX: usize = 4_096;

/// One scope, as this node stands in it.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    pub(crate) root: ScopeRoot,
    /// What its people call it; a local label for a scope without a name.
    pub(crate) name: String,
    pub(crate) signed: Arc<SignedGrant>,
    pub(crate) grant: Grant,
    /// What this node may admit with, if it may.
    pub(crate) authority: Option<Authority>,
    pub(crate) revoked: RevocationSet,
    /// The invite by which this node joined.
    pub(crate) invite: Option<InviteToken>,
    /// For the scope of uninvited peers: who may come, and as what.
    pub(crate) uninvited: Option<Arc<Uninvited>>,
}

impl Scope {
    /// Verifies our own grant and takes the scope up. `revoked` is what is already known to be revoked, `invite` how this
    /// node came in.
    pub(crate) fn new(
        key: &NodeKey,
        name: String,
        signed: SignedGrant,
        revoked: RevocationSet,
        invite: Option<InviteToken>,
    ) -> Result<Self, GrantError> {
        let scope = signed.scope();
        let grant = signed.verify_for(&key.node_id(), &scope, UnixTime::now(), &revoked)?;
        let root = signed.chain().root;
        let authority = if root.founder == key.node_id() {
            Authority::founder(key.clone(), root).ok()
        } else {
            Authority::from_grant(key.clone(), &signed)
        };
        let signed = Arc::new(signed);
        Ok(Self { root, name, signed, grant, authority, revoked, invite, uninvited: None })
    }

    pub(crate) fn id(&self) -> ScopeId {
        self.grant.scope
    }

    /// The authority to store beside the grant: one that the grant itself does not bring.
    pub(crate) fn later_authority(&self) -> Option<Vec<u8>> {
        let authority = self.authority.as_ref().filter(|_| !self.is_founder())?;
        let by_grant = self.signed.own_delegation().is_some_and(|own| {
            let mut chain = self.signed.chain().clone();
            chain.links.push(own.clone());
            chain == *authority.chain()
        });
        (!by_grant).then(|| authority.chain().encode())
    }

    /// Takes up an authority that was stored beside the grant, if it is the better one.
    pub(crate) fn with_later_authority(mut self, key: &NodeKey, stored: Option<&[u8]>) -> Self {
        let stored = stored
            .and_then(|form| Chain::decode(form).ok())
            .filter(|chain| chain.scope() == self.id())
            .and_then(|chain| Authority::delegated(key.clone(), chain).ok());
        self.authority = better(self.authority, stored);
        self
    }

    /// Why this node's own grant counts for nothing any more, in one sentence; none while it holds.
    pub(crate) fn end(&self, now: UnixTime) -> Option<String> {
        if self.uninvited.is_some() {
            return None;
        }
        if self.revoked.ends_grant(&self.signed) {
            return Some(format!("the membership in {} was revoked", self.name));
        }
        Expiry::at(self.grant.expires_at)
            .is_over(now)
            .then(|| format!("the membership in {} ended at {}", self.name, self.grant.expires_at))
    }

    pub(crate) fn is_founder(&self) -> bool {
        self.root.founder == self.grant.subject
    }
}

/// A renewed grant may carry a lesser authority than the one before; the better of both is kept.
pub(crate) fn better(new: Option<Authority>, old: Option<Authority>) -> Option<Authority> {
    match (new, old) {
        (Some(new), Some(old)) => Some(new.better(old, UnixTime::now())),
        (new, old) => new.or(old),
    }
}

/// A node that this one admitted.
#[derive(Debug, Clone)]
pub(crate) struct AdmittedNode {
    pub(crate) scope: ScopeId,
    pub(crate) invite: InviteId,
    pub(crate) node: NodeId,
    pub(crate) name: NodeName,
}

/// All scopes of this node.
pub(crate) struct Scopes {
    key: NodeKey,
    store: Arc<Store>,
    table: RwLock<BTreeMap<ScopeId, Scope>>,
    /// Names in use by others, by scope, so that two members of one scope never carry one name.
    names: RwLock<BTreeMap<(ScopeId, String), NodeId>>,
    admitted: mpsc::Sender<AdmittedNode>,
    /// The grants that peers showed in hello, with the names in them.
    shown: Mutex<BTreeMap<(ScopeId, NodeId), (NodeName, SignedGrant)>>,
}

impl Scopes {
    pub(crate) fn new(key: NodeKey, store: Arc<Store>) -> (Arc<Self>, mpsc::Receiver<AdmittedNode>) {
        let (admitted, receiver) = mpsc::channel(ADMITTED_MAX);
        let scopes = Self {
            key,
            store,
            table: RwLock::default(),
            names: RwLock::default(),
            admitted,
            shown: Mutex::default(),
        };
        (Arc::new(scopes), receiver)
    }

    pub(crate) fn insert(&self, scope: Scope) {
        self.write().insert(scope.id(), scope);
    }

    /// Takes a renewed grant and its authority up; what was revoked meanwhile stays revoked, and a scope that was left
    /// meanwhile stays left.
    pub(crate) fn renew(&self, next: &Scope) {
        if let Some(scope) = self.write().get_mut(&next.id()) {
            let revoked = scope.revoked.clone();
            *scope = Scope { revoked, ..next.clone() };
        }
    }

    pub(crate) fn remove(&self, scope: &ScopeId) -> Option<Scope> {
        self.lock_shown().retain(|(of, _), _| of != scope);
        self.write().remove(scope)
    }

    pub(crate) fn get(&self, scope: &ScopeId) -> Option<Scope> {
        self.read().get(scope).cloned()
    }

    pub(crate) fn list(&self) -> Vec<Scope> {
        self.read().values().cloned().collect()
    }

    /// Takes a verified revocation up; the scope must be one of ours.
    pub(crate) fn revoke(&self, scope: &ScopeId, revocation: Revocation) -> Option<Insertion> {
        Some(self.write().get_mut(scope)?.revoked.insert(revocation))
    }

    /// Remembers which names members carry, from their verified grants.
    pub(crate) fn note_names(&self, scope: ScopeId, members: impl Iterator<Item = (NodeId, NodeName)>) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        for (node, name) in members {
            names.entry((scope, name.as_str().to_lowercase())).or_insert(node);
        }
    }

    /// What a node was called, by a grant that it showed or a member's record.
    pub(crate) fn name_of(&self, scope: &ScopeId, node: &NodeId) -> Option<String> {
        if let Some(ours) = self.get(scope).filter(|ours| ours.grant.subject == *node) {
            return Some(ours.grant.name.to_string());
        }
        if let Some((name, _)) = self.lock_shown().get(&(*scope, *node)) {
            return Some(name.to_string());
        }
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names
            .iter()
            .find(|((of, _), holder)| of == scope && *holder == node)
            .map(|((_, name), _)| name.clone())
    }

    /// The grant that a peer showed here last.
    pub(crate) fn shown_grant(&self, scope: &ScopeId, node: &NodeId) -> Option<SignedGrant> {
        Some(self.lock_shown().get(&(*scope, *node))?.1.clone())
    }

    /// The nodes whose memberships hold by what `ours` has for revoked and not by `after`, this one included.
    pub(crate) fn ended_between(&self, ours: &Scope, after: &RevocationSet) -> Vec<NodeId> {
        let now = UnixTime::now();
        let is_ended = |grant: &SignedGrant| {
            after.ends_grant(grant) && !ours.revoked.ends_grant(grant) && grant.expires_at() > now
        };
        let shown = self.lock_shown();
        let of_scope = shown.iter().filter(|((scope, _), _)| *scope == ours.id());
        let ended = of_scope.filter(|(_, (_, grant))| is_ended(grant)).map(|((_, node), _)| *node);
        let own = is_ended(&ours.signed).then_some(ours.grant.subject);
        ended.chain(own).collect()
    }

    /// The database, for those who answer peers.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    fn lock_shown(&self) -> MutexGuard<'_, BTreeMap<(ScopeId, NodeId), (NodeName, SignedGrant)>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep_shown(&self, grant: &Grant, signed: &SignedGrant) {
        let mut shown = self.lock_shown();
        let key = (grant.scope, grant.subject);
        if shown.len() < SHOWN_GRANTS_MAX || shown.contains_key(&key) {
            shown.insert(key, (grant.name.clone(), signed.clone()));
        }
    }

    /// The name that a joiner's grant will carry: the one it asks for, or that one with a part of its id when another
    /// member, or this node, has it.
    fn free_name(&self, scope: &Scope, wanted: &NodeName, joiner: NodeId) -> NodeName {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        let key = wanted.as_str().to_lowercase();
        let taken = names.get(&(scope.id(), key.clone())).is_some_and(|holder| *holder != joiner);
        if taken || (scope.grant.name.as_str().to_lowercase() == key && scope.grant.subject != joiner) {
            NodeName::from_lossy(&format!("{wanted}-{}", &joiner.short()[..4]))
        } else {
            wanted.clone()
        }
    }

    async fn admit_now(
        &self,
        scope: ScopeId,
        proved: NodeId,
        mut request: AdmissionRequest,
    ) -> Result<SignedGrant, InviteError> {
        let ours = self.get(&scope).ok_or(InviteError::WrongScope)?;
        let authority = ours.authority.as_ref().ok_or(InviteError::WrongIssuer)?;
        request.node_name = self.free_name(&ours, &request.node_name, proved);
        let entry = admission_entry(&ours, &request, proved);
        let ledger = Recorded { store: &self.store, entry };
        let grant = redeem(authority, &request, proved, &ledger, &ours.revoked, UnixTime::now()).await?;
        self.note_names(scope, std::iter::once((proved, request.node_name.clone())));
        let told = AdmittedNode { scope, invite: request.token.id(), node: proved, name: request.node_name };
        tracing::info!(node = %proved.short(), name = %told.name, scope = %scope.short(), "admitted a node");
        let _ = self.admitted.try_send(told);
        Ok(grant)
    }

    /// The table is changed by single calls on the map, so it is whole even after another holder's panic.
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<ScopeId, Scope>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<ScopeId, Scope>> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The row of an admission, as far as it is known before the ledger is asked.
fn admission_entry(ours: &Scope, request: &AdmissionRequest, proved: NodeId) -> Entry {
    let entry =
        Entry::new(Kind::Admitted, ours.id(), ours.name.clone(), Revoked::Node(proved), UnixTime::now())
            .called(request.node_name.as_str())
            .by(ours.grant.subject, ours.grant.name.as_str())
            .with("invite", request.token.id().to_string());
    match &request.device {
        Some(device) => entry.with("holder", device.lasting.to_string()),
        None => entry,
    }
}

impl Admission for Scopes {
    fn credential(&self, scope: &ScopeId) -> Option<Arc<SignedGrant>> {
        self.read().get(scope).map(|scope| scope.signed.clone())
    }

    fn check(&self, scope: &ScopeId, subject: NodeId, grant: &SignedGrant) -> Result<Grant, Refusal> {
        let table = self.read();
        let ours = table.get(scope).ok_or(Refusal::NotAdmitted)?;
        if let Some(uninvited) = &ours.uninvited {
            return uninvited.check(subject, grant);
        }
        let says = grant
            .verify_for(&subject, scope, UnixTime::now(), &ours.revoked)
            .map_err(|error| Refusal::from(&error))?;
        self.keep_shown(&says, grant);
        Ok(says)
    }

    fn admit(
        &self,
        scope: &ScopeId,
        proved: NodeId,
        request: AdmissionRequest,
    ) -> BoxFuture<'_, Result<SignedGrant, InviteError>> {
        Box::pin(self.admit_now(*scope, proved, request))
    }
}

impl std::fmt::Debug for Scopes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scopes").field("me", &self.key.node_id()).finish_non_exhaustive()
    }
}
