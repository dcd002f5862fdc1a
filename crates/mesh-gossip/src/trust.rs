//! Trust as mesh-identity gives it: the node's own key, signed grants, signed revocations.

use bytes::Bytes;
use mesh_identity::{
    Domain, Expiry, GrantError, Insertion, NodeId, NodeKey, RevocationSet, ScopeId, SignedGrant,
    SignedRevocation, UnixTime,
};

use crate::proto::{Refusal, Signature, Standing, Trust};

/// Grants that lead to the scope's founder.
pub(crate) struct GrantTrust {
    pub(crate) key: NodeKey,
    pub(crate) scope: ScopeId,
    pub(crate) revoked: RevocationSet,
}

impl Trust for GrantTrust {
    fn sign(&self, domain: Domain, message: &[u8]) -> Signature {
        Signature(*self.key.sign(domain, &self.scope, message).as_bytes())
    }

    fn is_signed(&self, subject: &NodeId, domain: Domain, message: &[u8], signature: &Signature) -> bool {
        let signature = mesh_identity::Signature::from_bytes(signature.0);
        subject.verify(domain, &self.scope, message, &signature)
    }

    fn standing(&self, subject: &NodeId, grant: &[u8], now: UnixTime) -> Result<Standing, Refusal> {
        let grant = SignedGrant::decode(grant).map_err(|_| Refusal::BadGrant)?;
        let grant =
            grant.verify_for(subject, &self.scope, now, &self.revoked).map_err(|error| match error {
                GrantError::Expired { .. } => Refusal::GrantExpired,
                GrantError::Revoked => Refusal::Revoked,
                _ => Refusal::BadGrant,
            })?;
        let expires = Expiry::at(grant.expires_at);
        Ok(Standing { name: grant.name, role: grant.role, issued: grant.issued_at, expires })
    }

    fn revoke(&mut self, revocation: &[u8], now: UnixTime) -> Result<bool, Refusal> {
        let signed = SignedRevocation::decode(revocation).map_err(|_| Refusal::BadSignature)?;
        let verified = signed.verify(&self.scope, now).map_err(|_| Refusal::BadSignature)?;
        match self.revoked.insert(verified) {
            Insertion::Added => Ok(true),
            Insertion::Known => Ok(false),
            Insertion::WrongScope => Err(Refusal::BadSignature),
            _ => Err(Refusal::Full),
        }
    }

    fn revocations(&self) -> Vec<Bytes> {
        self.revoked.iter().map(|revocation| Bytes::from(revocation.encode())).collect()
    }
}
