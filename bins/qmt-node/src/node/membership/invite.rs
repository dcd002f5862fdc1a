//! Founding a mesh, and inviting to it.

use std::path::PathBuf;

use mesh_control::{ApiError, ErrorCode, InviteCreated, InviteRequest, InviteView};
use mesh_identity::{
    Authority, Expiry, Founding, InviteOptions, NodeAddr, Permissions, RevocationSet, Revoked, Role, ScopeId,
    UnixTime, key_file, qr, ttl,
};

use super::{DEFAULT_NAME, bad_request, invite_error, issue_error, no_transport, storage};
use crate::node::scopes::Scope;
use crate::node::uninvited::LAN;
use crate::node::{Node, views};
use crate::store::audit::Kind;

/// Hints within which a token stays scannable: 30 bytes, four IPv4 addresses or a short relay URL.
const HINT_BYTES_MAX: usize = 30;

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
        // Whoever was revoked a moment ago may be the one who is invited.
        let issued_at = scope.revoked.after(UnixTime::now());
        let token = authority.issue_invite(&options, issued_at).map_err(|error| issue_error(&error))?;
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

fn not_an_inviter(scope: &Scope) -> ApiError {
    ApiError::new(ErrorCode::NotAllowed, format!("this node may not admit others to {}", scope.name))
}
