//! A QUIC connection's streams, as the swarm takes them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::{FutureExt, future::BoxFuture};
use libp2p::core::{StreamMuxer, muxing::StreamMuxerEvent};
use noq::{RecvStream, SendStream, VarInt};
use tokio::io::Join;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use super::{Error, MEMBER_WINDOW_BYTES};
use crate::lan::gate::Gate;

/// Both directions of a stream; libp2p's traits are the futures crate's.
type Substream = Compat<Join<RecvStream, SendStream>>;
type Opening = BoxFuture<'static, Result<(SendStream, RecvStream), noq::ConnectionError>>;

/// One connection; it starts with room for a stranger.
pub(in crate::lan) struct Muxer {
    conn: noq::Connection,
    /// Resolves when hello has proved the peer; gone once that was acted upon.
    admission: Option<BoxFuture<'static, ()>>,
    streams_max: VarInt,
    inbound: Option<Opening>,
    outbound: Option<Opening>,
    closing: Option<BoxFuture<'static, ()>>,
}

impl Muxer {
    pub(super) fn new(conn: noq::Connection, gate: Arc<Gate>, streams_max: VarInt) -> Self {
        let admission = async move { gate.opened().await }.boxed();
        Self { conn, admission: Some(admission), streams_max, inbound: None, outbound: None, closing: None }
    }
}

fn substream((send, recv): (SendStream, RecvStream)) -> Substream {
    tokio::io::join(recv, send).compat()
}

impl StreamMuxer for Muxer {
    type Substream = Substream;
    type Error = Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Substream, Error>> {
        let this = &mut *self;
        let inbound = this.inbound.get_or_insert_with(|| {
            let conn = this.conn.clone();
            async move { conn.accept_bi().await }.boxed()
        });
        let arrived = ready!(inbound.poll_unpin(cx));
        this.inbound = None;
        Poll::Ready(Ok(substream(arrived?)))
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Substream, Error>> {
        let this = &mut *self;
        let outbound = this.outbound.get_or_insert_with(|| {
            let conn = this.conn.clone();
            async move { conn.open_bi().await }.boxed()
        });
        let opened = ready!(outbound.poll_unpin(cx));
        this.outbound = None;
        Poll::Ready(Ok(substream(opened?)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = &mut *self;
        let closing = this.closing.get_or_insert_with(|| {
            this.conn.close(VarInt::from_u32(0), b"");
            let conn = this.conn.clone();
            async move { drop(conn.closed().await) }.boxed()
        });
        closing.poll_unpin(cx).map(Ok)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Error>> {
        let this = &mut *self;
        if let Some(admission) = &mut this.admission {
            ready!(admission.poll_unpin(cx));
            this.admission = None;
            this.conn.set_receive_window(VarInt::from_u32(MEMBER_WINDOW_BYTES));
            this.conn.set_max_concurrent_bi_streams(this.streams_max);
        }
        Poll::Pending
    }
}
