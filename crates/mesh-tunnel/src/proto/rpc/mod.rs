//! The frames of ggml's RPC, and the tunnel's own among them.
//!
//! Pure: bytes go in, and what to do with them comes out. A request is `command u8 | size u64 LE | payload`, a reply
//! `size u64 LE | payload`; nothing in a reply says what it answers, so the order of both is kept.

mod buffers;
mod command;
#[cfg(any(test, feature = "testing"))]
mod drive;
mod own;
mod pack;
mod replies;
mod requests;
mod tensor;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

pub(crate) use buffers::{Buffers, NO_MEMORY};
pub use command::Policy;
pub(crate) use command::{HEAD_BYTES, Version};
#[cfg(any(test, feature = "testing"))]
pub use drive::codec;
pub(crate) use own::{RegisterAt, register_peer};
pub(crate) use pack::{pack, unpack};
pub(crate) use replies::{Replies, ReplyStep, reply_payload};
pub(crate) use requests::{Requests, Run, Side, Step, injected, reference_of};
pub(crate) use tensor::SET_TENSOR_HEAD_BYTES;

use std::io;

use thiserror::Error;

/// Why a connection to an rpc-server was broken off. Nothing of the frame in question reached the rpc-server whole, so
/// that it did nothing with it; a llama-server gives up when its connection breaks.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RpcFault {
    /// The first command was not HELLO: no llama-server, or one of before 2025.
    #[error("the first command is {0}, not HELLO")]
    NotHello(u8),
    /// A second HELLO.
    #[error("a second HELLO")]
    SecondHello,
    /// A payload that the command cannot have, or above the bound.
    #[error("a frame {command} ({code}) of {bytes} bytes, at most {bytes_max} are taken")]
    Size {
        /// The command's name.
        command: &'static str,
        /// Its number.
        code: u8,
        /// What the frame says.
        bytes: u64,
        /// What is allowed.
        bytes_max: u64,
    },
    /// A number that only the tunnel itself may send.
    #[error("command {0} is the tunnel's own and none of an rpc-server's")]
    Reserved(u8),
    /// A command that the server's version does not have, where [`Policy::unknown_commands`] forbids them.
    #[error("command {0} is unknown in version {ver} of the protocol", ver = .1.map(|part| part.to_string()).join("."))]
    Unknown(u8, [u8; 3]),
    /// A frame of the tunnel's own that holds no such thing: a fault of the peer.
    #[error("a malformed frame")]
    Malformed,
    /// A peer is registered under a port that is no tunnel to an rpc-server, so it would be somebody else at the worker.
    #[error("a peer is registered at a port that is no tunnel of this node to an rpc-server")]
    NotATunnel,
    /// No tunnel to the peer that was registered.
    #[error("no tunnel to the peer that was registered")]
    Listen(#[source] crate::ListenError),
    /// A reply that nothing asked for: a fault of the peer.
    #[error("a reply that nothing asked for")]
    Unasked,
    /// More allocations at once than a llama-server asks for.
    #[error("more than {0} buffers are asked for at once")]
    Unanswered(usize),
    /// A weight is asked for by a name that is not listed.
    #[error("the weight {0:?} is not on this machine")]
    NoWeight(crate::WeightId),
    /// A weight could not be read, or its file has changed; it is sent over the network the next time.
    #[error("the weight {0:?} cannot be read from {1}: it is sent the next time")]
    Weight(crate::WeightId, String, #[source] io::Error),
    /// The peer broke the connection off for one of the reasons above; its log says which.
    #[error("broken off by the peer: {0}")]
    ByPeer(&'static str),
    /// The connection ended inside a frame.
    #[error("the connection ended inside a frame")]
    Half,
    /// The socket or the stream failed.
    #[error("carrying failed")]
    Io(#[from] io::Error),
}
