//! Founding, inviting, joining, leaving, revoking.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_control::{
    ApiError, ErrorCode, EventKind, InviteCreated, InviteRequest, InviteView, JoinRequest, Joined,
    LeaveRequest, Left, RecoverRequest, RevokeRequest, Revoked as RevokedView, RevokedKind,
};
use mesh_identity::{
    AdmissionRequest, Authority, Expiry, Founding, Invite, InviteError, InviteOptions, InviteToken,
    IssueError, NodeAddr, NodeId, Permissions, RevocationSet, Revoked, Role, ScopeId, SignedRevocation,
    UnixTime, key_file, qr, ttl,
};
use mesh_transport::internet::EndpointsError;
use mesh_transport::{RedeemError, Refusal};

use super::appoint::recovery_authority;
use super::scopes::Scope;
use super::uninvited::LAN;
use super::{Node, chain, views};
use crate::store::audit::{Entry, Kind};
use crate::store::{IssuedInvite, StoreError};

/// Hints within which a token stays scannable: 30 bytes, four IPv4 addresses or a short relay URL.
const HINT_BYTES_MAX: usize = 30;
/// Name of a scope that was founded without one.
const DEFAULT_NAME: &str = "home";
/// Who revokes where this node may not.
const ASK: &str = "ask the mesh's founder or an admin";
/// Between attempts to reach an invite's issuer: short at first, for two machines that start together.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// A machine that was off for a day is joined a minute after it is back.
const LAST_RETRY: Duration = Duration::from_secs(60);

impl Node {
    /// Issues an invite, founding a scope first if the node can invite to none.
    pub(crate) async fn invite(&self, request: InviteRequest) -> Result<InviteCreated, ApiError> {
        let ttl = match &request.ttl {
            Some(text) => ttl::parse(text).map_err(|error| bad_request(error.to_string()))?,
            None => InviteOptions::default().ttl,
        };
        let role = match request.role {
            None | Some(mesh_control::Role::Member) => Role::Member,
            Some(mesh_control::Role::Client) => Role::Client,
            Some(mesh_control::Role::Unknown) => return Err(bad_request("role must be member or client")),
        };
        let can_invite = request.can_invite.unwrap_or(false);
        if can_invite && role == Role::Client {
            return Err(bad_request(
                "a client cannot invite; leave out one of --role client and --can-invite",
            ));
        }
        let (scope, recovery) = self.scope_to_invite_to(&request).await?;
        let authority = scope.authority.as_ref().ok_or_else(|| not_an_inviter(&scope))?;
        let options = InviteOptions {
            name: Some(scope.name.clone()),
            ttl,
            max_uses: request.uses.unwrap_or(1),
            permissions: Permissions { role, can_invite, admin: false },
            hints: self.hints(&scope.id()).await,
        };
        if options.hints.is_empty() {
            tracing::warn!(
                "this node knows no address of its own; the invite will lead nowhere until it has one"
            );
        }
        let token = authority.issue_invite(&options, UnixTime::now()).map_err(|error| issue_error(&error))?;
        let entry = self
            .own_entry(Kind::Invited, &scope, Revoked::Invite(token.id()))
            .with("gives", options.permissions.to_string())
            .with("uses", options.max_uses)
            .with("until", Expiry::after(UnixTime::now(), ttl).time().map(|time| time.0));
        self.store()
            .put_invite(
                &token.verify(UnixTime::now()).map_err(|error| invite_error(&error))?,
                UnixTime::now(),
                &entry,
            )
            .await
            .map_err(|error| storage(&error))?;
        self.admit_to_relay(&token);
        let text = token.to_string();
        Ok(InviteCreated {
            url: token.to_url(),
            invite_id: token.id().to_string(),
            scope: scope.id().to_string(),
            scope_name: scope.name.clone(),
            expires_at: Expiry::after(UnixTime::now(), ttl).time().map(|time| time.0),
            max_uses: options.max_uses,
            qr_version: qr::version(&text).unwrap_or(0),
            recovery_key_file: recovery.map(|path| path.display().to_string()),
            token: text,
        })
    }

    /// The scope of an invite request: the one it names, else the only one this node can invite to, else a new one.
    async fn scope_to_invite_to(
        &self,
        request: &InviteRequest,
    ) -> Result<(Scope, Option<PathBuf>), ApiError> {
        if let Some(wanted) = &request.scope {
            return Ok((self.resolve_scope(wanted)?, None));
        }
        let mut candidates: Vec<Scope> =
            self.scopes().list().into_iter().filter(|scope| scope.authority.is_some()).collect();
        if let Some(name) = &request.name {
            candidates.retain(|scope| scope.name == *name);
            if candidates.is_empty() {
                return self.found(name).await.map(|(scope, recovery)| (scope, Some(recovery)));
            }
        }
        match candidates.len() {
            0 => {
                if let Some(member_of) = self.scopes().list().iter().find(|scope| scope.uninvited.is_none()) {
                    return Err(not_an_inviter(member_of).with_mend(
                        "ask somebody who may invite, or found a mesh of your own with --name NAME",
                    ));
                }
                self.found(DEFAULT_NAME).await.map(|(scope, recovery)| (scope, Some(recovery)))
            }
            1 => Ok((candidates.remove(0), None)),
            _ => {
                let names: Vec<String> = candidates
                    .iter()
                    .map(|scope| format!("{} ({})", scope.name, scope.id().short()))
                    .collect();
                Err(ApiError::new(
                    ErrorCode::Ambiguous,
                    format!("this node can invite to several meshes: {}", names.join(", ")),
                )
                .with_mend("say which with --scope"))
            }
        }
    }

    /// Founds a scope. Its recovery key is written to a file of its own, which its owner should move to a safe place.
    pub(crate) async fn found(&self, name: &str) -> Result<(Scope, PathBuf), ApiError> {
        if self.config().identity == crate::config::Identity::Ephemeral {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                "a node with a throw-away identity cannot found a mesh: nobody could lead it later",
            )
            .with_mend("start the node without QMT_EPHEMERAL_KEY and --client"));
        }
        self.check_meshes_on()?;
        if name == LAN {
            return Err(bad_request(
                "\"lan\" is what the peers of the local network meet in without an invite",
            )
            .with_mend("give the mesh another name"));
        }
        let founding = Founding::new(self.key());
        let id = founding.root.id();
        let authority =
            Authority::founder(self.key().clone(), founding.root).map_err(|error| issue_error(&error))?;
        let grant = authority
            .sign_grant(self.id(), self.name().clone(), Permissions::ADMIN, None, UnixTime::now())
            .map_err(|error| issue_error(&error))?;
        let scope = Scope::new(self.key(), name.to_owned(), grant, RevocationSet::new(id), None).map_err(
            |error| {
                ApiError::new(ErrorCode::Internal, format!("the founder's own grant does not hold: {error}"))
            },
        )?;
        self.carry(id, &self.relays_of(&id, name, None)).await.map_err(|error| no_transport(&error))?;
        let file = self
            .home()
            .folder("recovery")
            .map_err(|error| storage(&error))?
            .join(format!("{}.key", id.short()));
        key_file::create(&file, &founding.recovery).map_err(|error| storage(&error))?;
        let entry = self
            .own_entry(Kind::Founded, &scope, Revoked::Node(self.id()))
            .called(scope.grant.name.as_str())
            .with("recovery_key", founding.recovery.node_id().to_string());
        self.store_scope(&scope, &entry).await.map_err(|error| storage(&error))?;
        tracing::info!(scope = %scope.name, id = %id.short(), recovery_key = %file.display(), "founded a mesh");
        self.enter(scope.clone());
        Ok((scope, file))
    }

    /// Joins the scope of an invite. A node that is in it already stays as it is.
    pub(crate) async fn join(&self, request: JoinRequest) -> Result<Joined, ApiError> {
        let token = InviteToken::parse(&request.token).map_err(|error| invite_error(&error))?;
        let invite = token.verify(UnixTime::now()).map_err(|error| invite_error(&error))?;
        let says = invite.grant();
        if says.scope == ScopeId::lan(None) || self.is_lan(&says.scope) {
            return Err(ApiError::new(
                ErrorCode::InviteRefused,
                "this invite leads into the scope of uninvited peers, for which anybody could have made it",
            )
            .with_mend("set [mesh.lan] enabled = true to meet the peers of the local network"));
        }
        let before = self.scopes().get(&says.scope);
        if let Some(scope) = before.as_ref().filter(|scope| scope.end(UnixTime::now()).is_none()) {
            if invite.issuer() == self.id() {
                return Err(ApiError::new(
                    ErrorCode::Conflict,
                    format!("this invite is this node's own, to {}", scope.name),
                )
                .with_mend("run `qmt-cli join` on the machine that is to join"));
            }
            return Ok(self.joined(scope));
        }
        self.check_meshes_on()?;
        let name = says.mesh_name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned());
        let label = before.as_ref().map_or_else(|| self.free_label(name), |scope| scope.name.clone());
        self.trust_invite(&token);
        self.carry(says.scope, &self.relays_of(&says.scope, &label, Some(&invite)))
            .await
            .map_err(|error| no_transport(&error))?;
        let revoked = self.stored_revocations(&says.scope).await.map_err(|error| storage(&error))?;
        let admitted = self.redeem(&invite, token.clone()).await?;
        let scope = Scope::new(self.key(), label, admitted.grant, revoked, Some(token)).map_err(|error| {
            ApiError::new(ErrorCode::InviteRefused, format!("the issuer's grant does not hold: {error}"))
        })?;
        let entry = self.grant_entry(Kind::Joined, &scope);
        self.store_scope(&scope, &entry).await.map_err(|error| storage(&error))?;
        self.store_peer(&scope.id(), &admitted.issuer, &admitted.issuer_addr).await;
        self.transport().book().insert(scope.id(), admitted.issuer, admitted.issuer_addr);
        if let Some(gossip) = self.take_gossip(&scope.id()) {
            gossip.shutdown().await; // of the membership that had ended
        }
        tracing::info!(scope = %scope.name, role = %scope.grant.role, "joined a mesh");
        self.enter(scope.clone());
        Ok(self.joined(&scope))
    }

    async fn redeem(
        &self,
        invite: &Invite,
        token: InviteToken,
    ) -> Result<mesh_transport::Admitted, ApiError> {
        let scope = invite.grant().scope;
        let request = AdmissionRequest { token, node_name: self.name().clone(), device: self.device(&scope) };
        self.transport().redeem(invite, request).await.map_err(|error| match &error {
            RedeemError::Refused(refused) => invite_error(refused),
            RedeemError::Unreachable(cause) => {
                let addresses = views::addresses(&invite.grant().hints);
                let at = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
                ApiError::new(
                    ErrorCode::IssuerUnreachable,
                    format!("the invite's issuer cannot be reached at {at}: {}", chain(cause)),
                )
                .with_mend("check that qmt-node runs there, and that its UDP port is open to this machine")
            }
            // It may know the scope of the invite as little as a stranger's.
            RedeemError::Hello(Refusal::NotAdmitted) => invite_error(&InviteError::WrongScope),
            RedeemError::Hello(Refusal::Busy) => ApiError::new(ErrorCode::Unavailable, chain(&error))
                .with_mend("the invite is not used up; try again in some seconds"),
            _ => ApiError::new(ErrorCode::InviteRefused, chain(&error))
                .with_mend("update qmt on both machines to the same release, then ask for a new invite"),
        })
    }

    /// Joins by an invite, again and again while nobody answers for it: for invites of the configuration and memberships
    /// that a restart has to ask for anew. Ends with the node, or with an answer.
    pub(crate) async fn join_when_reached(self, token: InviteToken, origin: String) {
        let mut wait = FIRST_RETRY;
        loop {
            let error = match self.join(JoinRequest { token: token.to_string() }).await {
                Ok(_) => return,
                Err(error) => error,
            };
            let mend = error.mend.as_deref().unwrap_or("");
            if error.code != ErrorCode::IssuerUnreachable {
                tracing::error!(origin, error = %error.message, mend, "not joined");
                return;
            }
            tracing::warn!(origin, error = %error.message, mend, retry_in = ?wait, "not joined yet");
            let jittered = wait.mul_f64(rand::random_range(0.5..1.0));
            tokio::select! {
                () = tokio::time::sleep(jittered) => {}
                () = self.stopping().cancelled_owned() => return,
            }
            wait = (wait * 2).min(LAST_RETRY);
        }
    }

    /// What is known to be revoked in a scope, from this or an earlier membership.
    pub(crate) async fn stored_revocations(&self, scope: &ScopeId) -> Result<RevocationSet, StoreError> {
        let mut revoked = RevocationSet::new(*scope);
        for signed in self.store().revocations(scope).await? {
            if let Ok(verified) = signed.verify(scope, UnixTime::now()) {
                revoked.insert(verified);
            }
        }
        Ok(revoked)
    }

    fn check_meshes_on(&self) -> Result<(), ApiError> {
        if self.config().mesh.enabled == Some(false) {
            return Err(ApiError::new(ErrorCode::Conflict, "meshes are switched off on this node")
                .with_mend("set enabled = true in [mesh] of the configuration file, and restart the node"));
        }
        Ok(())
    }

    fn joined(&self, scope: &Scope) -> Joined {
        Joined {
            scope: scope.id().to_string(),
            name: scope.name.clone(),
            role: views::role(scope.grant.role),
            issuer: scope.grant.issuer.to_string(),
        }
    }

    /// A label that no other scope of this node has.
    fn free_label(&self, name: String) -> String {
        let taken: Vec<String> = self.scopes().list().into_iter().map(|scope| scope.name).collect();
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        std::iter::once(name.clone()).chain(numbered).find(|label| !taken.contains(label)).unwrap_or(name)
    }

    /// Leaves a scope: says goodbye, closes its links, forgets its grant.
    pub(crate) async fn leave(&self, request: LeaveRequest) -> Result<Left, ApiError> {
        let scope = self.resolve_scope(&request.scope)?;
        let id = scope.id();
        let entry = self.own_entry(Kind::Left, &scope, Revoked::Node(self.id()));
        self.store().remove_scope(&id, &entry).await.map_err(|error| storage(&error))?;
        if let Some(gossip) = self.take_gossip(&id) {
            gossip.leave().await;
            gossip.shutdown().await;
        }
        self.scopes().remove(&id);
        self.transport().close_scope(&id);
        self.forget_at_relays(&id);
        self.refresh();
        tracing::info!(scope = %scope.name, "left a mesh");
        self.tell_status().await;
        Ok(Left { scope: id.to_string(), name: scope.name })
    }

    /// The invites that this node issued, newest first.
    pub(crate) async fn invites(&self) -> Result<Vec<InviteView>, ApiError> {
        let stored = self.store().invites().await.map_err(|error| storage(&error))?;
        let mut views = Vec::with_capacity(stored.len());
        for invite in stored {
            let holders = self.store().uses(&invite.id).await.map_err(|error| storage(&error))?;
            views.push(InviteView {
                id: invite.id.to_string(),
                scope: invite.scope.to_string(),
                scope_name: self.scopes().get(&invite.scope).map_or_else(String::new, |scope| scope.name),
                name: invite.name.clone(),
                created_at: invite.created_at.0,
                expires_at: invite.expires_at.time().map(|time| time.0),
                max_uses: invite.max_uses,
                uses: u32::try_from(holders.len()).unwrap_or(u32::MAX),
                revoked: invite.revoked_at.is_some(),
                role: views::role(invite.role),
                can_invite: invite.can_invite,
                holders: holders.iter().map(|(holder, _)| holder.to_string()).collect(),
            });
        }
        Ok(views)
    }

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

    /// Takes a revocation up and closes every link whose grant no longer holds.
    pub(crate) fn obey(&self, scope: &ScopeId, verified: mesh_identity::Revocation) {
        if let Revoked::Node(node) = verified.what() {
            self.remove_from_relays(scope, &node);
        }
        self.scopes().revoke(scope, verified);
        self.transport().recheck(scope);
    }

    /// The addresses that an invite carries, within the bytes that keep it scannable.
    async fn hints(&self, scope: &ScopeId) -> NodeAddr {
        let all = self.own_addr(scope);
        // The invite that founds a mesh is made before the links of that mesh have found their relay.
        let relay = match all.relay.or_else(|| self.own_relay()) {
            Some(relay) => Some(relay),
            None => self.first_relay(scope).await,
        };
        let mut hints = NodeAddr { relay, ..NodeAddr::default() };
        for addr in all.direct {
            hints.direct.push(addr);
            let fits = hints.encode().is_ok_and(|bytes| bytes.len() <= HINT_BYTES_MAX);
            if !fits && (hints.direct.len() > 1 || hints.relay.is_some()) {
                hints.direct.pop();
                break;
            }
        }
        hints
    }
}

fn no_transport(error: &EndpointsError) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, chain(error)).with_mend(
        "choose another --bind-port, or correct relay_urls in the configuration; nothing was changed",
    )
}

fn bad_request(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, message)
}

fn not_an_inviter(scope: &Scope) -> ApiError {
    ApiError::new(ErrorCode::NotAllowed, format!("this node may not admit others to {}", scope.name))
}

pub(crate) fn storage(error: &(dyn std::error::Error + 'static)) -> ApiError {
    ApiError::new(ErrorCode::Storage, format!("the node could not write its files: {}", chain(error)))
        .with_mend(
            "check the disk's free space and the rights of QMT_HOME, then try again; nothing was changed",
        )
}

pub(super) fn issue_error(error: &IssueError) -> ApiError {
    let code = match error {
        IssueError::Name | IssueError::Hints(_) => ErrorCode::BadRequest,
        _ => ErrorCode::NotAllowed,
    };
    ApiError::new(code, chain(error))
}

fn invite_error(error: &InviteError) -> ApiError {
    let code = match error {
        InviteError::WrongVersion { .. } => ErrorCode::InviteWrongVersion,
        InviteError::BadSignature => ErrorCode::InviteBadSignature,
        InviteError::WrongScope => ErrorCode::InviteWrongScope,
        InviteError::Expired { .. } | InviteError::IssuerExpired => ErrorCode::InviteExpired,
        InviteError::UsedUp => ErrorCode::InviteUsedUp,
        InviteError::Revoked => ErrorCode::InviteRevoked,
        InviteError::IssuerUnreachable { .. } => ErrorCode::IssuerUnreachable,
        InviteError::Widened
        | InviteError::WrongIssuer
        | InviteError::NotAllowed
        | InviteError::BadDevice
        | InviteError::LedgerUnavailable
        | InviteError::Refused { .. } => ErrorCode::InviteRefused,
        _ => ErrorCode::InviteMalformed,
    };
    ApiError::new(code, error.to_string()).with_mend(error.mend())
}
