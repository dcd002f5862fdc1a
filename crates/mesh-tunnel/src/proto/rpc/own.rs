//! Frames of the tunnel's own, among those of a llama-server and never from one.

use mesh_identity::NodeId;

use super::RpcFault;
use super::command::{HEAD_BYTES, Head, OWN_FIRST, REGISTER_PEER_BYTES};
use super::tensor::SET_TENSOR_HEAD_BYTES;
use crate::{SERVICE_NAME_BYTES_MAX, ServiceName, WeightId};

/// Instead of a SET_TENSOR: what stands in front of its data, and the id of the weight that the data is.
pub(crate) const REFERENCE: u8 = OWN_FIRST;
pub(crate) const REFERENCE_BYTES: usize = SET_TENSOR_HEAD_BYTES + 32;
/// Instead of a REGISTER_PEER: which service of which node its port stands for.
pub(crate) const REGISTER_AT: u8 = OWN_FIRST + 1;
const NODE_BYTES: usize = 32;
const REGISTER_AT_FRONT: usize = 1 + 4 + NODE_BYTES;
pub(crate) const REGISTER_AT_BYTES_MAX: usize = REGISTER_AT_FRONT + SERVICE_NAME_BYTES_MAX;

/// The frame of a reference.
pub(crate) fn reference(head: &[u8; SET_TENSOR_HEAD_BYTES], weight: WeightId) -> Vec<u8> {
    let mut frame = Head { command: REFERENCE, bytes: REFERENCE_BYTES as u64 }.to_bytes().to_vec();
    frame.extend_from_slice(head);
    frame.extend_from_slice(&weight.0);
    frame
}

/// A REGISTER_PEER whose port was replaced by what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RegisterAt {
    /// The fork's number of the command.
    pub(crate) command: u8,
    pub(crate) peer_id: u32,
    pub(crate) node: NodeId,
    pub(crate) service: ServiceName,
}

impl RegisterAt {
    pub(crate) fn to_frame(&self) -> Vec<u8> {
        let service = self.service.as_str().as_bytes();
        let bytes = (REGISTER_AT_FRONT + service.len()) as u64;
        let mut frame = Head { command: REGISTER_AT, bytes }.to_bytes().to_vec();
        frame.push(self.command);
        frame.extend_from_slice(&self.peer_id.to_le_bytes());
        frame.extend_from_slice(self.node.as_bytes());
        frame.extend_from_slice(service);
        frame
    }

    pub(crate) fn of(payload: &[u8]) -> Result<Self, RpcFault> {
        let parsed = || {
            let (command, rest) = payload.split_first()?;
            let (peer_id, rest) = rest.split_first_chunk()?;
            let (node, service) = rest.split_first_chunk::<NODE_BYTES>()?;
            Some(Self {
                command: *command,
                peer_id: u32::from_le_bytes(*peer_id),
                node: NodeId::from_bytes(node).ok()?,
                service: ServiceName::new(std::str::from_utf8(service).ok()?).ok()?,
            })
        };
        parsed().filter(|parsed| matches!(parsed.command, 17 | 18)).ok_or(RpcFault::Malformed)
    }
}

/// The peer's id and the port of a REGISTER_PEER; `None` when its endpoint is no port of this machine's loopback.
pub(crate) fn registered(payload: &[u8]) -> Option<(u32, u16)> {
    let (peer_id, endpoint) = payload.split_first_chunk()?;
    let end = endpoint.iter().position(|byte| *byte == 0)?;
    let (host, port) = std::str::from_utf8(&endpoint[..end]).ok()?.rsplit_once(':')?;
    let port = port.parse().ok()?;
    matches!(host, "127.0.0.1" | "localhost").then_some((u32::from_le_bytes(*peer_id), port))
}

/// A REGISTER_PEER for a port of this machine.
pub(crate) fn register_peer(command: u8, peer_id: u32, port: u16) -> Vec<u8> {
    let mut frame = Head { command, bytes: REGISTER_PEER_BYTES }.to_bytes().to_vec();
    frame.extend_from_slice(&peer_id.to_le_bytes());
    frame.extend_from_slice(format!("127.0.0.1:{port}").as_bytes());
    frame.resize(HEAD_BYTES + 132, 0);
    frame
}

#[cfg(test)]
mod tests {
    use mesh_identity::NodeKey;
    use proptest::prelude::*;

    use super::*;

    fn at(service: &str) -> RegisterAt {
        let node = NodeKey::from_seed([7; 32]).node_id();
        RegisterAt { command: 18, peer_id: 3, node, service: ServiceName::new(service).expect("a name") }
    }

    #[test]
    fn a_registered_port_comes_back() {
        let frame = register_peer(18, 7, 49502);
        assert_eq!((frame.len(), frame[0]), (141, 18));
        assert_eq!(Head::of(&frame).expect("a head").bytes, 132);
        assert_eq!(registered(&frame[HEAD_BYTES..]), Some((7, 49502)));
    }

    #[test]
    fn an_endpoint_that_is_no_loopback_port_is_none() {
        for endpoint in ["10.0.0.1:80", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", ""] {
            let mut payload = vec![0; 132];
            payload[4..4 + endpoint.len()].copy_from_slice(endpoint.as_bytes());
            assert_eq!(registered(&payload), None, "{endpoint}");
        }
        assert_eq!(registered(&[b'1'; 132]), None, "without an end");
    }

    #[test]
    fn the_longest_frame_stays_below_its_bound() {
        let longest = at(&"x".repeat(SERVICE_NAME_BYTES_MAX));
        let frame = longest.to_frame();
        assert_eq!(frame.len(), HEAD_BYTES + REGISTER_AT_BYTES_MAX);
        assert_eq!(RegisterAt::of(&frame[HEAD_BYTES..]).expect("parses"), longest);
    }

    #[test]
    fn golden_bytes() {
        let frame = at("rpc").to_frame();
        assert_eq!(frame[..14], [0xE1, 40, 0, 0, 0, 0, 0, 0, 0, 18, 3, 0, 0, 0]);
        assert_eq!(frame[46..], *b"rpc");
        let frame = reference(&[1; SET_TENSOR_HEAD_BYTES], WeightId([2; 32]));
        assert_eq!((frame[0], frame.len(), frame[9], frame[345]), (0xE0, 346, 1, 2));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = RegisterAt::of(&bytes);
            let _ = registered(&bytes);
        }
    }
}
