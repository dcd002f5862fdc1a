//! A node's secret key and what it signs.

use std::fmt;
use std::sync::Arc;

use ed25519_dalek::{Signer as _, SigningKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::wire::{DecodeError, Reader};
use crate::{NodeId, ScopeId};

/// A node's ed25519 key pair. Clones share it; the secret is wiped when the last one is dropped.
#[derive(Clone)]
pub struct NodeKey(Arc<SigningKey>);

impl NodeKey {
    /// A new key from the operating system's randomness. An ephemeral identity is just this, kept nowhere.
    ///
    /// # Panics
    /// When the operating system has no randomness to give, which no program can go on without.
    pub fn generate() -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).expect("the operating system gives randomness");
        Self(Arc::new(SigningKey::from_bytes(&seed)))
    }

    /// The key of this secret seed (RFC 8032, section 5.1.5).
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        Self(Arc::new(SigningKey::from_bytes(&seed)))
    }

    /// The node that this key names.
    pub fn node_id(&self) -> NodeId {
        NodeId::of_key(&self.0.verifying_key())
    }

    /// The secret seed, for transports that need the key in a type of their own. Keep it wiped and unlogged.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// Signs `message` for one purpose in one scope; a signature for another purpose or scope never matches.
    pub fn sign(&self, domain: Domain, scope: &ScopeId, message: &[u8]) -> Signature {
        Signature(self.0.sign(&signed_message(domain, scope, message)).to_bytes())
    }
}

/// Names the node; the secret is not shown.
impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.node_id().short())
    }
}

/// What a signature is for, such as `qmt-mesh/invite/v1`: two purposes never share a signed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Domain(&'static str);

impl Domain {
    /// A purpose. Other crates name theirs `qmt-mesh/<form>/v<version>`.
    ///
    /// # Panics
    /// At compile time in a `const`, when the name is empty or holds a NUL, which ends it in the signed message.
    pub const fn new(name: &'static str) -> Self {
        let bytes = name.as_bytes();
        assert!(!bytes.is_empty(), "a domain has a name");
        let mut at = 0;
        while at < bytes.len() {
            assert!(bytes[at] != 0, "a domain holds no NUL");
            at += 1;
        }
        Self(name)
    }

    /// Its name, for doubles of signatures that keep purposes apart as the real ones do.
    pub const fn as_str(&self) -> &'static str {
        self.0
    }
}

/// What is really signed: the domain, a NUL, the scope id, the message.
pub(crate) fn signed_message(domain: Domain, scope: &ScopeId, message: &[u8]) -> Vec<u8> {
    [domain.0.as_bytes(), &[0], scope.as_bytes(), message].concat()
}

/// An ed25519 signature, 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    /// A signature to be verified.
    pub fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// Its 64 bytes.
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.array().map(Self)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}…)", crate::wire::to_hex(&self.0[..5]))
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        crate::wire::serialize_form(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = crate::wire::deserialize_form(deserializer, "a signature of 64 bytes", 64)?;
        let bytes = bytes.try_into().map_err(|_| serde::de::Error::custom("a signature has 64 bytes"))?;
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: Domain = Domain::new("qmt-mesh/test/v1");

    #[test]
    fn public_key_is_that_of_rfc_8032() {
        // RFC 8032, section 7.1, TEST 1.
        let seed = crate::wire::from_hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let key = NodeKey::from_seed(seed.expect("hexadecimal"));
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(crate::wire::to_hex(key.node_id().as_bytes()), public);
        assert_eq!(NodeKey::from_seed(*key.seed()).node_id(), key.node_id());
    }

    #[test]
    fn a_signature_holds_for_one_domain_scope_message_and_key() {
        let (key, scope) = (NodeKey::from_seed([7; 32]), ScopeId::lan(None));
        let signature = key.sign(DOMAIN, &scope, b"message");
        assert!(key.node_id().verify(DOMAIN, &scope, b"message", &signature));
        assert!(!key.node_id().verify(Domain::new("qmt-mesh/test/v2"), &scope, b"message", &signature));
        assert!(!key.node_id().verify(DOMAIN, &ScopeId::lan(Some(b"psk")), b"message", &signature));
        assert!(!key.node_id().verify(DOMAIN, &scope, b"messagf", &signature));
        assert!(!NodeKey::from_seed([8; 32]).node_id().verify(DOMAIN, &scope, b"message", &signature));
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = NodeKey::from_seed([0xab; 32]);
        assert!(!format!("{key:?}").contains("abab"));
    }
}
