//! One ed25519 key in three worlds: ours, iroh's and libp2p's. Only this crate names the others.

use iroh::{EndpointId, SecretKey};
use libp2p_identity::{Keypair, PeerId, PublicKey, ed25519};
use mesh_identity::{InvalidNodeId, NodeId, NodeKey};

/// RFC 8410: an ed25519 public key as SubjectPublicKeyInfo, up to its 32 bytes.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// RFC 8410: an ed25519 private key as PKCS #8, up to its 32 bytes.
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A node's key as TLS takes public keys: SubjectPublicKeyInfo, DER.
pub(crate) fn spki(node: &NodeId) -> Vec<u8> {
    [&SPKI_PREFIX[..], node.as_bytes()].concat()
}

/// The node of such a key; `None` for a key of another kind than ours.
pub(crate) fn node_of_spki(spki: &[u8]) -> Option<NodeId> {
    let bytes = spki.strip_prefix(&SPKI_PREFIX)?;
    NodeId::from_bytes(bytes.try_into().ok()?).ok()
}

/// A node's secret key as TLS takes it: PKCS #8, DER. Whoever holds it zeroes it.
pub(crate) fn pkcs8(key: &NodeKey) -> Vec<u8> {
    [&PKCS8_PREFIX[..], &*key.seed()].concat()
}

/// The iroh key of the same seed: its public half is the node's id, byte for byte.
pub(crate) fn iroh_key(key: &NodeKey) -> SecretKey {
    SecretKey::from_bytes(&key.seed())
}

/// The iroh id of a node.
pub(crate) fn endpoint_id(node: &NodeId) -> EndpointId {
    EndpointId::from_bytes(node.as_bytes()).expect("a NodeId is a checked ed25519 key")
}

/// The node of an iroh id.
pub(crate) fn node_id(endpoint: &EndpointId) -> Result<NodeId, InvalidNodeId> {
    NodeId::from_bytes(endpoint.as_bytes())
}

/// The libp2p key of the same seed.
pub(crate) fn libp2p_key(key: &NodeKey) -> Keypair {
    // The callee zeroes what it is given, which is a copy.
    let mut seed = *key.seed();
    Keypair::ed25519_from_bytes(&mut seed).expect("any 32 bytes are a seed")
}

/// The libp2p id of a node.
pub(crate) fn peer_id(node: &NodeId) -> PeerId {
    let public =
        ed25519::PublicKey::try_from_bytes(node.as_bytes()).expect("a NodeId is a checked ed25519 key");
    PublicKey::from(public).to_peer_id()
}

/// The node of a libp2p id; `None` for a key of another kind than ours.
pub(crate) fn node_of_peer(peer: &PeerId) -> Option<NodeId> {
    // The text forms are one and the same, and hold the whole key.
    peer.to_string().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_the_libp2p_peer_id() {
        for seed in 0..50u8 {
            let key = NodeKey::from_seed([seed; 32]);
            // `ed25519_from_bytes` zeroes what it is given.
            let theirs = Keypair::ed25519_from_bytes([seed; 32]).expect("any 32 bytes are a seed");
            assert_eq!(key.node_id().to_string(), theirs.public().to_peer_id().to_string());
        }
    }

    #[test]
    fn text_form_is_golden() {
        let node = NodeKey::from_seed([7; 32]).node_id();
        let public = ed25519::PublicKey::try_from_bytes(node.as_bytes()).expect("the same key");
        let peer = PublicKey::from(public).to_peer_id();
        assert_eq!(node.to_string(), peer.to_string());
        assert!(node.to_string().starts_with("12D3KooW"));
    }

    #[test]
    fn libp2p_has_the_same_ids_both_ways() {
        for seed in 0..50u8 {
            let node = NodeKey::from_seed([seed; 32]).node_id();
            let peer = libp2p_key(&NodeKey::from_seed([seed; 32])).public().to_peer_id();
            assert_eq!(peer_id(&node), peer);
            assert_eq!(node_of_peer(&peer), Some(node));
        }
        // A hash of a key, as for other kinds of keys, names no node.
        let hashed = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N".parse().expect("an id");
        assert_eq!(node_of_peer(&hashed), None);
    }

    #[test]
    fn iroh_has_the_same_bytes() {
        for seed in 0..50u8 {
            let key = NodeKey::from_seed([seed; 32]);
            let theirs = iroh_key(&key);
            assert_eq!(theirs.to_bytes(), *key.seed());
            assert_eq!(theirs.public().as_bytes(), key.node_id().as_bytes());
            assert_eq!(endpoint_id(&key.node_id()), theirs.public());
            assert_eq!(node_id(&theirs.public()), Ok(key.node_id()));
        }
    }
}
