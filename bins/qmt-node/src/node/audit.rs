//! The audit trail as the node writes and shows it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::PoisonError;

use mesh_control::{ApiError, AuditChain, AuditEntry, AuditQuery, AuditView, ErrorCode, RevokedKind};
use mesh_gossip::State;
use mesh_identity::{Grant, NodeId, Revocation, Revoked, ScopeId, SignedGrant, UnixTime};
use serde_json::{Value, json};

use super::membership::storage;
use super::scopes::Scope;
use super::{Node, chain};
use crate::store::StoreError;
use crate::store::audit::{Chain, Entry, Kind, Search, Trail, TrailRow};

/// Rows shown when nobody says how many.
const ROWS_SHOWN: u32 = 100;
/// Most rows in one answer: a few megabytes.
const ROWS_SHOWN_MAX: u32 = 5_000;
/// Most ids of each sort that a revocation's row names; the count is always whole.
const ENDED_NAMED_MAX: usize = 64;
/// Fewest characters of an id that count as a prefix.
const PREFIX_MIN: usize = 4;

/// What to do about a broken chain.
pub(super) const MEND: &str = "compare with a backup of node.db: somebody or something wrote to it beside qmt-node; new rows go on from here";

impl Node {
    /// A row about something in a scope, as of now.
    pub(crate) fn entry(&self, kind: Kind, scope: &Scope, subject: Revoked) -> Entry {
        let entry = Entry::new(kind, scope.id(), scope.name.clone(), subject, UnixTime::now());
        match subject {
            Revoked::Node(node) => entry.called(self.name_in(&scope.id(), &node)),
            Revoked::Invite(_) => entry,
        }
    }

    /// The same, done by this node.
    pub(crate) fn own_entry(&self, kind: Kind, scope: &Scope, subject: Revoked) -> Entry {
        self.entry(kind, scope, subject).by(self.id(), scope.grant.name.as_str())
    }

    /// A row about this node's own membership, given by the issuer of its grant.
    pub(crate) fn grant_entry(&self, kind: Kind, scope: &Scope) -> Entry {
        let grant = &scope.grant;
        let entry = self.entry(kind, scope, Revoked::Node(self.id())).called(grant.name.as_str());
        let entry = entry.by(grant.issuer, self.name_in(&scope.id(), &grant.issuer));
        with_grant(entry, grant)
    }

    /// What a node is called in a scope, as far as is known.
    pub(crate) fn name_in(&self, scope: &ScopeId, node: &NodeId) -> String {
        let known = self.member_name(scope, node);
        if known.is_empty() { self.scopes().name_of(scope, node).unwrap_or_default() } else { known }
    }

    /// A member's present grant, from its record, or as it was shown here.
    pub(crate) fn grant_of(&self, scope: &ScopeId, node: &NodeId) -> Option<SignedGrant> {
        let members = self.gossip(scope).map(|gossip| gossip.members());
        let told = members.and_then(|members| SignedGrant::decode(&members.get(node)?.grant).ok());
        told.or_else(|| self.scopes().shown_grant(scope, node))
    }

    /// Writes a row about something seen. A failure is told and costs the row.
    pub(crate) async fn note(&self, entry: &Entry) {
        if let Err(error) = self.store().note(entry).await {
            tracing::warn!(error = %chain(&error), kind = entry.kind.word(), "a row of the audit trail could not be written");
        }
    }

    /// A row about another member that came or went, by its own word or that of who let it in. Strangers of the local
    /// network are nobody's guests: they are not in the trail.
    pub(crate) async fn note_seen(&self, kind: Kind, scope: &ScopeId, node: NodeId) {
        let Some(ours) = self.scopes().get(scope).filter(|ours| ours.uninvited.is_none()) else { return };
        let entry = self.entry(kind, &ours, Revoked::Node(node)).with("observed", true);
        let witness = match kind {
            Kind::Left => Some(node),
            _ => self.grant_of(scope, &node).map(|grant| grant.chain().issuer()),
        };
        let entry = match witness {
            Some(witness) => entry.by(witness, self.name_in(scope, &witness)),
            None => entry,
        };
        self.note(&entry).await;
    }

    /// The row of a revocation, with what it ends here: memberships, links, and invites of this node.
    pub(crate) async fn revocation_entry(&self, scope: &Scope, revocation: &Revocation) -> Entry {
        let id = scope.id();
        let mut after = scope.revoked.clone();
        after.insert(revocation.clone());
        let mut members = self.scopes().ended_between(scope, &after);
        let gossip = self.gossip(&id).map(|gossip| gossip.members());
        for member in gossip.iter().flat_map(|members| members.iter()).filter(|one| one.state != State::Down)
        {
            let grant = SignedGrant::decode(&member.grant);
            if !members.contains(&member.id)
                && grant.is_ok_and(|grant| after.ends_grant(&grant) && !scope.revoked.ends_grant(&grant))
            {
                members.push(member.id);
            }
        }
        let linked: Vec<NodeId> = self
            .transport()
            .links()
            .into_iter()
            .filter(|link| link.peer.scope == id && members.contains(&link.peer.id))
            .map(|link| link.peer.id)
            .collect();
        let now = UnixTime::now();
        let issued = self.store().invites().await.unwrap_or_default();
        let fallen: Vec<String> = issued
            .iter()
            .filter(|invite| invite.scope == id)
            .filter_map(|invite| invite.token.verify(now).ok())
            .filter(|invite| after.ends_invite(invite) && !scope.revoked.ends_invite(invite))
            .map(|invite| invite.grant().invite_id.to_string())
            .collect();
        let named = |ids: Vec<String>| {
            let count = ids.len();
            json!({ "count": count, "ids": ids.into_iter().take(ENDED_NAMED_MAX).collect::<Vec<_>>() })
        };
        let texts = |ids: &[NodeId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        let signer = revocation.signer();
        self.entry(Kind::Revoked, scope, revocation.what())
            .by(signer, self.name_in(&id, &signer))
            .with("as_of", revocation.at().0)
            .with("members", named(texts(&members)))
            .with("links", named(texts(&linked)))
            .with("invites", named(fallen))
    }

    /// Checks the whole trail, once after the start. A break is told wherever people look, and nothing else stops.
    pub(crate) async fn check_trail(self) {
        match self.store().trail().check().await {
            Ok(found) => self.take_check(&found),
            Err(error) => {
                self.set_trail_fault(Some(format!("the audit trail cannot be read: {}", chain(&error))))
            }
        }
        if let Some(fault) = self.trail_fault() {
            tracing::warn!(mend = MEND, "{fault}");
            self.tell_status().await;
        }
    }

    fn take_check(&self, found: &Chain) {
        self.set_trail_fault(found.broken.map(|broken| format!("the audit trail is broken: {broken}")));
    }

    fn set_trail_fault(&self, fault: Option<String>) {
        *self.inner.trail_fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// What the last check of the trail found wrong.
    pub(super) fn trail_fault(&self) -> Option<String> {
        self.inner.trail_fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The trail as far as it fits.
    pub(crate) async fn audit(&self, query: AuditQuery) -> Result<AuditView, ApiError> {
        let trail = self.store().trail();
        let view = shown(&trail, &query).await?;
        if query.verify
            && let Ok(found) = trail.check().await
        {
            self.take_check(&found);
        }
        Ok(view)
    }
}

/// What a grant says, for a row about it.
pub(crate) fn with_grant(entry: Entry, grant: &Grant) -> Entry {
    let entry = entry.with("role", grant.permissions.to_string()).with("until", grant.expires_at.0);
    match &grant.invite {
        Some(invite) => entry.with("invite", invite.to_string()),
        None => entry,
    }
}

/// The trail in a home folder in which no node runs, for `qmt-cli audit`.
///
/// # Errors
/// [`ApiError`] as the control API has it.
pub async fn audit_without_node(node_db: &Path, query: &AuditQuery) -> Result<AuditView, ApiError> {
    match Trail::open(node_db).await.map_err(|error| storage(&error))? {
        Some(trail) => shown(&trail, query).await,
        None => Ok(AuditView {
            chain: query.verify.then(|| chain_view(&Chain { first: 1, ..Chain::default() })),
            ..AuditView::default()
        }),
    }
}

async fn shown(trail: &Trail, query: &AuditQuery) -> Result<AuditView, ApiError> {
    let failed = |error| storage_read(&error);
    let scope = match &query.scope {
        Some(text) => Some(find_scope(trail, text).await?),
        None => None,
    };
    let nodes = match &query.node {
        Some(text) => find_nodes(trail, text).await?,
        None => Vec::new(),
    };
    let search = Search {
        scope,
        since: query.since.map(UnixTime),
        nodes,
        limit: query.limit.unwrap_or(ROWS_SHOWN).min(ROWS_SHOWN_MAX),
    };
    let rows = trail.rows(&search).await.map_err(failed)?;
    let chain = match query.verify {
        true => Some(chain_view(&trail.check().await.map_err(failed)?)),
        false => None,
    };
    let mut entries: Vec<AuditEntry> = rows.into_iter().map(entry_view).collect();
    name_actors(trail, &mut entries).await.map_err(failed)?;
    Ok(AuditView { entries, chain })
}

/// Names actors whose names were not known yet when their rows were written, by what later rows say.
async fn name_actors(trail: &Trail, entries: &mut [AuditEntry]) -> Result<(), StoreError> {
    let is_nameless = |entry: &AuditEntry| entry.actor_name.is_empty() && !entry.actor.is_empty();
    if !entries.iter().any(is_nameless) {
        return Ok(());
    }
    let known = trail.nodes().await?;
    let known = known.into_iter().filter(|(_, name)| !name.is_empty());
    let names: BTreeMap<String, String> = known.map(|(node, name)| (node.to_string(), name)).collect();
    for entry in entries.iter_mut().filter(|entry| is_nameless(entry)) {
        entry.actor_name = names.get(&entry.actor).cloned().unwrap_or_default();
    }
    Ok(())
}

fn storage_read(error: &(dyn std::error::Error + 'static)) -> ApiError {
    ApiError::new(ErrorCode::Storage, format!("the audit trail cannot be read: {}", chain(error)))
        .with_mend("check node.db in QMT_HOME with `qmt-cli doctor`, or bring it back from a backup")
}

async fn find_scope(trail: &Trail, text: &str) -> Result<ScopeId, ApiError> {
    let known = trail.scopes().await.map_err(|error| storage_read(&error))?;
    let lower = text.to_lowercase();
    let is_it = |(id, name): &&(ScopeId, String)| {
        name == text || (lower.len() >= PREFIX_MIN && id.to_string().starts_with(&lower))
    };
    let mut found: Vec<ScopeId> = known.iter().filter(is_it).map(|(id, _)| *id).collect();
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(ApiError::new(ErrorCode::UnknownScope, format!("the trail knows no mesh called {text:?}"))
            .with_mend("`qmt-cli audit` without --scope shows all")),
        many => Err(ApiError::new(ErrorCode::Ambiguous, format!("{} meshes fit {text:?}", many.len()))
            .with_mend("give more characters of the id")),
    }
}

/// All nodes that had this name at some time, or the one whose id begins so.
async fn find_nodes(trail: &Trail, text: &str) -> Result<Vec<NodeId>, ApiError> {
    let known = trail.nodes().await.map_err(|error| storage_read(&error))?;
    let named = |(_, name): &&(NodeId, String)| name.eq_ignore_ascii_case(text);
    let prefixed = |(id, _): &&(NodeId, String)| {
        text.len() >= PREFIX_MIN && (id.to_string().starts_with(text) || id.short().starts_with(text))
    };
    let mut found: Vec<NodeId> = known.iter().filter(named).map(|(id, _)| *id).collect();
    if found.is_empty() {
        found = known.iter().filter(prefixed).map(|(id, _)| *id).collect();
    }
    found.sort_unstable();
    found.dedup();
    if found.is_empty() {
        return Err(ApiError::new(
            ErrorCode::UnknownNode,
            format!("the trail knows no node called {text:?}"),
        )
        .with_mend("`qmt-cli audit` without --node shows all"));
    }
    Ok(found)
}

fn entry_view(row: TrailRow) -> AuditEntry {
    let details = match serde_json::from_str(&row.details) {
        Ok(Value::Object(details)) => details,
        _ => serde_json::Map::new(),
    };
    AuditEntry {
        number: row.number,
        at: row.at.0,
        kind: row.kind,
        scope: row.scope.to_string(),
        scope_name: row.scope_name,
        subject: row.subject,
        subject_kind: if row.is_invite { RevokedKind::Invite } else { RevokedKind::Node },
        subject_name: row.subject_name,
        actor: row.actor,
        actor_name: row.actor_name,
        details,
        previous: hex(&row.previous),
        hash: hex(&row.hash),
    }
}

fn chain_view(chain: &Chain) -> AuditChain {
    AuditChain {
        holds: chain.broken.is_none(),
        first: chain.first,
        last: chain.last,
        hash: hex(&chain.hash),
        breaks: chain.breaks,
        row: chain.broken.map(|broken| broken.number),
        fault: chain.broken.map(|broken| broken.to_string()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
