//! Revocations: signed statements that a node or an invite is no longer trusted.

use thiserror::Error;

use crate::chain::{CHAIN_BYTES_MAX, Chain, ChainError};
use crate::grant::GRANT_BYTES_MAX;
use crate::invite::InviteId;
use crate::key::{Domain, Signature};
use crate::wire::{DecodeError, Reader, serde_as_encoded};
use crate::{CLOCK_SKEW, GrantError, NodeId, NodeKey, ScopeId, SignedGrant, UnixTime};

const DOMAIN: Domain = Domain::new("qmt-mesh/revocation/v1");
const VERSION: u8 = 1;
const NODE_TAG: u8 = 0;
const INVITE_TAG: u8 = 1;
const BY_AUTHORITY_TAG: u8 = 0;
const BY_SUBJECT_TAG: u8 = 1;
const STANDING_BYTES_MAX: usize =
    if CHAIN_BYTES_MAX > GRANT_BYTES_MAX { CHAIN_BYTES_MAX } else { GRANT_BYTES_MAX };
/// Version, target, time, standing, signature at their longest.
const REVOCATION_BYTES_MAX: usize = 1 + 33 + 6 + 1 + STANDING_BYTES_MAX + 64;

/// What is revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Revoked {
    /// A node: its authority for ever, and its grants signed until then.
    Node(NodeId),
    /// An invite: every further use, and every grant that names it.
    Invite(InviteId),
}

/// What gives the signer a say.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// The founder's, the recovery key's, an admin's or an inviter's authority.
    Authority(Chain),
    /// The subject's own grant: a node may always revoke itself.
    Subject(Box<SignedGrant>),
}

/// A revocation as it is stored and passed on: decoded, not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRevocation {
    what: Revoked,
    at: UnixTime,
    standing: Standing,
    signature: Signature,
}

/// Why a revocation counts for nothing. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RevocationError {
    /// It is for another scope.
    #[error("the revocation is for another scope")]
    WrongScope,
    /// Its time lies in the future here; it may be taken later.
    #[error("the revocation is dated {at}, which is in the future here")]
    FromTheFuture {
        /// When.
        at: UnixTime,
    },
    /// The signature is not its signer's.
    #[error("the revocation's signature is wrong")]
    BadSignature,
    /// The signer's authority does not hold, or had ended at the time of signing.
    #[error("the signer of the revocation had no authority")]
    Authority(#[from] ChainError),
    /// A node's revocation of itself rests on a grant that does not hold.
    #[error("the grant behind the revocation does not hold")]
    Grant(#[from] GrantError),
    /// A node without authority can revoke only itself.
    #[error("the signer of the revocation may revoke only itself")]
    NotAllowed,
}

/// How far a revocation reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Power {
    /// Signed by its own subject: itself.
    Subject,
    /// Signed by an inviter: whatever hangs below the inviter, and itself.
    Inviter,
    /// Signed by an admin: everybody but the founder.
    Admin,
    /// Signed by the founder or the recovery key: everybody.
    Root,
}

/// A verified revocation: its signer had a say when it signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    pub(crate) signed: SignedRevocation,
    pub(crate) signer: NodeId,
    pub(crate) power: Power,
}

impl SignedRevocation {
    pub(crate) fn by_authority(key: &NodeKey, chain: Chain, what: Revoked, now: UnixTime) -> Self {
        Self::sign(key, Standing::Authority(chain), what, now)
    }

    /// A node's revocation of itself, for a key that may have been stolen. `grant` is any grant that it ever had.
    ///
    /// # Errors
    /// [`RevocationError::NotAllowed`] when the grant is another node's.
    pub fn of_self(key: &NodeKey, grant: &SignedGrant, now: UnixTime) -> Result<Self, RevocationError> {
        if grant.subject() != key.node_id() {
            return Err(RevocationError::NotAllowed);
        }
        let standing = Standing::Subject(Box::new(grant.clone()));
        Ok(Self::sign(key, standing, Revoked::Node(key.node_id()), now))
    }

    fn sign(key: &NodeKey, standing: Standing, what: Revoked, at: UnixTime) -> Self {
        let scope = standing.chain().scope();
        let signature = key.sign(DOMAIN, &scope, &signed_part(&standing, what, at));
        Self { what, at, standing, signature }
    }

    /// What is revoked.
    pub fn what(&self) -> Revoked {
        self.what
    }

    /// As of when.
    pub fn at(&self) -> UnixTime {
        self.at
    }

    /// The scope, as the unverified statement says.
    pub fn scope(&self) -> ScopeId {
        self.standing.chain().scope()
    }

    /// Proves that the signer had a say in `scope` when it signed. A revocation does not end: late joiners verify it too.
    ///
    /// # Errors
    /// [`RevocationError`] names the first fault.
    pub fn verify(&self, scope: &ScopeId, now: UnixTime) -> Result<Revocation, RevocationError> {
        if self.scope() != *scope {
            return Err(RevocationError::WrongScope);
        }
        if self.at > now.plus(CLOCK_SKEW) {
            return Err(RevocationError::FromTheFuture { at: self.at });
        }
        let (signer, power) = self.check_standing()?;
        if !signer.verify(DOMAIN, scope, &signed_part(&self.standing, self.what, self.at), &self.signature) {
            return Err(RevocationError::BadSignature);
        }
        Ok(Revocation { signed: self.clone(), signer, power })
    }

    fn check_standing(&self) -> Result<(NodeId, Power), RevocationError> {
        match &self.standing {
            Standing::Authority(chain) => {
                chain.verify(self.at)?;
                let power = match chain.links.last() {
                    None => Power::Root,
                    Some(link) if link.permissions.admin => Power::Admin,
                    Some(_) => Power::Inviter,
                };
                Ok((chain.issuer(), power))
            }
            Standing::Subject(grant) => {
                grant.verify_signatures()?;
                match self.what {
                    Revoked::Node(node) if node == grant.subject() => Ok((node, Power::Subject)),
                    _ => Err(RevocationError::NotAllowed),
                }
            }
        }
    }

    /// The chain on which the signer's say rests.
    pub(crate) fn chain(&self) -> &Chain {
        self.standing.chain()
    }

    /// The encoding, at most 924 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = signed_part(&self.standing, self.what, self.at);
        out.extend_from_slice(self.signature.as_bytes());
        out
    }

    /// Reads what [`SignedRevocation::encode`] wrote; nothing is verified yet.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes, REVOCATION_BYTES_MAX)?;
        match reader.byte()? {
            VERSION => {}
            found => return Err(DecodeError::WrongVersion { found }),
        }
        let what = match reader.byte()? {
            NODE_TAG => Revoked::Node(NodeId::read(&mut reader)?),
            INVITE_TAG => Revoked::Invite(InviteId::read(&mut reader)?),
            _ => return Err(DecodeError::Invalid { what: "kind of revocation" }),
        };
        let at = UnixTime::read(&mut reader)?;
        let standing = match reader.byte()? {
            BY_AUTHORITY_TAG => Standing::Authority(Chain::read(&mut reader)?),
            BY_SUBJECT_TAG => Standing::Subject(Box::new(SignedGrant::read(&mut reader)?)),
            _ => return Err(DecodeError::Invalid { what: "standing" }),
        };
        let signature = Signature::read(&mut reader)?;
        reader.finish()?;
        Ok(Self { what, at, standing, signature })
    }
}

serde_as_encoded!(SignedRevocation, "a revocation", REVOCATION_BYTES_MAX);

impl Standing {
    fn chain(&self) -> &Chain {
        match self {
            Self::Authority(chain) => chain,
            Self::Subject(grant) => grant.chain(),
        }
    }
}

fn signed_part(standing: &Standing, what: Revoked, at: UnixTime) -> Vec<u8> {
    let mut out = vec![VERSION];
    match what {
        Revoked::Node(node) => {
            out.push(NODE_TAG);
            out.extend_from_slice(node.as_bytes());
        }
        Revoked::Invite(invite) => {
            out.push(INVITE_TAG);
            out.extend_from_slice(invite.as_bytes());
        }
    }
    at.put(&mut out);
    match standing {
        Standing::Authority(chain) => {
            out.push(BY_AUTHORITY_TAG);
            chain.put(&mut out);
        }
        Standing::Subject(grant) => {
            out.push(BY_SUBJECT_TAG);
            out.extend_from_slice(&grant.encode());
        }
    }
    out
}

impl Revocation {
    /// What is revoked.
    pub fn what(&self) -> Revoked {
        self.signed.what
    }

    /// As of when.
    pub fn at(&self) -> UnixTime {
        self.signed.at
    }

    /// Who signed it.
    pub fn signer(&self) -> NodeId {
        self.signer
    }

    /// The statement, to store and pass on.
    pub fn signed(&self) -> &SignedRevocation {
        &self.signed
    }

    /// Whether it reaches a node with these nodes above it.
    pub(crate) fn reaches(&self, node: &NodeId, above: &[NodeId]) -> bool {
        let founder = self.signed.chain().root.founder;
        let itself = self.signer == *node;
        match self.power {
            Power::Root => true,
            Power::Admin => *node != founder || itself,
            Power::Inviter => itself || (above.contains(&self.signer) && *node != founder),
            Power::Subject => itself,
        }
    }

    /// Whether it ends an invite, or grants from one, below these nodes.
    pub(crate) fn reaches_invite(&self, authors: &[NodeId]) -> bool {
        self.power >= Power::Admin || authors.contains(&self.signer)
    }
}
