//! What a mesh is named by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::wire::{DecodeError, Reader, from_hex, to_hex};
use crate::{NodeId, NodeKey};

// Contexts of blake3's key derivation: fixed for ever, one per purpose.
const SCOPE_CONTEXT: &str = "qmt-mesh 2026-11 scope id v1";
const RECOVERY_CONTEXT: &str = "qmt-mesh 2026-11 recovery key commitment v1";

/// A scope's name: 32 bytes derived from its founder's key and a nonce, hexadecimal as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeId([u8; 32]);

/// The text is no scope id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a scope id (expected 64 hexadecimal digits)")]
pub struct InvalidScopeId;

impl ScopeId {
    /// A scope id from its bytes; any 32 bytes can be one.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 10 hexadecimal digits, for logs and tables.
    pub fn short(&self) -> String {
        to_hex(&self.0[..5])
    }
}

impl fmt::Display for ScopeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&to_hex(&self.0))
    }
}

impl fmt::Debug for ScopeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScopeId({})", self.short())
    }
}

impl FromStr for ScopeId {
    type Err = InvalidScopeId;

    fn from_str(text: &str) -> Result<Self, InvalidScopeId> {
        from_hex(text).map(Self).ok_or(InvalidScopeId)
    }
}

/// Hexadecimal in readable formats, the 32 bytes in binary ones.
impl Serialize for ScopeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for ScopeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// Where a scope's trust begins: the founder's key, and a nonce that commits to the recovery key.
///
/// The scope id follows from it, so a token that carries the root needs to carry neither the id nor the recovery key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ScopeRoot {
    /// The node that made the scope.
    pub founder: NodeId,
    /// The first 16 bytes of a hash of the recovery public key.
    pub nonce: [u8; 16],
}

impl ScopeRoot {
    /// Bytes on the wire.
    pub(crate) const ENCODED_BYTES: usize = 48;

    /// The scope's name.
    pub fn id(&self) -> ScopeId {
        let mut hasher = blake3::Hasher::new_derive_key(SCOPE_CONTEXT);
        hasher.update(self.founder.as_bytes()).update(&self.nonce);
        ScopeId(*hasher.finalize().as_bytes())
    }

    /// Whether `key` is the recovery key to which this scope has committed itself.
    pub fn is_recovery_key(&self, key: &NodeId) -> bool {
        commitment(key) == self.nonce
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.founder.as_bytes());
        out.extend_from_slice(&self.nonce);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { founder: NodeId::read(reader)?, nonce: reader.array()? })
    }
}

fn commitment(recovery: &NodeId) -> [u8; 16] {
    let mut nonce = [0; 16];
    blake3::Hasher::new_derive_key(RECOVERY_CONTEXT)
        .update(recovery.as_bytes())
        .finalize_xof()
        .fill(&mut nonce);
    nonce
}

/// A new scope, as its founder makes it.
///
/// The recovery key is to be exported at once and kept off the founder's machine: it can do what the founder can, and it
/// alone can revoke the founder.
#[derive(Debug, Clone)]
pub struct Founding {
    /// The new scope's root.
    pub root: ScopeRoot,
    /// The only copy of the recovery key.
    pub recovery: NodeKey,
}

impl Founding {
    /// A new scope of this founder, unlike any other.
    pub fn new(founder: &NodeKey) -> Self {
        Self::with_recovery(founder, NodeKey::generate())
    }

    /// The scope of this founder and this recovery key; the same two always make the same scope.
    pub fn with_recovery(founder: &NodeKey, recovery: NodeKey) -> Self {
        let root = ScopeRoot { founder: founder.node_id(), nonce: commitment(&recovery.node_id()) };
        Self { root, recovery }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_commits_to_founder_and_recovery_key() {
        let (founder, recovery) = (NodeKey::from_seed([1; 32]), NodeKey::from_seed([2; 32]));
        let founding = Founding::with_recovery(&founder, recovery.clone());
        assert_eq!(founding.root, Founding::with_recovery(&founder, recovery.clone()).root);
        assert!(founding.root.is_recovery_key(&recovery.node_id()));
        assert!(!founding.root.is_recovery_key(&founder.node_id()));
        assert_ne!(founding.root.id(), Founding::new(&founder).root.id());
        assert_ne!(founding.root.id(), Founding::with_recovery(&recovery, recovery.clone()).root.id());
    }

    #[test]
    fn text_and_serde_forms_round_trip() {
        let id = ScopeId::lan(Some(b"secret"));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(&id.to_string()[..10], id.short());
        assert_eq!("ab".parse::<ScopeId>(), Err(InvalidScopeId));
        assert_eq!(serde_json::to_string(&id).expect("serializes"), format!("\"{id}\""));
        assert_eq!(postcard::to_allocvec(&id).expect("serializes"), id.as_bytes());
    }
}
