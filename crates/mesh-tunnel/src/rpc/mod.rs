//! Connections of a llama-server to an rpc-server at a peer.

pub(crate) mod entry;
pub(crate) mod exit;
mod fill;
pub(crate) mod lent;
pub(crate) mod open;

use std::fmt;
use std::sync::Arc;

use mesh_transport::{Member, Protocol, ResetCode};

use crate::Weights;
use crate::proto::rpc::RpcFault;

/// The protocol, as streams name it.
pub const RPC_PROTOCOL: Protocol = Protocol::new("rpc/2");

/// Reset code: the exit could not read a weight.
const WEIGHT_LOST: ResetCode = ResetCode(ResetCode::USER);

/// How an rpc-server is offered.
#[derive(Clone)]
pub struct RpcOffer {
    /// Whom it is lent to: asked of each member that opens a connection.
    pub allowed: Arc<dyn Fn(&Member) -> bool + Send + Sync>,
    /// The weights on this machine's disk that need not cross the network.
    pub weights: Option<Arc<dyn Weights>>,
    /// Which llama.cpp this is: a host of another build is refused.
    pub build: String,
    /// What may be allocated there, in bytes, over all connections together; beyond, it is as if it had no memory left. `None`:
    /// what there is.
    pub bytes_max: Option<u64>,
}

/// How an rpc-server at a peer is used.
#[derive(Clone)]
pub struct RpcUse {
    /// The weights of the model that the host loads, on this machine's disk.
    pub weights: Option<Arc<dyn Weights>>,
    /// Which llama.cpp this is.
    pub build: String,
}

impl fmt::Debug for RpcOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.weights.as_ref().map(|weights| weights.file());
        f.debug_struct("RpcOffer")
            .field("weights", &file)
            .field("build", &self.build)
            .field("bytes_max", &self.bytes_max)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RpcUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.weights.as_ref().map(|weights| weights.file());
        f.debug_struct("RpcUse").field("weights", &file).field("build", &self.build).finish()
    }
}

/// What the peer is told when a connection ends like this.
fn reset_code(fault: &RpcFault) -> ResetCode {
    match fault {
        RpcFault::Io(_) | RpcFault::Half | RpcFault::ByPeer(_) => ResetCode::CANCELLED,
        RpcFault::NoWeight(_) | RpcFault::Weight(..) => WEIGHT_LOST,
        _ => ResetCode::FAULT,
    }
}

/// What the peer has told, if it has.
fn by_peer(fault: RpcFault) -> RpcFault {
    use mesh_transport::StreamFault::{Reset, Stopped};
    let RpcFault::Io(error) = &fault else { return fault };
    match mesh_transport::StreamFault::of(error) {
        Some(Reset(code) | Stopped(code)) if *code == WEIGHT_LOST => {
            RpcFault::ByPeer("a weight of its file could not be read, and is sent the next time")
        }
        Some(Reset(code) | Stopped(code)) if *code == ResetCode::FAULT => {
            RpcFault::ByPeer("a frame was not taken")
        }
        _ => fault,
    }
}
