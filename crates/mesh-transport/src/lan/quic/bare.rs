//! This QUIC as it is without a driver of ours on top, to measure against.

use std::net::UdpSocket;

use mesh_identity::NodeKey;
use noq::{Connection, Endpoint, EndpointConfig, RecvStream, SendStream, TokioRuntime, VarInt};
use std::sync::Arc;

use super::{MEMBER_WINDOW_BYTES, Settings};
use crate::lan::Config;

/// Both ends of a connection with the parameters of a member's.
pub(in crate::lan) struct Pair {
    near: Connection,
    far: Connection,
    _held: [Endpoint; 2],
}

fn endpoint(seed: u8) -> (Endpoint, Settings) {
    let key = NodeKey::from_seed([seed; 32]);
    let settings = Settings::new(&key, &Config::loopback()).expect("a key");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
    let server = Some(settings.server.clone());
    let endpoint = Endpoint::new(EndpointConfig::default(), server, socket, Arc::new(TokioRuntime));
    (endpoint.expect("starts"), settings)
}

impl Pair {
    pub(in crate::lan) async fn new() -> Self {
        let ((near_end, settings), (far_end, _)) = (endpoint(1), endpoint(2));
        let to = far_end.local_addr().expect("has one");
        let connecting = near_end.connect_with(settings.client, to, "node").expect("dials");
        let (near, far) = tokio::join!(connecting, async { far_end.accept().await.expect("arrives").await });
        let (near, far) = (near.expect("connects"), far.expect("connects"));
        for conn in [&near, &far] {
            conn.set_receive_window(VarInt::from_u32(MEMBER_WINDOW_BYTES));
            conn.set_max_concurrent_bi_streams(settings.streams_max);
        }
        Self { near, far, _held: [near_end, far_end] }
    }

    /// A stream that the far end has not heard of before it is written to.
    pub(in crate::lan) async fn open(&self) -> (SendStream, RecvStream) {
        self.near.open_bi().await.expect("opens")
    }

    pub(in crate::lan) async fn accept(&self) -> (SendStream, RecvStream) {
        self.far.accept_bi().await.expect("arrives")
    }
}
