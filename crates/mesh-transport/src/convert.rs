//! One ed25519 key in three worlds: ours, iroh's and libp2p's. Only this crate names the others.

use iroh::{EndpointId, SecretKey};
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

#[cfg(test)]
mod tests {
    use libp2p_identity::{Keypair, PublicKey, ed25519};

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
