//! How authority to admit passes from the founder to others.

use thiserror::Error;

use crate::key::{Domain, Signature};
use crate::wire::{DecodeError, Reader, serde_as_encoded};
use crate::{Expiry, NodeId, NodeKey, Permissions, ScopeId, ScopeRoot, UnixTime};

const DOMAIN: Domain = Domain::new("qmt-mesh/delegation/v1");

/// The most delegations between the founder and whoever signs: each one costs a token up to 140 characters.
pub const CHAIN_LINKS_MAX: usize = 4;

/// Subject, permissions, the longest expiry (6 bytes until the year 9999), signature.
const DELEGATION_BYTES_MAX: usize = 32 + 1 + 6 + 64;

const LINKS_MASK: u8 = 0x07;
const RECOVERY_BIT: u8 = 0x08;
/// Header, root, recovery key, links.
pub(crate) const CHAIN_BYTES_MAX: usize =
    1 + ScopeRoot::ENCODED_BYTES + 32 + CHAIN_LINKS_MAX * DELEGATION_BYTES_MAX;

/// One link of authority: whoever signed it says that `subject` may admit others, with these permissions or less, until
/// then. At most 103 bytes on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    /// Who may admit.
    pub subject: NodeId,
    /// The most that the subject may give.
    pub permissions: Permissions,
    /// When the authority ends.
    pub expires: Expiry,
    signature: Signature,
}

impl Delegation {
    pub(crate) fn sign(
        key: &NodeKey,
        scope: &ScopeId,
        subject: NodeId,
        permissions: Permissions,
        expires: Expiry,
    ) -> Self {
        let signature = key.sign(DOMAIN, scope, &statement(subject, permissions, expires));
        Self { subject, permissions, expires, signature }
    }

    fn is_signed_by(&self, issuer: &NodeId, scope: &ScopeId) -> bool {
        issuer.verify(
            DOMAIN,
            scope,
            &statement(self.subject, self.permissions, self.expires),
            &self.signature,
        )
    }

    /// The encoding, at most 103 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(DELEGATION_BYTES_MAX);
        self.put(&mut out);
        out
    }

    /// Reads what [`Delegation::encode`] wrote; the signature is not yet verified.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, DELEGATION_BYTES_MAX)?;
        let delegation = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(delegation)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&statement(self.subject, self.permissions, self.expires));
        out.extend_from_slice(self.signature.as_bytes());
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            subject: NodeId::read(reader)?,
            permissions: Permissions::from_byte(reader.byte()?)?,
            expires: Expiry::read(reader)?,
            signature: Signature::read(reader)?,
        })
    }
}

serde_as_encoded!(Delegation, "a delegation", DELEGATION_BYTES_MAX);

fn statement(subject: NodeId, permissions: Permissions, expires: Expiry) -> Vec<u8> {
    let mut out = Vec::with_capacity(DELEGATION_BYTES_MAX);
    out.extend_from_slice(subject.as_bytes());
    out.push(permissions.to_byte());
    expires.put(&mut out);
    out
}

/// The authority of whoever signs an invite, a grant or a revocation, from the scope's root down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Where the scope's trust begins.
    pub root: ScopeRoot,
    /// The recovery key, when the chain begins with it instead of the founder. It must be the one that the root commits to.
    pub recovery: Option<NodeId>,
    /// From the root's delegate to the signer; empty when the root itself signs. At most [`CHAIN_LINKS_MAX`].
    pub links: Vec<Delegation>,
}

/// Why a chain gives no authority. It never will, except that [`ChainError::Expired`] can be a wrong clock.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A link is not signed by the one above it, or the recovery key is not the scope's.
    #[error("the chain of authority is not signed as it says")]
    BadSignature,
    /// A link gives more than its parent had, or comes from one that may not admit.
    #[error("the chain of authority gives more than its issuer had")]
    Widened,
    /// A link has ended.
    #[error("the issuer's authority ended at {at}")]
    Expired {
        /// When.
        at: UnixTime,
    },
    /// More than [`CHAIN_LINKS_MAX`] links.
    #[error("the chain of authority has more than {CHAIN_LINKS_MAX} links")]
    TooLong,
}

impl Chain {
    /// The founder's own authority.
    pub fn founder(root: ScopeRoot) -> Self {
        Self { root, recovery: None, links: Vec::new() }
    }

    /// The recovery key's own authority; [`Chain::verify`] checks that the key is the scope's.
    pub fn recovered(root: ScopeRoot, recovery: NodeId) -> Self {
        Self { root, recovery: Some(recovery), links: Vec::new() }
    }

    /// The scope in which it holds.
    pub fn scope(&self) -> ScopeId {
        self.root.id()
    }

    /// Who stands at the top: the founder, or the recovery key.
    pub fn top(&self) -> NodeId {
        self.recovery.unwrap_or(self.root.founder)
    }

    /// Whose authority it is: who must have signed what hangs below it.
    pub fn issuer(&self) -> NodeId {
        self.links.last().map_or(self.top(), |link| link.subject)
    }

    /// The most that the issuer may give.
    pub fn permissions(&self) -> Permissions {
        self.links.last().map_or(Permissions::ADMIN, |link| link.permissions)
    }

    /// When the authority ends: with the first of its links.
    pub fn expires(&self) -> Expiry {
        self.links.iter().fold(Expiry::NEVER, |end, link| end.min(link.expires))
    }

    /// Checks every signature, that each link is within its parent, and that none has ended.
    ///
    /// # Errors
    /// [`ChainError`] names the first fault; signatures come before time.
    pub fn verify(&self, now: UnixTime) -> Result<(), ChainError> {
        self.verify_signatures()?;
        match self.expires() {
            end if end.is_over(now) => Err(ChainError::Expired { at: end.time().unwrap_or(now) }),
            _ => Ok(()),
        }
    }

    /// All of [`Chain::verify`] but the time.
    pub(crate) fn verify_signatures(&self) -> Result<(), ChainError> {
        if self.links.len() > CHAIN_LINKS_MAX {
            return Err(ChainError::TooLong);
        }
        if self.recovery.is_some_and(|key| !self.root.is_recovery_key(&key)) {
            return Err(ChainError::BadSignature);
        }
        let scope = self.scope();
        let (mut issuer, mut permissions, mut expires) = (self.top(), Permissions::ADMIN, Expiry::NEVER);
        for (depth, link) in self.links.iter().enumerate() {
            if !link.is_signed_by(&issuer, &scope) {
                return Err(ChainError::BadSignature);
            }
            let passes_admin = link.permissions.admin && depth > 0; // only the root appoints admins
            let within = link.permissions.is_within(permissions) && link.expires.is_within(expires);
            if !within || passes_admin || !link.permissions.may_admit() {
                return Err(ChainError::Widened);
            }
            (issuer, permissions, expires) = (link.subject, link.permissions, link.expires);
        }
        Ok(())
    }

    /// Whether someone with this authority may give these permissions.
    pub(crate) fn may_give(&self, permissions: Permissions) -> bool {
        permissions.are_consistent() && permissions.is_within(self.permissions())
    }

    /// The nodes of the chain in order, the top first.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        std::iter::once(self.top()).chain(self.links.iter().map(|link| link.subject))
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let links = u8::try_from(self.links.len()).unwrap_or(u8::MAX) & LINKS_MASK;
        out.push(links | if self.recovery.is_some() { RECOVERY_BIT } else { 0 });
        self.root.put(out);
        if let Some(recovery) = &self.recovery {
            out.extend_from_slice(recovery.as_bytes());
        }
        for link in &self.links {
            link.put(out);
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let header = reader.byte()?;
        let count = usize::from(header & LINKS_MASK);
        if header & !(LINKS_MASK | RECOVERY_BIT) != 0 || count > CHAIN_LINKS_MAX {
            return Err(DecodeError::Invalid { what: "chain" });
        }
        let root = ScopeRoot::read(reader)?;
        let recovery = if header & RECOVERY_BIT == 0 { None } else { Some(NodeId::read(reader)?) };
        let links = (0..count).map(|_| Delegation::read(reader)).collect::<Result<_, _>>()?;
        Ok(Self { root, recovery, links })
    }

    /// The encoding, at most 493 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.put(&mut out);
        out
    }

    /// Reads what [`Chain::encode`] wrote; nothing is verified yet.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, CHAIN_BYTES_MAX)?;
        let chain = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(chain)
    }
}

serde_as_encoded!(Chain, "a chain of authority", CHAIN_BYTES_MAX);
