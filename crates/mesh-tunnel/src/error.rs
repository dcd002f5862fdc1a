//! What can go wrong, by who must act.

use std::io;
use std::net::SocketAddr;

use mesh_transport::{FrameError, OpenError as StreamOpenError};
use thiserror::Error;

use crate::RefusalCode;

/// Why no connection to a service at a peer could be opened. No byte of it was sent.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No stream to the peer. Retry as its source says.
    #[error("no stream to the peer")]
    Stream(#[from] StreamOpenError),
    /// The peer refused; `Full` and `Unreachable` are worth a retry later.
    #[error("refused by the peer: {text}")]
    Refused {
        /// Its reason.
        code: RefusalCode,
        /// Its words: untrusted, at most 256 bytes.
        text: String,
    },
    /// The peer did not answer in [`Config::open_timeout`](crate::Config::open_timeout).
    #[error("no answer within {0:?}")]
    Timeout(std::time::Duration),
    /// The peer's answer was no answer, or the stream broke before it.
    #[error("no proper answer from the peer")]
    Handshake(#[source] FrameError),
    /// The peer ended the stream without an answer.
    #[error("the peer hung up")]
    HungUp,
    /// This node carries [`Config::connections_max`](crate::Config::connections_max) connections already.
    #[error("this node carries {0} tunnel connections already")]
    Full(usize),
    /// The tunnels are shut down.
    #[error("tunnels are shut down")]
    Closed,
}

/// Why no local listener could be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The loopback socket could not be bound.
    #[error("cannot listen on loopback")]
    Bind(#[source] io::Error),
    /// The tunnels are shut down.
    #[error("tunnels are shut down")]
    Closed,
}

/// Why a service cannot be offered: the caller's mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OfferError {
    /// Only loopback services are offered: a tunnel is the only way to them.
    #[error("{0} is not a loopback address")]
    NotLoopback(SocketAddr),
    /// The name is taken.
    #[error("a service of this name is offered already")]
    Taken,
}
