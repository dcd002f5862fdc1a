//! Founding, inviting, joining, leaving, revoking.

mod invite;
mod join;
mod revoke;

use mesh_control::{ApiError, ErrorCode, LeaveRequest, Left};
use mesh_identity::{InviteError, IssueError, RevocationSet, Revoked, ScopeId, UnixTime};
use mesh_transport::internet::EndpointsError;

use super::{Node, chain};
use crate::store::StoreError;
use crate::store::audit::Kind;

/// Name of a scope that was founded without one.
const DEFAULT_NAME: &str = "home";

impl Node {
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
}

fn no_transport(error: &EndpointsError) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, chain(error)).with_mend(
        "choose another --bind-port, or correct relay_urls in the configuration; nothing was changed",
    )
}

fn bad_request(message: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, message)
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
