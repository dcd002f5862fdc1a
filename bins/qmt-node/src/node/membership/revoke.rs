//! Revoking invites and nodes.

use std::path::Path;

use mesh_control::{
    ApiError, ErrorCode, EventKind, RecoverRequest, RevokeRequest, Revoked as RevokedView, RevokedKind,
};
use mesh_identity::{Authority, NodeId, Revoked, ScopeId, SignedRevocation, UnixTime};

use super::{issue_error, storage};
use crate::node::appoint::recovery_authority;
use crate::node::scopes::Scope;
use crate::node::{Node, chain};
use crate::store::IssuedInvite;
use crate::store::audit::{Entry, Kind};

/// Who revokes where this node may not.
const ASK: &str = "ask the mesh's founder or an admin";

impl Node {
    /// Revokes an invite (by id or unique prefix) or a node (by id or name).
    pub(crate) async fn revoke(&self, request: RevokeRequest) -> Result<RevokedView, ApiError> {
        if let Some(invite) = self.find_invite(&request.subject).await? {
            return self.revoke_invite(&invite).await;
        }
        let (scope, node) =
            self.resolve_node(&request.subject, request.scope.as_deref()).map_err(|error| {
                if error.code == ErrorCode::UnknownNode {
                    ApiError::new(
                        ErrorCode::UnknownNode,
                        format!("no invite and no node is called {:?}", request.subject),
                    )
                    .with_mend("`qmt-cli invites` lists the invites, `qmt-cli nodes` the nodes")
                } else {
                    error
                }
            })?;
        self.revoke_node(scope, node, None).await
    }

    async fn find_invite(&self, text: &str) -> Result<Option<IssuedInvite>, ApiError> {
        let lower = text.to_lowercase();
        let stored = self.store().invites().await.map_err(|error| storage(&error))?;
        let mut found: Vec<_> = stored
            .into_iter()
            .filter(|invite| lower.len() >= 4 && invite.id.to_string().starts_with(&lower))
            .collect();
        match found.len() {
            0 | 1 => Ok(found.pop()),
            _ => Err(ApiError::new(
                ErrorCode::Ambiguous,
                format!("{} invites begin with {text:?}", found.len()),
            )
            .with_mend("give more characters of the id")),
        }
    }

    /// Ends an invite, and every membership that came of it. Those who could invite by it are revoked by name too: only
    /// that reaches the nodes which they let in.
    async fn revoke_invite(&self, invite: &IssuedInvite) -> Result<RevokedView, ApiError> {
        // The ledger first: from here on nobody is admitted by it, even if what follows fails.
        let what = Revoked::Invite(invite.id);
        let now = UnixTime::now();
        let scope_name = self.scopes().get(&invite.scope).map_or_else(String::new, |scope| scope.name);
        let entry = Entry::new(Kind::Ended, invite.scope, scope_name, what, now)
            .by(self.id(), self.name_in(&invite.scope, &self.id()))
            .with("uses", invite.uses.len());
        self.store().end_invite(&invite.id, now, &entry).await.map_err(|error| storage(&error))?;
        self.end_at_relay(&invite.token);
        let holders = self.store().uses(&invite.id).await.map_err(|error| storage(&error))?;
        if let Some(ours) = self.scopes().get(&invite.scope)
            && let Some(authority) = &ours.authority
        {
            let inviters = holders.iter().filter(|_| invite.can_invite).map(|(node, _)| Revoked::Node(*node));
            for what in std::iter::once(Revoked::Invite(invite.id)).chain(inviters) {
                let signed = authority.revoke(what, UnixTime::now()).map_err(|error| issue_error(&error))?;
                self.spread(&ours, signed).await?;
            }
        }
        for (holder, _) in &holders {
            self.remove_from_relays(&invite.scope, holder);
        }
        let view = RevokedView {
            kind: RevokedKind::Invite,
            id: invite.id.to_string(),
            name: invite.name.clone().unwrap_or_default(),
            scope: invite.scope.to_string(),
        };
        self.tell(EventKind::Revoked { revoked: view.clone() });
        Ok(view)
    }

    async fn revoke_node(
        &self,
        scope: ScopeId,
        node: NodeId,
        by: Option<Authority>,
    ) -> Result<RevokedView, ApiError> {
        let ours = self
            .scopes()
            .get(&scope)
            .ok_or_else(|| ApiError::new(ErrorCode::UnknownScope, "not a scope of this node"))?;
        if ours.uninvited.is_some() {
            return Err(ApiError::new(ErrorCode::NotAllowed, "nobody is revoked in the scope lan")
                .with_mend("set trust in [mesh.lan], or role in [[mesh.peers]]"));
        }
        let signed = match by {
            Some(recovery) => recovery.revoke(Revoked::Node(node), UnixTime::now()),
            None if node == ours.root.founder => {
                return Err(ApiError::new(ErrorCode::NotAllowed, "the founder of a mesh cannot be revoked")
                    .with_mend("only its recovery key can: qmt-cli revoke NODE --recovery-key FILE"));
            }
            None if node == self.id() => {
                let signed = SignedRevocation::of_self(self.key(), &ours.signed, UnixTime::now());
                return self
                    .spread_revocation(
                        &ours,
                        node,
                        signed.map_err(|error| ApiError::new(ErrorCode::NotAllowed, chain(&error)))?,
                    )
                    .await;
            }
            None => {
                let authority = ours.authority.as_ref().ok_or_else(|| {
                    ApiError::new(
                        ErrorCode::NotAllowed,
                        format!("this node may revoke only itself in {}", ours.name),
                    )
                    .with_mend(ASK)
                })?;
                authority.revoke(Revoked::Node(node), UnixTime::now())
            }
        };
        self.spread_revocation(&ours, node, signed.map_err(|error| issue_error(&error))?).await
    }

    /// Revokes a node by the recovery key.
    pub(crate) async fn recover(&self, request: RecoverRequest) -> Result<RevokedView, ApiError> {
        let (scope, node) = self.resolve_node(&request.subject, request.scope.as_deref())?;
        let ours = self
            .scopes()
            .get(&scope)
            .ok_or_else(|| ApiError::new(ErrorCode::UnknownScope, "not a scope of this node"))?;
        let recovery = recovery_authority(&ours, Path::new(&request.recovery_key_file))?;
        self.revoke_node(scope, node, Some(recovery)).await
    }

    async fn spread_revocation(
        &self,
        ours: &Scope,
        node: NodeId,
        signed: SignedRevocation,
    ) -> Result<RevokedView, ApiError> {
        let scope = ours.id();
        let name = self.name_in(&scope, &node);
        let verified = signed
            .verify(&scope, UnixTime::now())
            .map_err(|error| ApiError::new(ErrorCode::NotAllowed, chain(&error)))?;
        let mut after = ours.revoked.clone();
        after.insert(verified);
        if self.grant_of(&scope, &node).is_some_and(|grant| !after.ends_grant(&grant)) {
            return Err(ApiError::new(
                ErrorCode::NotAllowed,
                format!("this node may revoke only whom it let into {}, and who came in by them", ours.name),
            )
            .with_mend(ASK));
        }
        self.spread(ours, signed).await?;
        let view =
            RevokedView { kind: RevokedKind::Node, id: node.to_string(), name, scope: scope.to_string() };
        self.tell(EventKind::Revoked { revoked: view.clone() });
        Ok(view)
    }

    /// Stores a revocation of ours, obeys it, and hands it to gossip.
    async fn spread(&self, scope: &Scope, signed: SignedRevocation) -> Result<(), ApiError> {
        let verified = signed
            .verify(&scope.id(), UnixTime::now())
            .map_err(|error| ApiError::new(ErrorCode::NotAllowed, chain(&error)))?;
        let entry = self.revocation_entry(scope, &verified).await;
        self.store().put_revocation(&verified, &entry).await.map_err(|error| storage(&error))?;
        self.obey(&scope.id(), verified);
        if let Some(gossip) = self.gossip(&scope.id()) {
            gossip.revoke(&signed).await;
        }
        Ok(())
    }

    /// Takes a revocation up and closes every link, and connection of the agent channel, whose grant no longer holds.
    pub(crate) fn obey(&self, scope: &ScopeId, verified: mesh_identity::Revocation) {
        if let Revoked::Node(node) = verified.what() {
            self.remove_from_relays(scope, &node);
        }
        self.scopes().revoke(scope, verified);
        self.transport().recheck(scope);
        self.close_ended_channels();
    }
}
