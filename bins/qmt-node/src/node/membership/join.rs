//! Joining a mesh by an invite.

use std::time::Duration;

use mesh_control::{ApiError, ErrorCode, JoinRequest, Joined};
use mesh_identity::{AdmissionRequest, Invite, InviteError, InviteToken, ScopeId, UnixTime};
use mesh_transport::{RedeemError, Refusal};

use super::{DEFAULT_NAME, invite_error, no_transport, storage};
use crate::node::scopes::Scope;
use crate::node::{Node, chain, views};
use crate::store::audit::Kind;

/// Between attempts to reach an invite's issuer: short at first, for two machines that start together.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// A machine that was off for a day is joined a minute after it is back.
const LAST_RETRY: Duration = Duration::from_secs(60);

impl Node {
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
        // One that has ended, or that somebody says was revoked, is asked for anew.
        let holds = |scope: &&Scope| scope.end(UnixTime::now()).is_none() && self.told_out(scope).is_none();
        if let Some(scope) = before.as_ref().filter(holds) {
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
}
