//! Relays: the one this node may run, and the one that an invite names.

use mesh_identity::{Invite, InviteToken, NodeId, ScopeId, UnixTime};
use mesh_transport::internet::{Relay, Relays};

use super::Node;

impl Node {
    /// Lets joiners with this invite reach us through our own relay, if we run one.
    pub(crate) fn admit_to_relay(&self, token: &InviteToken) {
        let Some(relay) = &self.inner.relay else { return };
        if let Ok(invite) = token.verify(UnixTime::now()) {
            relay.access().allow_token(invite.relay_token(), invite.grant().expires_at);
        }
    }

    /// Lets a member use our own relay, if we run one.
    pub(crate) fn admit_member_to_relay(&self, scope: &ScopeId, node: NodeId) {
        if let Some(relay) = &self.inner.relay {
            relay.access().allow_member(*scope, node);
        }
    }

    /// Makes the relay that an invite names usable for its scope before the issuer is dialed through it.
    pub(crate) async fn relay_by_invite(&self, invite: &Invite) {
        let relays = match &invite.grant().hints.relay {
            Some(url) => {
                let mut relay = Relay::new(url.clone());
                relay.token = Some(invite.relay_token());
                Relays::Custom(vec![relay])
            }
            None => self.inner.relays.clone(),
        };
        self.carry(invite.grant().scope, &relays).await;
    }

    /// Carries a scope over the endpoint for these relays, opening it if it is the first scope with them.
    pub(crate) async fn carry(&self, scope: ScopeId, relays: &Relays) {
        match self.inner.endpoints.for_scope(scope, relays).await {
            Ok((driver, is_new)) => {
                if is_new {
                    self.transport().add_driver(driver);
                }
            }
            Err(error) => {
                tracing::warn!(scope = %scope.short(), error = %super::chain(&error), "no internet transport for a mesh")
            }
        }
    }
}
