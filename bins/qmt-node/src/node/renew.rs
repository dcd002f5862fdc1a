//! `renew/1`: a member asks one that may admit for its next grant, half way through the present one.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mesh_control::JoinRequest;
use mesh_identity::{
    DeviceDelegation, Expiry, GrantError, InviteToken, NodeId, Revoked, ScopeId, SignedGrant, UnixTime,
};
use mesh_transport::{Call, CallFault, DialError, Peer, Protocol, Refusal, Transport, serve_call};
use serde::{Deserialize, Serialize};

use super::scopes::{Scope, Scopes, better};
use super::{Node, chain};
use crate::store::audit::{Entry, Kind};

const DEADLINE: Duration = Duration::from_secs(10);
/// The server's disk did not take the row that a renewal must leave; another member may renew.
const NOT_RECORDED: u16 = 1;
/// How long a lasting key's word for a throw-away key holds: a stolen throw-away key is of use no longer than that.
const DEVICE_TTL: Duration = Duration::from_secs(86_400);
/// Between attempts that follow the coming of members: many may come at once.
const PAUSE: Duration = Duration::from_secs(1);
/// What to do about a membership that has ended.
pub(super) const END_MEND: &str = "ask for a new invite, then run `qmt-cli join TOKEN`";
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
    /// Renews grants in time, for as long as the node runs: when they are due, and when a member comes that may help.
    pub(crate) async fn keep_grants(self) {
        loop {
            for scope in self.scopes().list() {
                if scope.end(UnixTime::now()).is_some() {
                    self.follow_end(&scope).await;
                } else if scope.grant.renew_at() <= UnixTime::now() && !self.renew_scope(&scope).await {
                    tracing::warn!(scope = %scope.name, ends = %scope.grant.expires_at, "no member has renewed our grant yet");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.helped() => {}
                () = self.stopping().cancelled_owned() => return,
            }
        }
    }

    /// A member came, and a grant is due; not more often than [`PAUSE`].
    async fn helped(&self) {
        loop {
            self.inner.renewal.notified().await;
            tokio::time::sleep(PAUSE).await;
            if self.scopes().list().iter().any(|scope| scope.grant.renew_at() <= UnixTime::now()) {
                return;
            }
        }
    }

    /// This node is no member any more and could not be one while it ran: told, and mended by its invite if that still
    /// admits.
    async fn follow_end(&self, scope: &Scope) {
        if Expiry::at(scope.grant.expires_at).is_over(UnixTime::now()) {
            self.note(&self.grant_entry(Kind::Expired, scope)).await;
        }
        let Some(invite) = scope.invite.clone().filter(|invite| invite.verify(UnixTime::now()).is_ok())
        else {
            return;
        };
        if let Err(error) = self.join(JoinRequest { token: invite.to_string() }).await {
            tracing::warn!(scope = %scope.name, error = %error.message, "the membership has ended, and its invite does not bring it back");
        }
    }

    /// What to do about a membership that had ended when this node started: its invite may bring it back, and if not,
    /// people are told.
    pub(crate) async fn take_end(
        &self,
        id: ScopeId,
        name: String,
        issuer: NodeId,
        error: &GrantError,
        invite: Option<InviteToken>,
    ) {
        let sentence = match error {
            GrantError::Expired { at } => format!("the membership in {name} ended at {at}"),
            GrantError::Revoked => format!("the membership in {name} was revoked"),
            _ => format!("the membership in {name} does not hold: {error}"),
        };
        tracing::warn!(mend = END_MEND, "{sentence}");
        self.inner.ended.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sentence);
        if !matches!(error, GrantError::Expired { .. }) {
            return;
        }
        let entry = Entry::new(Kind::Expired, id, name.clone(), Revoked::Node(self.id()), UnixTime::now());
        self.note(&entry.called(self.name().as_str()).by(issuer, "")).await;
        if let Some(invite) = invite.filter(|invite| invite.verify(UnixTime::now()).is_ok()) {
            self.inner.tasks.spawn(self.clone().join_when_reached(invite, name));
        }
    }

    /// In one sentence that a member turns this node away since its membership was revoked; none when nobody does, or when
    /// another one still lets it in: then it was said before this node came back. It is that member's word: who is revoked is
    /// let in nowhere, and so is not sent the revocation itself.
    pub(crate) fn told_out(&self, scope: &Scope) -> Option<String> {
        let id = scope.id();
        if self.transport().links().iter().any(|link| link.peer.scope == id) {
            return None;
        }
        let members = self.gossip(&id)?.members();
        let says = members.iter().find(|member| {
            let why = self.transport().unreached(&id, &member.id);
            matches!(why, Some(DialError::Refused { refusal: Refusal::GrantRevoked, .. }))
        })?;
        Some(format!("the membership in {} was revoked, {} says", scope.name, says.name))
    }

    /// The memberships that have ended, each in one sentence.
    pub(crate) fn ended_memberships(&self) -> Vec<String> {
        let now = UnixTime::now();
        let before = self.inner.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ended = |scope: Scope| scope.end(now).or_else(|| self.told_out(&scope));
        let while_running = self.scopes().list().into_iter().filter_map(ended);
        before.into_values().chain(while_running).collect()
    }

    /// True when a new grant was stored.
    async fn renew_scope(&self, scope: &Scope) -> bool {
        let id = scope.id();
        if let Some(uninvited) = &scope.uninvited {
            return match uninvited.sign_for(self.id(), scope.grant.name.clone()) {
                Ok(grant) => self.take_grant(scope, grant, Kind::Renewed).await,
                Err(_) => false,
            };
        }
        if scope.is_founder() {
            let signed = scope
                .authority
                .as_ref()
                .map(|authority| authority.renew(&scope.grant, None, UnixTime::now()));
            return match signed {
                Some(Ok(grant)) => self.take_grant(scope, grant, Kind::Renewed).await,
                _ => false,
            };
        }
        for member in self.whom_to_ask(scope) {
            let renew = Renew { grant: (*scope.signed).clone(), device: self.device(&id) };
            if let Ok(grant) = self.transport().call(&id, &member, &renew, DEADLINE).await
                && self.take_grant(scope, grant, Kind::Renewed).await
            {
                return true;
            }
        }
        false
    }

    /// Who may renew a grant: linked members that are known to have the right, the issuer, then everybody else alive.
    fn whom_to_ask(&self, scope: &Scope) -> Vec<NodeId> {
        let id = scope.id();
        let links = self.transport().links();
        let of_scope = links.iter().filter(|link| link.peer.scope == id);
        let mut order: Vec<NodeId> =
            of_scope.filter(|link| link.peer.permissions.may_admit()).map(|link| link.peer.id).collect();
        let alive = self.gossip(&id).map(|gossip| gossip.members());
        let alive = alive.iter().flat_map(|members| members.alive()).map(|member| member.id);
        for node in std::iter::once(scope.grant.issuer).chain(alive) {
            if node != self.id() && !order.contains(&node) {
                order.push(node);
            }
        }
        order
    }

    /// For a throw-away key: its lasting key's word, for the scope, from now.
    pub(crate) fn device(&self, scope: &ScopeId) -> Option<DeviceDelegation> {
        let until = Expiry::after(UnixTime::now(), Some(DEVICE_TTL));
        Some(DeviceDelegation::sign(self.lasting_key()?, &self.id(), scope, until))
    }

    /// Takes a new grant of this node up: a renewal that lasts longer, or an appointment.
    pub(super) async fn take_grant(&self, scope: &Scope, grant: SignedGrant, why: Kind) -> bool {
        let next = match Scope::new(
            self.key(),
            scope.name.clone(),
            grant,
            scope.revoked.clone(),
            scope.invite.clone(),
        ) {
            Ok(next)
                if next.id() == scope.id()
                    && (next.grant.expires_at > scope.grant.expires_at || why == Kind::Appointed) =>
            {
                next
            }
            Ok(_) => return false,
            Err(error) => {
                tracing::warn!(scope = %scope.name, %error, "a member sent a grant that does not hold");
                return false;
            }
        };
        let authority = better(next.authority, scope.authority.clone());
        let next = Scope { authority, uninvited: scope.uninvited.clone(), ..next };
        if let Err(error) = self.store_scope(&next, &self.grant_entry(why, &next)).await {
            tracing::warn!(scope = %scope.name, %error, "the renewed grant could not be stored");
            return false;
        }
        self.scopes().renew(&next);
        self.transport().show_credential(&next.id());
        if let Some(gossip) = self.gossip(&next.id()) {
            gossip.renew(&next.signed).await;
        }
        tracing::info!(scope = %next.name, until = %next.grant.expires_at, "the membership was renewed");
        true
    }
}
