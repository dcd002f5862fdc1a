//! Carrying at the side of the rpc-server.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use mesh_identity::ScopeId;
use mesh_transport::{RecvStream, SendStream, Stream};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};

use super::fill::fill;
use super::{RpcOffer, RpcUse, by_peer, reset_code};
use crate::carry::{Cut, Open, until_cut};
use crate::metrics::{Counters, add};
use crate::proto::rpc::{
    RegisterAt, Replies, ReplyStep, Requests, RpcFault, Side, Step, Version, injected, register_peer,
};
use crate::tunnels::Inner;
use crate::{LocalListener, Remote, Weight, WeightId, Weights};

/// A weight is read in pieces of so much.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces read ahead of what the rpc-server takes.
const PIECES_AHEAD: usize = 2;
/// Peers that one rpc-server may be told of over one connection: every worker of a large mesh.
const PEERS_MAX: usize = 256;

/// One connection to an rpc-server of this machine.
pub(crate) struct Leaving<'a> {
    pub(crate) inner: &'a Arc<Inner>,
    pub(crate) offer: &'a RpcOffer,
    pub(crate) scope: ScopeId,
    /// Sizes of the weights that the entry was told of.
    pub(crate) weights: HashMap<WeightId, u64>,
}

impl<'a> Leaving<'a> {
    pub(crate) fn new(inner: &'a Arc<Inner>, offer: &'a RpcOffer, scope: ScopeId, list: &[Weight]) -> Self {
        let weights = list.iter().map(|weight| (weight.id, weight.bytes)).collect();
        Self { inner, offer, scope, weights }
    }

    /// Carries both ways until both directions have ended.
    pub(crate) async fn carry(&self, socket: TcpStream, stream: Stream) -> Result<(), RpcFault> {
        let counters: &[&Counters] = &[&self.inner.counters];
        let mut socket = Cut::new(socket);
        let _open = Open::count(counters);
        let cut_off = stream.cut_off();
        let (mut send, mut recv) = stream.split();
        let (mut from_local, mut to_local) = socket.split();
        let said = watch::Sender::new(None);
        let version = said.subscribe();
        let both = async {
            tokio::try_join!(
                self.requests(&mut recv, &mut to_local, version),
                self.replies(&mut from_local, &mut send, said),
            )
        };
        let carried = until_cut(cut_off, both).await.map(drop).map_err(by_peer);
        socket.end(carried.is_ok(), counters);
        if let Err(fault) = &carried {
            send.reset(reset_code(fault));
            recv.stop(reset_code(fault));
        }
        carried
    }

    async fn requests(
        &self,
        from: &mut RecvStream,
        to: &mut WriteHalf<'_>,
        mut version: watch::Receiver<Option<Version>>,
    ) -> Result<(), RpcFault> {
        let counters: &[&Counters] = &[&self.inner.counters];
        let chunk = self.inner.config.buffer_bytes.max(1);
        let mut core = Requests::new(self.inner.config.rpc.clone(), Side::Exit);
        let mut at_hand = BytesMut::with_capacity(chunk);
        // They live as long as the rpc-server may connect to them.
        let mut peers = Vec::new();
        loop {
            let frames = core.frames;
            let step = core.step(&mut at_hand)?;
            add(counters, |all| &all.requests, core.frames - frames);
            let taken = match step {
                Step::Need(needed) => {
                    if fill(from, &mut at_hand, needed, chunk).await? {
                        continue;
                    }
                    let whole = core.is_whole() && at_hand.is_empty();
                    return if whole { Ok(to.shutdown().await?) } else { Err(RpcFault::Half) };
                }
                Step::Pass(bytes) => {
                    to.write_all(&at_hand[..bytes]).await?;
                    bytes
                }
                Step::Hello(bytes) => {
                    to.write_all(&at_hand[..bytes]).await?;
                    let said = version.wait_for(Option::is_some).await.map_err(|_| RpcFault::Half)?;
                    said.iter().for_each(|version| core.learn(*version));
                    bytes
                }
                Step::Inject { frame, weight } => {
                    self.inject(to, &at_hand[..frame], weight).await?;
                    core.replaced();
                    add(counters, |all| &all.requests, 1);
                    frame
                }
                Step::RegisterAt { frame, at } => {
                    let port = self.port_of(&at, &mut peers)?;
                    to.write_all(&register_peer(at.command, at.peer_id, port)).await?;
                    core.replaced();
                    add(counters, |all| &all.requests, 1);
                    frame
                }
                Step::Answer { .. } | Step::Check { .. } | Step::Register { .. } => {
                    return Err(RpcFault::Malformed);
                }
            };
            add(counters, |all| &all.from_peers_bytes, taken as u64);
            at_hand.advance(taken);
        }
    }

    async fn replies(
        &self,
        from: &mut ReadHalf<'_>,
        to: &mut SendStream,
        version: watch::Sender<Option<Version>>,
    ) -> Result<(), RpcFault> {
        let counters: &[&Counters] = &[&self.inner.counters];
        let chunk = self.inner.config.buffer_bytes.max(1);
        let mut core = Replies::new(self.inner.config.rpc.frame_bytes_max);
        let mut at_hand = BytesMut::with_capacity(chunk);
        loop {
            let begun = core.begun;
            let step = core.step(&mut at_hand, None)?;
            add(counters, |all| &all.replies, core.begun - begun);
            let bytes = match step {
                ReplyStep::Need(needed) => {
                    if fill(from, &mut at_hand, needed, chunk).await? {
                        continue;
                    }
                    let whole = core.is_whole() && at_hand.is_empty();
                    return if whole { Ok(to.shutdown().await?) } else { Err(RpcFault::Half) };
                }
                ReplyStep::Pass(bytes) => bytes,
                ReplyStep::Hello(bytes, said) => {
                    // Before the host can have it: what it sends next is judged by it.
                    version.send_replace(Some(said));
                    bytes
                }
            };
            to.write_all(&at_hand[..bytes]).await?;
            to.flush().await?;
            add(counters, |all| &all.to_peers_bytes, bytes as u64);
            at_hand.advance(bytes);
        }
    }

    /// Writes a SET_TENSOR whose data comes from this machine's disk. The last piece goes out only once all bytes are known to
    /// be those of the weight: the rpc-server uses nothing of a frame that is not whole.
    async fn inject(&self, to: &mut WriteHalf<'_>, frame: &[u8], weight: WeightId) -> Result<(), RpcFault> {
        let known = self.offer.weights.as_ref().zip(self.weights.get(&weight));
        let (weights, bytes) = known.ok_or(RpcFault::NoWeight(weight))?;
        let head = injected(frame, *bytes).ok_or(RpcFault::Malformed)?;
        let (pieces, mut read) = mpsc::channel(PIECES_AHEAD);
        let (from, bytes) = (Arc::clone(weights), *bytes);
        let reading = tokio::task::spawn_blocking(move || read_pieces(&*from, weight, bytes, &pieces));
        to.write_all(&head).await?;
        while let Some(piece) = read.recv().await {
            to.write_all(&piece).await?;
        }
        let read = reading.await.map_err(io::Error::other)?;
        read.map_err(|error| RpcFault::Weight(weight, weights.file(), error))?;
        let counters: &[&Counters] = &[&self.inner.counters];
        add(counters, |all| &all.weights_by_reference, 1);
        add(counters, |all| &all.weights_by_reference_bytes, bytes);
        Ok(())
    }

    /// The port of this machine that stands for a service of any node.
    fn port_of(&self, at: &RegisterAt, peers: &mut Vec<Arc<LocalListener>>) -> Result<u16, RpcFault> {
        if at.node == self.inner.transport.node_id() {
            let own = self.inner.services.find_rpc(at.service.as_str());
            return own.map(|(at, _)| at.port()).ok_or(RpcFault::NotATunnel);
        }
        if peers.len() >= PEERS_MAX {
            return Err(RpcFault::NotATunnel);
        }
        let remote = Remote { scope: self.scope, peer: at.node, service: at.service.clone() };
        let how = RpcUse { weights: None, build: self.offer.build.clone() };
        let listener = self.inner.listen(remote, Some(how)).map_err(RpcFault::Listen)?;
        let port = listener.addr().port();
        peers.push(listener);
        Ok(port)
    }
}

/// Hands the weight on piece by piece; nothing of its last piece if the bytes are not the weight's.
fn read_pieces(
    weights: &dyn Weights,
    weight: WeightId,
    bytes: u64,
    to: &mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let (mut offset, mut hash) = (0, blake3::Hasher::new());
    while offset < bytes {
        let length = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let mut piece = vec![0; length];
        weights.read(&weight, offset, &mut piece)?;
        hash.update(&piece);
        offset += length as u64;
        if offset == bytes && WeightId(*hash.finalize().as_bytes()) != weight {
            weights.forget(&weight);
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its bytes have changed since it was indexed",
            ));
        }
        if to.blocking_send(piece).is_err() {
            return Ok(()); // Nobody waits any more.
        }
    }
    Ok(())
}
