//! Grants: the signed statement that a node is in a scope, in a role, until then.

use std::time::Duration;

use crate::chain::{CHAIN_BYTES_MAX, Chain, Delegation};
use crate::invite::InviteId;
use crate::key::{Domain, Signature};
use crate::wire::{DecodeError, Reader, serde_as_encoded};
use crate::{
    CLOCK_SKEW, Expiry, GrantError, NodeId, NodeKey, NodeName, Permissions, RevocationSet, Role, ScopeId,
    UnixTime,
};

/// How long a grant lasts: 30 days, renewed at half of it.
pub const GRANT_TTL: Duration = Duration::from_secs(30 * 86_400);

const DOMAIN: Domain = Domain::new("qmt-mesh/grant/v1");
const VERSION: u8 = 1;
const INVITE_BIT: u8 = 1;
const HOLDER_BIT: u8 = 2;
const DELEGATION_BIT: u8 = 4;
/// Version, flags, chain, subject, name, permissions, two times, invite, holder, delegation, signature at their longest.
pub(crate) const GRANT_BYTES_MAX: usize = 1 + 1 + CHAIN_BYTES_MAX + 32 + 64 + 1 + 6 + 6 + 16 + 32 + 103 + 64;

/// A grant as it is stored and shown in hello: decoded, not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedGrant {
    pub(crate) chain: Chain,
    pub(crate) says: Statement,
    signature: Signature,
}

/// What a grant says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statement {
    pub(crate) subject: NodeId,
    pub(crate) name: NodeName,
    pub(crate) permissions: Permissions,
    pub(crate) issued_at: UnixTime,
    pub(crate) expires_at: UnixTime,
    pub(crate) invite: Option<InviteId>,
    pub(crate) holder: Option<NodeId>,
    pub(crate) delegation: Option<Delegation>,
}

/// A verified grant: proof, in the hand of whoever holds it, that its subject was a member when it was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The member.
    pub subject: NodeId,
    /// The scope.
    pub scope: ScopeId,
    /// The name under which the member was admitted.
    pub name: NodeName,
    /// What it is; the same as in `permissions`.
    pub role: Role,
    /// What it may do.
    pub permissions: Permissions,
    /// When the grant was signed.
    pub issued_at: UnixTime,
    /// When it ends.
    pub expires_at: UnixTime,
    /// Who signed it.
    pub issuer: NodeId,
    /// The invite from which the membership came.
    pub invite: Option<InviteId>,
    /// The lasting key behind a throw-away one.
    pub holder: Option<NodeId>,
}

impl Grant {
    /// When to ask for the next grant: half way between issue and end.
    pub fn renew_at(&self) -> UnixTime {
        UnixTime(self.issued_at.0 + self.expires_at.0.saturating_sub(self.issued_at.0) / 2)
    }
}

impl SignedGrant {
    pub(crate) fn sign(key: &NodeKey, chain: Chain, says: Statement) -> Self {
        let signature = key.sign(DOMAIN, &chain.scope(), &signed_part(&chain, &says));
        Self { chain, says, signature }
    }

    /// The member, as the unverified grant says.
    pub fn subject(&self) -> NodeId {
        self.says.subject
    }

    /// The scope, as the unverified grant says.
    pub fn scope(&self) -> ScopeId {
        self.chain.scope()
    }

    /// When it ends, as the unverified grant says.
    pub fn expires_at(&self) -> UnixTime {
        self.says.expires_at
    }

    /// The issuer's authority, unverified.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The link by which the subject may admit others, if it came with one; see `Authority::from_grant`.
    pub fn own_delegation(&self) -> Option<&Delegation> {
        self.says.delegation.as_ref()
    }

    /// Proves membership in `scope` at `now`: signatures up to the founder, nothing widened, not ended, nothing revoked.
    ///
    /// Whether the subject is the peer at the other end is the caller's to compare; [`SignedGrant::verify_for`] does both.
    ///
    /// # Errors
    /// [`GrantError`] names the first fault.
    pub fn verify(
        &self,
        scope: &ScopeId,
        now: UnixTime,
        revoked: &RevocationSet,
    ) -> Result<Grant, GrantError> {
        let says = &self.says;
        if self.scope() != *scope || revoked.scope() != *scope {
            return Err(GrantError::WrongScope);
        }
        self.verify_signatures()?;
        if says.issued_at > now.plus(CLOCK_SKEW) {
            return Err(GrantError::NotYetValid { at: says.issued_at });
        }
        if Expiry::at(says.expires_at).is_over(now) {
            return Err(GrantError::Expired { at: says.expires_at });
        }
        self.chain.verify(now)?;
        if revoked.ends_grant(self) {
            return Err(GrantError::Revoked);
        }
        Ok(self.unpack())
    }

    /// [`SignedGrant::verify`], and that it is `peer`'s own.
    ///
    /// # Errors
    /// [`GrantError`] names the first fault.
    pub fn verify_for(
        &self,
        peer: &NodeId,
        scope: &ScopeId,
        now: UnixTime,
        revoked: &RevocationSet,
    ) -> Result<Grant, GrantError> {
        if self.says.subject != *peer {
            return Err(GrantError::WrongSubject);
        }
        self.verify(scope, now, revoked)
    }

    /// All of [`SignedGrant::verify`] that does not change with time: what a revocation by its subject rests on.
    pub(crate) fn verify_signatures(&self) -> Result<(), GrantError> {
        let says = &self.says;
        self.chain.verify_signatures()?;
        let scope = self.scope();
        if !self.chain.issuer().verify(DOMAIN, &scope, &signed_part(&self.chain, says), &self.signature) {
            return Err(GrantError::BadSignature);
        }
        let lasts_too_long = says.expires_at > says.issued_at.plus(GRANT_TTL);
        let outlives_chain = !Expiry::at(says.expires_at).is_within(self.chain.expires());
        if lasts_too_long || outlives_chain || !self.chain.may_give(says.permissions) {
            return Err(GrantError::Widened);
        }
        if let Some(delegation) = &says.delegation {
            let mut chain = self.chain.clone();
            chain.links.push(delegation.clone());
            chain.verify_signatures()?;
            if delegation.subject != says.subject || !delegation.permissions.is_within(says.permissions) {
                return Err(GrantError::Widened);
            }
        }
        Ok(())
    }

    fn unpack(&self) -> Grant {
        let says = self.says.clone();
        Grant {
            subject: says.subject,
            scope: self.scope(),
            name: says.name,
            role: says.permissions.role,
            permissions: says.permissions,
            issued_at: says.issued_at,
            expires_at: says.expires_at,
            issuer: self.chain.issuer(),
            invite: says.invite,
            holder: says.holder,
        }
    }

    /// The encoding, at most 819 bytes; 167 for a founder's grant with an 8-letter name.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = signed_part(&self.chain, &self.says);
        out.extend_from_slice(self.signature.as_bytes());
        out
    }

    /// Reads what [`SignedGrant::encode`] wrote; nothing is verified yet.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, GRANT_BYTES_MAX)?;
        let grant = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(grant)
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.byte()? {
            VERSION => {}
            found => return Err(DecodeError::WrongVersion { found }),
        }
        let flags = reader.byte()?;
        if flags & !(INVITE_BIT | HOLDER_BIT | DELEGATION_BIT) != 0 {
            return Err(DecodeError::Invalid { what: "grant flags" });
        }
        let chain = Chain::read(reader)?;
        let says = Statement {
            subject: NodeId::read(reader)?,
            name: NodeName::read(reader)?,
            permissions: Permissions::from_byte(reader.byte()?)?,
            issued_at: UnixTime::read(reader)?,
            expires_at: UnixTime::read(reader)?,
            invite: if flags & INVITE_BIT == 0 { None } else { Some(InviteId::read(reader)?) },
            holder: if flags & HOLDER_BIT == 0 { None } else { Some(NodeId::read(reader)?) },
            delegation: if flags & DELEGATION_BIT == 0 { None } else { Some(Delegation::read(reader)?) },
        };
        Ok(Self { chain, says, signature: Signature::read(reader)? })
    }
}

serde_as_encoded!(SignedGrant, "a grant", GRANT_BYTES_MAX);

fn signed_part(chain: &Chain, says: &Statement) -> Vec<u8> {
    let bit = |set: bool, bit: u8| if set { bit } else { 0 };
    let mut out = Vec::with_capacity(256);
    out.push(VERSION);
    out.push(
        bit(says.invite.is_some(), INVITE_BIT)
            | bit(says.holder.is_some(), HOLDER_BIT)
            | bit(says.delegation.is_some(), DELEGATION_BIT),
    );
    chain.put(&mut out);
    out.extend_from_slice(says.subject.as_bytes());
    says.name.put(&mut out);
    out.push(says.permissions.to_byte());
    says.issued_at.put(&mut out);
    says.expires_at.put(&mut out);
    if let Some(invite) = &says.invite {
        out.extend_from_slice(invite.as_bytes());
    }
    if let Some(holder) = &says.holder {
        out.extend_from_slice(holder.as_bytes());
    }
    if let Some(delegation) = &says.delegation {
        delegation.put(&mut out);
    }
    out
}
