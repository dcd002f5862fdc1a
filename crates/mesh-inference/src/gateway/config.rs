//! Settings of the gateway.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::backend::Secret;

/// The port of the OpenAI-compatible front when none is asked for.
pub const DEFAULT_PORT: u16 = 9337;

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// This address, or the next free port above it (at most 100 tries); moving is logged. For defaults.
    FirstFreeFrom(SocketAddr),
    /// This address and no other: a taken port is an error. For ports that were asked for.
    Exactly(SocketAddr),
}

impl Listen {
    pub(crate) fn addr(self) -> SocketAddr {
        match self {
            Self::FirstFreeFrom(addr) | Self::Exactly(addr) => addr,
        }
    }
}

/// Limits and deadlines of a [`Gateway`](super::Gateway). Each deadline has one meaning; none is for a whole answer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GatewayConfig {
    /// Where to listen. Default: 127.0.0.1, first free port from [`DEFAULT_PORT`].
    pub listen: Listen,
    /// What callers must send as `Authorization: Bearer`. Needed to listen beyond loopback. Default: none.
    pub api_key: Option<Secret>,
    /// Host names, beside loopback's and the bound address, under which callers may address the gateway. Default: none.
    pub allowed_hosts: Vec<String>,
    /// Largest request body in bytes; a larger one is answered 413 unread. Default: 64 MiB, room for images.
    pub body_bytes_max: usize,
    /// Bytes that the bodies of all requests being read or sent on may fill together. Default: 512 MiB.
    pub body_memory_max: usize,
    /// From accept, or from a request's first byte, to the end of its headers. Default: 10 s.
    pub header_timeout: Duration,
    /// From the end of the headers to the end of the body. Default: 120 s.
    pub body_timeout: Duration,
    /// How long a kept-alive connection may wait for its next request. Default: 75 s, as nginx.
    pub idle_timeout: Duration,
    /// How long a caller may not read while an answer waits for it. Default: 120 s.
    pub write_timeout: Duration,
    /// To connect to a backend, or to open a stream to a peer. Default: 5 s.
    pub connect_timeout: Duration,
    /// From sending a request on to the head of its answer, which backends send when the answer to a request that does
    /// not stream is complete. Default: 600 s.
    pub head_timeout: Duration,
    /// Longest silence in the middle of an answer. Default: 300 s.
    pub silence_max: Duration,
    /// How long an answer that lost its backend in the middle may look for one that goes on with it. The caller sees
    /// comments meanwhile, and one declared error when nobody did. Default: 60 s, time for a model to be loaded again.
    pub continue_timeout: Duration,
    /// How long the head of an answer is held for its first byte, so that another backend can still take over.
    /// Default: 10 s.
    pub head_hold: Duration,
    /// Answers that can be resumed, and copies of other gateways'.
    pub replicas: Replicas,
    /// Callers' connections at a time; more are answered 503. Default: none, which means 4096 or what the limit of open
    /// files leaves room for, whichever is less.
    pub connections_max: Option<usize>,
    /// Requests of one peer served here at a time; more are answered 429. Default: 256, as many as vLLM works on at once.
    pub peer_requests_max: usize,
    /// Requests that may wait at a backend of known slots beyond those it works on; more are answered 429. Default: 64.
    pub backend_queue_max: usize,
    /// How long [`Gateway::shutdown`](super::Gateway::shutdown) lets answers under way go on. Default: 5 s.
    pub drain: Duration,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: Listen::FirstFreeFrom((Ipv4Addr::LOCALHOST, DEFAULT_PORT).into()),
            api_key: None,
            allowed_hosts: Vec::new(),
            body_bytes_max: 64 * 1024 * 1024,
            body_memory_max: 512 * 1024 * 1024,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(120),
            connect_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(600),
            silence_max: Duration::from_secs(300),
            continue_timeout: Duration::from_secs(60),
            head_hold: Duration::from_secs(10),
            replicas: Replicas::default(),
            connections_max: None,
            peer_requests_max: 256,
            backend_queue_max: 64,
            drain: Duration::from_secs(5),
        }
    }
}

/// How answers outlive the gateway that gives them. Only answers whose caller sends `x-mesh-resumable: 1` are concerned.
#[derive(Debug, Clone)]
pub struct Replicas {
    /// Whether copies of other members' answers are kept here. Default: true.
    pub accept: bool,
    /// Whether own answers are copied to another member. Without, they can be resumed at this gateway only. Default: true.
    pub make: bool,
    /// Memory for answers kept here in bytes, own ones and copies; one peer's copies fill a quarter of it at most.
    /// Default: 64 MiB, some hundred long answers.
    pub bytes_max: usize,
    /// How long an answer is kept once its caller or its gateway has left. Default: 120 s.
    pub ttl: Duration,
}

impl Default for Replicas {
    fn default() -> Self {
        Self { accept: true, make: true, bytes_max: 64 * 1024 * 1024, ttl: Duration::from_secs(120) }
    }
}

/// Why a gateway did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Listening beyond loopback without an API key would open every shared model to the network.
    #[error("listening on {0} needs an API key: set one, or listen on 127.0.0.1")]
    NeedsKey(SocketAddr),
    /// The address cannot be bound.
    #[error("cannot listen on {addr}")]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The cryptography behind https could not be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}
