//! QUIC parameters.

use iroh::endpoint::{QuicTransportConfig, VarInt};

use super::Config;

/// Bytes that a stranger's connection may make us hold: hello is 16 KiB at most.
const STRANGER_WINDOW_BYTES: u32 = 64 * 1024;
/// The same for a member's connection: some streams at full rate. The window of one stream stays iroh's default
/// (1.25 MB): with larger ones its QUIC closes connections under load ("too many gaps in stream buffer").
const MEMBER_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// What every connection starts with: room for hello and nothing else.
pub(super) fn transport_config(config: &Config) -> QuicTransportConfig {
    let idle =
        config.idle.try_into().unwrap_or_else(|_| iroh::endpoint::IdleTimeout::from(VarInt::from_u32(5000)));
    QuicTransportConfig::builder()
        .max_idle_timeout(Some(idle))
        .default_path_max_idle_timeout(config.path_idle)
        .default_path_keep_alive_interval(config.path_keep_alive)
        .keep_alive_interval(config.path_keep_alive)
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(STRANGER_WINDOW_BYTES))
        .datagram_receive_buffer_size(None)
        .build()
}

/// What a connection gets once hello is done.
pub(super) fn admit(conn: &iroh::endpoint::Connection, streams_max: u32) {
    conn.set_receive_window(VarInt::from_u32(MEMBER_WINDOW_BYTES));
    conn.set_max_concurrent_bi_streams(VarInt::from_u32(streams_max));
}
