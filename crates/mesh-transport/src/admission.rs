//! Who may link, and what we show: asked of the node above.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use mesh_identity::{AdmissionRequest, Grant, InviteError, NodeId, ScopeId, SignedGrant};

use crate::error::Refusal;

/// The node's view of membership, asked at every hello. Implementations answer from current state: a revocation that
/// has arrived counts for the next hello at once (links that exist are closed by [`crate::Transport::recheck`]).
pub trait Admission: Send + Sync + 'static {
    /// The grant this node shows in the scope; `None` if it is not a member of it.
    fn credential(&self, scope: &ScopeId) -> Option<Arc<SignedGrant>>;

    /// Verifies a grant that `subject`, whose key is proved, shows for the scope: signature, subject, expiry, revocations.
    fn check(&self, scope: &ScopeId, subject: NodeId, grant: &SignedGrant) -> Result<Grant, Refusal>;

    /// Redeems an invite for the key that the connection proved. The token's own signature, expiry and scope were
    /// checked before. Durable before it resolves; repeated calls of one node are one use.
    fn admit(
        &self,
        scope: &ScopeId,
        proved: NodeId,
        request: AdmissionRequest,
    ) -> BoxFuture<'_, Result<SignedGrant, InviteError>>;
}
