//! `renew/1`: a member asks one that may admit for its next grant, half way through the present one.

use std::sync::Arc;
use std::time::Duration;

use mesh_identity::{Authority, DeviceDelegation, Expiry, NodeId, Revoked, ScopeId, SignedGrant, UnixTime};
use mesh_transport::{Call, CallFault, Peer, Protocol, Transport, serve_call};
use serde::{Deserialize, Serialize};

use super::scopes::{Scope, Scopes};
use super::{Node, chain};
use crate::store::audit::{Entry, Kind};

const DEADLINE: Duration = Duration::from_secs(10);
/// The server's disk did not take the row that a renewal must leave; another member may renew.
const NOT_RECORDED: u16 = 1;
/// How long a lasting key's word for a throw-away key holds: a stolen throw-away key is of use no longer than that.
const DEVICE_TTL: Duration = Duration::from_secs(86_400);
/// How often grants are looked at: often enough for the shortest grant anybody is given, an hour.
const LOOK: Duration = Duration::from_secs(600);

/// Asks for the next grant; shows the present one and, for a throw-away key, its lasting key's new word.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Renew {
    grant: SignedGrant,
    device: Option<DeviceDelegation>,
}

impl Call for Renew {
    const PROTOCOL: Protocol = Protocol::new("renew/1");
    type Reply = SignedGrant;
}

/// Answers [`Renew`] where this node may admit: the caller is the peer whose key the link proved, and its present grant
/// must still hold, so who was revoked gets nothing.
pub(crate) fn serve(transport: &Transport, scopes: Arc<Scopes>) {
    serve_call::<Renew, _, _>(transport, move |peer: Peer, renew| {
        let scopes = scopes.clone();
        async move { renew_for(&scopes, &peer.scope, peer.id, &renew).await }
    });
}

/// The next grant, in the trail before anybody sees it.
async fn renew_for(
    scopes: &Scopes,
    scope: &ScopeId,
    peer: NodeId,
    asked: &Renew,
) -> Result<SignedGrant, CallFault> {
    let ours = scopes.get(scope).ok_or_else(|| CallFault::not_allowed("not a scope of this node"))?;
    let authority =
        ours.authority.as_ref().ok_or_else(|| CallFault::not_allowed("this node may not admit"))?;
    let now = UnixTime::now();
    let grant = asked
        .grant
        .verify_for(&peer, scope, now, &ours.revoked)
        .map_err(|error| CallFault::not_allowed(format!("the present grant does not hold: {error}")))?;
    let next = authority
        .renew(&grant, asked.device.as_ref(), now)
        .map_err(|error| CallFault::not_allowed(error.to_string()))?;
    let entry = Entry::new(Kind::Renewed, *scope, ours.name.clone(), Revoked::Node(peer), now)
        .called(grant.name.as_str())
        .by(ours.grant.subject, ours.grant.name.as_str())
        .with("until", next.expires_at().0);
    match scopes.store().note(&entry).await {
        Ok(_) => Ok(next),
        Err(error) => {
            tracing::warn!(error = %chain(&error), "a renewal could not be recorded, so it was not given");
            Err(CallFault::new(NOT_RECORDED, "the renewal could not be recorded"))
        }
    }
}

impl Node {
    /// Renews grants in time, for as long as the node runs.
    pub(crate) async fn keep_grants(self) {
        loop {
            for scope in self.scopes().list() {
                if scope.grant.renew_at() <= UnixTime::now() && !self.renew_scope(&scope).await {
                    tracing::warn!(scope = %scope.name, ends = %scope.grant.expires_at, "no member has renewed our grant yet");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.stopping().cancelled_owned() => return,
            }
        }
    }

    /// True when a new grant was stored.
    async fn renew_scope(&self, scope: &Scope) -> bool {
        let id = scope.id();
        if let Some(uninvited) = &scope.uninvited {
            return match uninvited.sign_for(self.id(), scope.grant.name.clone()) {
                Ok(grant) => self.take_grant(scope, grant).await,
                Err(_) => false,
            };
        }
        if scope.is_founder() {
            let signed = scope
                .authority
                .as_ref()
                .map(|authority| authority.renew(&scope.grant, None, UnixTime::now()));
            return match signed {
                Some(Ok(grant)) => self.take_grant(scope, grant).await,
                _ => false,
            };
        }
        let members: Vec<NodeId> =
            self.gossip(&id).map_or_else(Vec::new, |gossip| gossip.members().alive().map(|m| m.id).collect());
        // The issuer first: it is known to have the right.
        let issuer = scope.grant.issuer;
        let order = std::iter::once(issuer).chain(members.into_iter().filter(|member| *member != issuer));
        for member in order {
            let renew = Renew { grant: (*scope.signed).clone(), device: self.device(&id) };
            if let Ok(grant) = self.transport().call(&id, &member, &renew, DEADLINE).await
                && self.take_grant(scope, grant).await
            {
                return true;
            }
        }
        false
    }

    /// For a throw-away key: its lasting key's word, for the scope, from now.
    pub(crate) fn device(&self, scope: &ScopeId) -> Option<DeviceDelegation> {
        let until = Expiry::after(UnixTime::now(), Some(DEVICE_TTL));
        Some(DeviceDelegation::sign(self.lasting_key()?, &self.id(), scope, until))
    }

    async fn take_grant(&self, scope: &Scope, grant: SignedGrant) -> bool {
        let next = match Scope::new(
            self.key(),
            scope.name.clone(),
            grant,
            scope.revoked.clone(),
            scope.invite.clone(),
        ) {
            Ok(next) if next.id() == scope.id() && next.grant.expires_at > scope.grant.expires_at => next,
            Ok(_) => return false,
            Err(error) => {
                tracing::warn!(scope = %scope.name, %error, "a member sent a grant that does not hold");
                return false;
            }
        };
        let authority = better(next.authority, scope.authority.clone());
        let next = Scope { authority, uninvited: scope.uninvited.clone(), ..next };
        if let Err(error) = self.store_scope(&next, &self.grant_entry(Kind::Renewed, &next)).await {
            tracing::warn!(scope = %scope.name, %error, "the renewed grant could not be stored");
            return false;
        }
        self.scopes().renew(&next);
        if let Some(gossip) = self.gossip(&next.id()) {
            gossip.renew(&next.signed).await;
        }
        tracing::info!(scope = %next.name, until = %next.grant.expires_at, "the membership was renewed");
        true
    }
}

/// A renewed grant may carry a lesser authority than the one before; the better of both is kept.
fn better(new: Option<Authority>, old: Option<Authority>) -> Option<Authority> {
    match (new, old) {
        (Some(new), Some(old)) => Some(new.better(old, UnixTime::now())),
        (new, old) => new.or(old),
    }
}
