//! What the core must be able to sign and to check. Simulators put a double in its place.

use bytes::Bytes;
use mesh_identity::{Domain, Expiry, NodeId, NodeName, Role, UnixTime};

/// An ed25519 signature, or a double's stand-in for one. Ordered, so that two different statements with one version
/// converge to the same one everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signature(pub [u8; 64]);

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signature({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

/// What a grant says of its subject, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The name that the grant carries.
    pub name: NodeName,
    /// The role that the grant carries.
    pub role: Role,
    /// When it was issued, by its issuer's clock.
    pub issued: UnixTime,
    /// When it ends.
    pub expires: Expiry,
}

/// Why a record was not accepted. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Refusal {
    /// The subject's signature does not hold.
    #[error("the subject's signature does not hold")]
    BadSignature,
    /// The grant is malformed, of another scope, of another subject, or wrongly signed.
    #[error("the grant does not make the subject a member of this scope")]
    BadGrant,
    /// The grant has ended.
    #[error("the grant has ended")]
    GrantExpired,
    /// The subject is revoked.
    #[error("the subject is revoked")]
    Revoked,
    /// The record passes a bound of [`crate::limits`].
    #[error("the record is too large")]
    TooLarge,
    /// As many nodes are known as the configuration allows.
    #[error("no room for a further node")]
    Full,
}

/// Signs for this node and checks others, in one scope. It answers from its arguments and from the revocations it was
/// told of, and from nothing else.
pub trait Trust {
    /// This node's signature over `message` in `domain` and the scope.
    fn sign(&self, domain: Domain, message: &[u8]) -> Signature;

    /// Whether `signature` is the subject's over `message` in `domain` and the scope.
    fn is_signed(&self, subject: &NodeId, domain: Domain, message: &[u8], signature: &Signature) -> bool;

    /// What `grant` says of `subject` in this scope at `now`.
    ///
    /// # Errors
    /// [`Refusal::BadGrant`], [`Refusal::GrantExpired`] or [`Refusal::Revoked`].
    fn standing(&self, subject: &NodeId, grant: &[u8], now: UnixTime) -> Result<Standing, Refusal>;

    /// Checks a signed revocation and, when it holds, lets it count in every later [`Trust::standing`].
    /// Returns whether it was new.
    ///
    /// # Errors
    /// [`Refusal::BadSignature`] when it does not hold (also: when its signer's authority is not known here yet),
    /// [`Refusal::Full`] when there is no room for it.
    fn revoke(&mut self, revocation: &[u8], now: UnixTime) -> Result<bool, Refusal>;

    /// The revocations that count here, for peers that lack them.
    fn revocations(&self) -> Vec<Bytes>;
}
