//! The name of a node: its public key.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::VerifyingKey;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::key::{Domain, Signature, signed_message};
use crate::wire::{DecodeError, Reader, to_hex};
use crate::{ScopeId, base58};

/// What a libp2p peer id of an ed25519 key begins with: identity multihash (0x00) of 36 bytes (0x24), which are the
/// protobuf `{ 1: Ed25519 = 1, 2: 32 bytes }` (libp2p specs, peer-ids).
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// A node's ed25519 public key, which is its name in every scope.
///
/// Its text form is the libp2p peer id of the same key (`12D3KooW…`, 52 characters). The bytes are checked: a point on
/// the curve, canonically encoded, not of small order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 32]);

/// The bytes or the text are no node id: not 32 bytes of a usable ed25519 public key, or no peer id of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a node id (expected the peer id of an ed25519 key, such as 12D3KooW…)")]
pub struct InvalidNodeId;

impl NodeId {
    /// The node of this public key.
    ///
    /// # Errors
    /// [`InvalidNodeId`] when no signature of this key could be trusted.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, InvalidNodeId> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| InvalidNodeId)?;
        let canonical = key.to_edwards().compress().to_bytes() == *bytes;
        if key.is_weak() || !canonical { Err(InvalidNodeId) } else { Ok(Self(*bytes)) }
    }

    pub(crate) fn of_key(key: &VerifyingKey) -> Self {
        Self(key.to_bytes())
    }

    /// The public key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 10 hexadecimal digits of the key, for logs and tables.
    pub fn short(&self) -> String {
        to_hex(&self.0[..5])
    }

    /// Whether this node signed `message` for this purpose in this scope. Strict verification (no malleable forms).
    pub fn verify(&self, domain: Domain, scope: &ScopeId, message: &[u8], signature: &Signature) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature.as_bytes());
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(&signed_message(domain, scope, message), &signature).is_ok())
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Self::from_bytes(&reader.array()?).map_err(|InvalidNodeId| DecodeError::Invalid { what: "node id" })
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&PEER_ID_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        f.pad(&base58::encode(&bytes))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.short())
    }
}

impl FromStr for NodeId {
    type Err = InvalidNodeId;

    fn from_str(text: &str) -> Result<Self, InvalidNodeId> {
        let bytes: [u8; 38] = base58::decode(text).ok_or(InvalidNodeId)?;
        let key = bytes.strip_prefix(&PEER_ID_PREFIX).and_then(|key| key.first_chunk::<32>());
        Self::from_bytes(key.ok_or(InvalidNodeId)?)
    }
}

/// The peer id text in readable formats, the 32 bytes in binary ones.
impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse()
        } else {
            Self::from_bytes(&<[u8; 32]>::deserialize(deserializer)?)
        };
        id.map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeKey;

    #[test]
    fn text_form_is_the_libp2p_peer_id() {
        // libp2p specs, peer-ids/peer-ids.md: the example string of an ed25519 peer id.
        let text = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
        let id: NodeId = text.parse().expect("the specification's example");
        assert_eq!(id.to_string(), text);
        assert_eq!(NodeId::from_bytes(id.as_bytes()), Ok(id));
    }

    #[test]
    fn other_peer_ids_and_other_texts_are_refused() {
        for text in [
            "",
            "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5Sa",
            "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
            "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SAA",
            "zz",
        ] {
            assert_eq!(text.parse::<NodeId>(), Err(InvalidNodeId), "{text}");
        }
    }

    #[test]
    fn weak_and_non_canonical_keys_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(NodeId::from_bytes(&identity), Err(InvalidNodeId));
        assert_eq!(NodeId::from_bytes(&[0; 32]), Err(InvalidNodeId));
        assert_eq!(NodeId::from_bytes(&[0xff; 32]), Err(InvalidNodeId));
    }

    #[test]
    fn serde_is_text_for_people_and_bare_bytes_for_frames() {
        let id = NodeKey::from_seed([7; 32]).node_id();
        let json = serde_json::to_string(&id).expect("serializes");
        assert_eq!(json, format!("\"{id}\""));
        assert_eq!(serde_json::from_str::<NodeId>(&json).expect("parses"), id);
        let bytes = postcard::to_allocvec(&id).expect("serializes");
        assert_eq!(bytes, id.as_bytes());
        assert_eq!(postcard::from_bytes::<NodeId>(&bytes).expect("parses"), id);
        assert!(postcard::from_bytes::<NodeId>(&[0; 32]).is_err());
    }
}
