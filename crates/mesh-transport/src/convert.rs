//! One ed25519 key in three worlds: ours, iroh's and libp2p's. Only this crate names the others.

use iroh::{EndpointId, SecretKey};
use libp2p_identity::{Keypair, PeerId, PublicKey, ed25519};
use mesh_identity::{InvalidNodeId, NodeId, NodeKey};

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
