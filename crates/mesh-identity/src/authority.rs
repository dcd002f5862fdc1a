//! Someone allowed to admit: issues invites, signs grants, delegates, revokes.

use std::time::Duration;

use thiserror::Error;

use crate::addr::InvalidNodeAddr;
use crate::chain::{CHAIN_LINKS_MAX, Chain, ChainError, Delegation};
use crate::grant::{GRANT_TTL, Statement};
use crate::invite::{InviteGrant, InviteId, InviteToken, TOKEN_VERSION};
use crate::name::is_mesh_name;
use crate::revocation::{Revoked, SignedRevocation};
use crate::{
    DeviceDelegation, Expiry, Grant, NodeAddr, NodeId, NodeKey, NodeName, Permissions, ScopeId, ScopeRoot,
    SignedGrant, UnixTime,
};

/// How long the authority lasts that comes with a grant that may invite: a year, so that a scope lives on while its founder
/// is away for longer than a grant. Ending it sooner takes a revocation.
pub const DELEGATION_TTL: Duration = Duration::from_secs(365 * 86_400);

/// What an invite shall say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InviteOptions {
    /// What to call the scope, 1 to 64 bytes without control or invisible characters. Default: nothing.
    pub name: Option<String>,
    /// How long it holds; `None` is until it is revoked. Default: 24 hours.
    pub ttl: Option<Duration>,
    /// How many nodes it admits; 0 is no limit. Default: 1.
    pub max_uses: u32,
    /// What they may do. Default: a member that invites nobody.
    pub permissions: Permissions,
    /// Where the issuer can be dialed. Default: nowhere.
    pub hints: NodeAddr,
}

impl Default for InviteOptions {
    fn default() -> Self {
        Self {
            name: None,
            ttl: Some(Duration::from_secs(86_400)),
            max_uses: 1,
            permissions: Permissions::MEMBER,
            hints: NodeAddr::default(),
        }
    }
}

/// Why something was not signed. Nothing was changed; the request must change first.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The mesh name is empty, too long, or holds characters that a terminal would act on.
    #[error("a mesh name has 1 to 64 bytes and no control or invisible characters")]
    Name,
    /// The hints cannot be written down.
    #[error("the invite's addresses cannot be written down")]
    Hints(#[from] InvalidNodeAddr),
    /// More than the signer itself was given, or an admin appointed by somebody other than the founder.
    #[error("cannot give \"{wanted}\" with an authority of \"{held}\"")]
    Widened {
        /// What was asked for.
        wanted: Permissions,
        /// What the signer has.
        held: Permissions,
    },
    /// Later than the signer's own end.
    #[error("it would end at {wanted}, after the authority behind it, which ends at {held}")]
    Outlives {
        /// The end that was asked for.
        wanted: Expiry,
        /// The signer's own.
        held: Expiry,
    },
    /// The chain has no room for another link.
    #[error("the chain of authority already has {CHAIN_LINKS_MAX} links")]
    ChainFull,
    /// The signer's own authority does not hold.
    #[error("no authority to sign this")]
    NoAuthority(#[from] ChainError),
    /// The key is not the one at the end of the chain.
    #[error("the key is not the one that the authority was given to")]
    WrongKey,
}

/// A key, and the chain that lets it admit others to a scope.
#[derive(Debug, Clone)]
pub struct Authority {
    key: NodeKey,
    chain: Chain,
}

impl Authority {
    /// The founder's, or the recovery key's, own authority.
    ///
    /// # Errors
    /// [`IssueError::WrongKey`] when `key` is neither of them.
    pub fn founder(key: NodeKey, root: ScopeRoot) -> Result<Self, IssueError> {
        let id = key.node_id();
        if id == root.founder {
            Ok(Self { key, chain: Chain::founder(root) })
        } else if root.is_recovery_key(&id) {
            Ok(Self { key, chain: Chain::recovered(root, id) })
        } else {
            Err(IssueError::WrongKey)
        }
    }

    /// An authority that was delegated. Its time is checked whenever it signs.
    ///
    /// # Errors
    /// [`IssueError::WrongKey`] when the chain ends with another key, [`IssueError::NoAuthority`] when it does not hold.
    pub fn delegated(key: NodeKey, chain: Chain) -> Result<Self, IssueError> {
        if chain.issuer() != key.node_id() {
            return Err(IssueError::WrongKey);
        }
        chain.verify_signatures()?;
        Ok(Self { key, chain })
    }

    /// The authority that came with the holder's own grant; `None` when none did, or it is another key's.
    pub fn from_grant(key: NodeKey, grant: &SignedGrant) -> Option<Self> {
        let mut chain = grant.chain().clone();
        chain.links.push(grant.own_delegation()?.clone());
        Self::delegated(key, chain).ok()
    }

    /// Whose it is.
    pub fn node_id(&self) -> NodeId {
        self.key.node_id()
    }

    /// Where it holds.
    pub fn scope(&self) -> ScopeId {
        self.chain.scope()
    }

    /// What it rests on.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The most that it can give.
    pub fn permissions(&self) -> Permissions {
        self.chain.permissions()
    }

    /// Which of two authorities of one node to keep: one that still holds at `now`, then the shorter chain, then the later end.
    #[must_use]
    pub fn better(self, other: Self, now: UnixTime) -> Self {
        let rank = |one: &Self| {
            let end = one.chain.expires();
            (
                !end.is_over(now),
                std::cmp::Reverse(one.chain.links.len()),
                end.time().map_or(u64::MAX, |end| end.0),
            )
        };
        if rank(&other) > rank(&self) { other } else { self }
    }

    /// A new invite, whose uses this node counts.
    ///
    /// # Errors
    /// [`IssueError`] when the options break a bound, or would give more or for longer than this authority has.
    pub fn issue_invite(&self, options: &InviteOptions, now: UnixTime) -> Result<InviteToken, IssueError> {
        self.issue_invite_as(InviteId::generate(now), options, now)
    }

    pub(crate) fn issue_invite_as(
        &self,
        invite_id: InviteId,
        options: &InviteOptions,
        now: UnixTime,
    ) -> Result<InviteToken, IssueError> {
        if options.name.as_deref().is_some_and(|name| !is_mesh_name(name)) {
            return Err(IssueError::Name);
        }
        options.hints.check()?;
        self.check_gift(options.permissions, now)?;
        if options.permissions.admin && !self.chain.links.is_empty() {
            return Err(self.widened(options.permissions));
        }
        if options.permissions.may_admit() {
            self.check_room()?;
        }
        let expires_at = Expiry::after(now, options.ttl);
        self.check_end(expires_at)?;
        let says = InviteGrant {
            version: TOKEN_VERSION,
            invite_id,
            inviter_peer_id: self.node_id(),
            scope: self.scope(),
            mesh_name: options.name.clone(),
            expires_at,
            max_uses: options.max_uses,
            permissions: options.permissions,
            hints: options.hints.clone(),
        };
        Ok(InviteToken::sign(&self.key, self.chain.clone(), says))
    }

    /// A grant of [`GRANT_TTL`], or until this authority ends if that is sooner. It outlives the invite from which it came.
    ///
    /// If the permissions include admitting others and the chain has room, the grant carries a delegation for that.
    ///
    /// # Errors
    /// [`IssueError`] when this authority has ended or cannot give these permissions.
    pub fn sign_grant(
        &self,
        subject: NodeId,
        name: NodeName,
        permissions: Permissions,
        invite: Option<InviteId>,
        now: UnixTime,
    ) -> Result<SignedGrant, IssueError> {
        self.sign_grant_until(
            Subject { id: subject, name, holder: None },
            permissions,
            invite,
            Expiry::NEVER,
            now,
        )
    }

    /// The next grant of a member whose present one has been verified: same subject, name, permissions and invite.
    ///
    /// A throw-away key's grant ends when its lasting key said. It is renewed beyond that by a new statement of that
    /// lasting key, `device`; one that is another key's, or does not hold, is as none.
    ///
    /// # Errors
    /// [`IssueError`] when this authority has ended or cannot give what the member has.
    pub fn renew(
        &self,
        grant: &Grant,
        device: Option<&DeviceDelegation>,
        now: UnixTime,
    ) -> Result<SignedGrant, IssueError> {
        let subject = Subject { id: grant.subject, name: grant.name.clone(), holder: grant.holder };
        let says_again = device
            .filter(|device| grant.holder == Some(device.lasting))
            .filter(|device| device.verify(&grant.subject, &self.scope(), now).is_ok());
        let end = match (grant.holder, says_again) {
            (None, _) => Expiry::NEVER,
            (Some(_), Some(device)) => device.expires,
            (Some(_), None) => Expiry::at(grant.expires_at),
        };
        self.sign_grant_until(subject, grant.permissions, grant.invite, end, now)
    }

    pub(crate) fn sign_grant_until(
        &self,
        subject: Subject,
        permissions: Permissions,
        invite: Option<InviteId>,
        end: Expiry,
        now: UnixTime,
    ) -> Result<SignedGrant, IssueError> {
        self.check_gift(permissions, now)?;
        let capped = |ttl| Expiry::after(now, Some(ttl)).min(self.chain.expires()).min(end);
        let delegation = if self.may_delegate(permissions) {
            Some(self.delegate(subject.id, permissions, capped(DELEGATION_TTL))?)
        } else {
            None
        };
        let says = Statement {
            subject: subject.id,
            name: subject.name,
            permissions,
            issued_at: now,
            expires_at: capped(GRANT_TTL).time().unwrap_or(now),
            invite,
            holder: subject.holder,
            delegation,
        };
        Ok(SignedGrant::sign(&self.key, self.chain.clone(), says))
    }

    /// One link more: `subject` may admit others with these permissions or less.
    ///
    /// # Errors
    /// [`IssueError`] when that is more, or for longer, than this authority has, or the chain is full.
    pub fn delegate(
        &self,
        subject: NodeId,
        permissions: Permissions,
        expires: Expiry,
    ) -> Result<Delegation, IssueError> {
        if !permissions.may_admit() || !self.chain.may_give(permissions) || self.passes_admin(permissions) {
            return Err(self.widened(permissions));
        }
        self.check_room()?;
        self.check_end(expires)?;
        Ok(Delegation::sign(&self.key, &self.scope(), subject, permissions, expires))
    }

    /// Makes `subject` an admin, who may admit and revoke. For the founder and the recovery key only.
    ///
    /// # Errors
    /// [`IssueError::Widened`] for everybody else.
    pub fn appoint_admin(&self, subject: NodeId, expires: Expiry) -> Result<Delegation, IssueError> {
        self.delegate(subject, Permissions::ADMIN, expires)
    }

    /// A statement that a node or an invite is revoked as of `now`. How far it reaches follows from this authority: see
    /// `docs/protocols/invites.md`.
    ///
    /// # Errors
    /// [`IssueError::NoAuthority`] when this authority has ended.
    pub fn revoke(&self, what: Revoked, now: UnixTime) -> Result<SignedRevocation, IssueError> {
        self.chain.verify(now)?;
        Ok(SignedRevocation::by_authority(&self.key, self.chain.clone(), what, now))
    }

    fn may_delegate(&self, permissions: Permissions) -> bool {
        permissions.may_admit() && !self.passes_admin(permissions) && self.chain.links.len() < CHAIN_LINKS_MAX
    }

    /// Only the root appoints admins.
    fn passes_admin(&self, permissions: Permissions) -> bool {
        permissions.admin && !self.chain.links.is_empty()
    }

    fn check_gift(&self, permissions: Permissions, now: UnixTime) -> Result<(), IssueError> {
        self.chain.verify(now)?;
        if self.chain.may_give(permissions) { Ok(()) } else { Err(self.widened(permissions)) }
    }

    fn check_room(&self) -> Result<(), IssueError> {
        if self.chain.links.len() < CHAIN_LINKS_MAX { Ok(()) } else { Err(IssueError::ChainFull) }
    }

    fn check_end(&self, wanted: Expiry) -> Result<(), IssueError> {
        let held = self.chain.expires();
        if wanted.is_within(held) { Ok(()) } else { Err(IssueError::Outlives { wanted, held }) }
    }

    fn widened(&self, wanted: Permissions) -> IssueError {
        IssueError::Widened { wanted, held: self.permissions() }
    }
}

/// Whom a grant is about.
pub(crate) struct Subject {
    pub(crate) id: NodeId,
    pub(crate) name: NodeName,
    pub(crate) holder: Option<NodeId>,
}
