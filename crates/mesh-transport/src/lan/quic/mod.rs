//! QUIC for the swarm, on the same implementation and the same cryptography as the internet driver.
//!
//! libp2p's own QUIC brings a second TLS provider and no way to bound a stranger's window; this one is not
//! interoperable with it, and need not be: only nodes of ours answer here.

#[cfg(test)]
pub(super) mod bare;
mod muxer;
mod punch;
mod tls;
mod transport;

use std::{sync::Arc, time::Duration};

use mesh_identity::NodeKey;
use noq::{IdleTimeout, TransportConfig, VarInt};

pub(super) use self::transport::Quic;
use super::{Config, muxer::STRANGER_STREAMS_MAX};

/// Bytes that a stranger's connection may make us hold: hello is 16 KiB at most.
const STRANGER_WINDOW_BYTES: u32 = 64 * 1024;
/// The same for a member's connection: some streams at full rate.
const MEMBER_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Of one stream. With larger ones this QUIC closes connections under load ("too many gaps in stream buffer").
const STREAM_WINDOW_BYTES: u32 = 1_250_000;
/// Handshakes that wait for us to look at them; each is a packet or two.
const INCOMING_MAX: usize = 256;
/// Streams beyond ours that a member may have open: pings, identification, discovery, goodbyes.
const OTHER_STREAMS: u32 = 32;

/// Why a connection or a listener failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Connect(#[from] noq::ConnectError),
    #[error(transparent)]
    Connection(#[from] noq::ConnectionError),
    #[error("no handshake within {0:?}")]
    TimedOut(Duration),
    #[error("the peer's key is not a node's")]
    ForeignKey,
}

impl Error {
    /// Nothing was heard from the peer for as long as it may be silent.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self, Self::Connection(noq::ConnectionError::TimedOut))
    }
}

/// Both sides' parameters.
struct Settings {
    client: noq::ClientConfig,
    server: noq::ServerConfig,
    handshake_timeout: Duration,
    streams_max: VarInt,
}

impl Settings {
    fn new(key: &NodeKey, config: &Config) -> Result<Self, rustls::Error> {
        let (client, server) = tls::configs(key)?;
        let transport = Arc::new(transport_config(config));
        let mut client = noq::ClientConfig::new(Arc::new(client));
        client.transport_config(transport.clone());
        let mut server = noq::ServerConfig::with_crypto(Arc::new(server));
        server.transport_config(transport).max_incoming(INCOMING_MAX);
        let ours = u32::try_from(config.streams_max).unwrap_or(u32::MAX / 2);
        let streams_max = VarInt::from_u32(ours.saturating_add(OTHER_STREAMS));
        Ok(Self { client, server, handshake_timeout: config.handshake_timeout, streams_max })
    }
}

/// What every connection starts with.
fn transport_config(config: &Config) -> TransportConfig {
    let strangers = u32::try_from(STRANGER_STREAMS_MAX).expect("a few");
    let idle = config.idle.try_into().unwrap_or_else(|_| IdleTimeout::from(VarInt::from_u32(u32::MAX / 2)));
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(config.ping_every))
        .max_concurrent_bidi_streams(VarInt::from_u32(strangers))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(STRANGER_WINDOW_BYTES))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .datagram_receive_buffer_size(None);
    transport
}

/// Both sides' parameters with nothing said but whose keys: the library as it comes, to measure ours beside it.
#[cfg(feature = "testing")]
pub(crate) fn default_configs(
    key: &NodeKey,
) -> Result<(noq::ClientConfig, noq::ServerConfig), rustls::Error> {
    let (client, server) = tls::configs(key)?;
    Ok((noq::ClientConfig::new(Arc::new(client)), noq::ServerConfig::with_crypto(Arc::new(server))))
}
