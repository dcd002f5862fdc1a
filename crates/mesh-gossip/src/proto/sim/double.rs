//! The double of trust: signatures that cost next to nothing, and that a simulated liar cannot make for anybody else.

use std::collections::BTreeSet;

use bytes::Bytes;
use mesh_identity::{Domain, Expiry, NodeId, NodeName, Role, UnixTime};

use super::super::{Refusal, Signature, Standing, Trust};

/// Where every node's secret comes from. Nothing outside this module reads it: who has the [`Double`] of a node signs as
/// that node, and nobody gets the double of another.
const REGISTRY: u64 = 0x5eed_0f5e_c2e7_5e01;

/// A double of the real trust. A signature is a hash of 64 bits over the signer's secret, the purpose and the message; a
/// grant is text.
#[derive(Debug, Clone)]
pub struct Double {
    me: NodeId,
    revoked: BTreeSet<NodeId>,
}

impl Double {
    /// The trust of `me`.
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        Self { me, revoked: BTreeSet::new() }
    }

    /// What [`Double`] takes for a grant.
    #[must_use]
    pub fn grant(role: Role, name: &str) -> Vec<u8> {
        format!("{role} {name}").into_bytes()
    }

    /// What [`Double`] takes for a revocation.
    #[must_use]
    pub fn revocation(of: &NodeId) -> Bytes {
        Bytes::copy_from_slice(of.as_bytes())
    }
}

/// One step of a hash in the manner of wyhash: two words become one.
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a ^ 0xa076_1d64_78bd_642f).wrapping_mul(u128::from(b ^ 0xe703_7ed1_a0b4_28db));
    let [low, high] = [product, product >> 64].map(|half| u64::try_from(half & u128::from(u64::MAX)));
    low.unwrap_or(0) ^ high.unwrap_or(0)
}

fn absorb(state: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let state = words.iter().fold(state, |state, word| mix(state, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(mix(state, u64::from_le_bytes(last)), bytes.len() as u64)
}

fn seal(subject: &NodeId, domain: Domain, message: &[u8]) -> Signature {
    let secret = absorb(REGISTRY, subject.as_bytes());
    let seal = absorb(absorb(secret, domain.as_str().as_bytes()), message);
    let mut bytes = [0; 64];
    bytes[..8].copy_from_slice(&seal.to_le_bytes());
    Signature(bytes)
}

impl Trust for Double {
    fn sign(&self, domain: Domain, message: &[u8]) -> Signature {
        seal(&self.me, domain, message)
    }

    fn is_signed(&self, subject: &NodeId, domain: Domain, message: &[u8], signature: &Signature) -> bool {
        seal(subject, domain, message) == *signature
    }

    fn standing(&self, subject: &NodeId, grant: &[u8], _now: UnixTime) -> Result<Standing, Refusal> {
        if self.revoked.contains(subject) {
            return Err(Refusal::Revoked);
        }
        let text = std::str::from_utf8(grant).map_err(|_| Refusal::BadGrant)?;
        let (role, name) = text.split_once(' ').ok_or(Refusal::BadGrant)?;
        let role = role.parse().map_err(|_| Refusal::BadGrant)?;
        let name = NodeName::new(name).map_err(|_| Refusal::BadGrant)?;
        Ok(Standing { name, role, issued: UnixTime(0), expires: Expiry::NEVER })
    }

    fn revoke(&mut self, revocation: &[u8], _now: UnixTime) -> Result<bool, Refusal> {
        let bytes: &[u8; 32] = revocation.try_into().map_err(|_| Refusal::BadSignature)?;
        let id = NodeId::from_bytes(bytes).map_err(|_| Refusal::BadSignature)?;
        Ok(self.revoked.insert(id))
    }

    fn revocations(&self) -> Vec<Bytes> {
        self.revoked.iter().map(Self::revocation).collect()
    }
}

#[cfg(test)]
mod tests {
    use mesh_identity::NodeKey;

    use super::*;

    #[test]
    fn a_signature_holds_for_its_signer_purpose_and_message_alone() {
        let [me, other] = [1, 2].map(|number| NodeKey::from_seed([number; 32]).node_id());
        let (here, there) = (Domain::new("here/v1"), Domain::new("there/v1"));
        let double = Double::new(me);
        let signature = double.sign(here, b"I live");
        assert!(double.is_signed(&me, here, b"I live", &signature));
        assert!(!double.is_signed(&other, here, b"I live", &signature));
        assert!(!double.is_signed(&me, there, b"I live", &signature));
        assert!(!double.is_signed(&me, here, b"I liv", &signature));
        assert!(!double.is_signed(&me, here, b"I live\0", &signature));
    }
}
