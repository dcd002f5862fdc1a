//! Carrying at the side of the rpc-server.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use mesh_transport::{Member, RecvStream, SendStream, Stream};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};

use super::fill::fill;
use super::lent::{Holding, Lent};
use super::{RpcUse, by_peer, reset_code};
use crate::carry::{Cut, Open, until_cut};
use crate::metrics::{Counters, add};
use crate::proto::rpc::{
    HEAD_BYTES, NO_MEMORY, RegisterAt, Replies, ReplyStep, Requests, RpcFault, Side, Step, Version, injected,
    register_peer, reply_payload, unpack,
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
    inner: &'a Arc<Inner>,
    lent: &'a Lent,
    host: &'a Member,
    holding: Holding<'a>,
    /// Sizes of the weights that the entry was told of.
    weights: HashMap<WeightId, u64>,
}

/// What the requests of a connection tell its replies, and hear of them.
struct Asking {
    version: watch::Receiver<Option<Version>>,
    /// Replies that the rpc-server has given.
    done: watch::Receiver<u64>,
    /// Replies that are given in its place.
    answers: mpsc::Sender<[u8; NO_MEMORY.len()]>,
}

/// The other side of it.
struct Replying {
    version: watch::Sender<Option<Version>>,
    done: watch::Sender<u64>,
    answers: mpsc::Receiver<[u8; NO_MEMORY.len()]>,
}

impl<'a> Leaving<'a> {
    pub(crate) fn new(inner: &'a Arc<Inner>, lent: &'a Lent, host: &'a Member, list: &[Weight]) -> Self {
        let weights = list.iter().map(|weight| (weight.id, weight.bytes)).collect();
        Self { inner, lent, host, holding: Holding::new(lent), weights }
    }

    /// Carries both ways until both directions have ended.
    pub(crate) async fn carry(&self, socket: TcpStream, stream: Stream) -> Result<(), RpcFault> {
        let counters: &[&Counters] = &[&self.inner.counters];
        let mut socket = Cut::new(socket);
        let _open = Open::count(counters);
        let cut_off = stream.cut_off();
        let (mut send, mut recv) = stream.split();
        let (mut from_local, mut to_local) = socket.split();
        let (version, done) = (watch::Sender::new(None), watch::Sender::new(0));
        let (answers, answered_here) = mpsc::channel(1);
        let asking = Asking { version: version.subscribe(), done: done.subscribe(), answers };
        let replying = Replying { version, done, answers: answered_here };
        let both = async {
            tokio::try_join!(
                self.requests(&mut recv, &mut to_local, asking),
                self.replies(&mut from_local, &mut send, replying),
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
        mut asking: Asking,
    ) -> Result<(), RpcFault> {
        let counters: &[&Counters] = &[&self.inner.counters];
        let chunk = self.inner.config.buffer_bytes.max(1);
        let counts = self.lent.offer.bytes_max.is_some();
        let mut core = Requests::new(self.inner.config.rpc.clone(), Side::Exit { counts });
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
                    let said = asking.version.wait_for(Option::is_some).await.map_err(|_| RpcFault::Half)?;
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
                Step::Allocate { frame, bytes } => {
                    if self.holding.take(bytes) {
                        core.pass_frame(&at_hand);
                        self.expect(&core, bytes)?;
                        continue;
                    }
                    self.refuse(bytes, core.asked, &mut asking).await?;
                    core.replaced();
                    add(counters, |all| &all.requests, 1);
                    frame
                }
                Step::Free { pointer } => {
                    core.pass_frame(&at_hand);
                    let freed = self.holding.buffers().free(pointer);
                    self.holding.give_back(freed);
                    continue;
                }
                Step::Unpack { frame } => {
                    let frames = unpack(&at_hand[HEAD_BYTES..frame])?;
                    core.unpacked(frames.len());
                    add(counters, |all| &all.from_peers_bytes, frame as u64);
                    at_hand = [&frames, &at_hand[frame..]].concat().as_slice().into();
                    continue;
                }
                Step::Answer { .. } | Step::Check { .. } | Step::Register { .. } => {
                    return Err(RpcFault::Malformed);
                }
            };
            add(counters, |all| &all.from_peers_bytes, core.taken(taken) as u64);
            at_hand.advance(taken);
        }
    }

    async fn replies(
        &self,
        from: &mut ReadHalf<'_>,
        to: &mut SendStream,
        mut replying: Replying,
    ) -> Result<(), RpcFault> {
        let counters: &[&Counters] = &[&self.inner.counters];
        let chunk = self.inner.config.buffer_bytes.max(1);
        let mut core = Replies::new(self.inner.config.rpc.frame_bytes_max);
        let mut at_hand = BytesMut::with_capacity(chunk);
        loop {
            let begun = core.begun;
            let awaited = self.holding.buffers().awaited();
            let step = core.step(&mut at_hand, None, awaited)?;
            add(counters, |all| &all.replies, core.begun - begun);
            let bytes = match step {
                ReplyStep::Need(needed) => {
                    let filled = tokio::select! { biased;
                        // Only ever sent where no reply is outstanding, so it falls between two.
                        Some(answer) = replying.answers.recv() => {
                            to.write_all(&answer).await?;
                            to.flush().await?;
                            add(counters, |all| &all.replies, 1);
                            add(counters, |all| &all.to_peers_bytes, answer.len() as u64);
                            continue;
                        }
                        filled = fill(from, &mut at_hand, needed, chunk) => filled?,
                    };
                    if filled {
                        continue;
                    }
                    let whole = core.is_whole() && at_hand.is_empty();
                    return if whole { Ok(to.shutdown().await?) } else { Err(RpcFault::Half) };
                }
                ReplyStep::Pass(bytes) => bytes,
                ReplyStep::Hello(bytes, said) => {
                    // Before the host can have it: what it sends next is judged by it.
                    replying.version.send_replace(Some(said));
                    bytes
                }
                ReplyStep::Awaited(bytes) => {
                    let not_given = self.holding.buffers().answered(reply_payload(&at_hand[..bytes]));
                    self.holding.give_back(not_given);
                    bytes
                }
            };
            to.write_all(&at_hand[..bytes]).await?;
            to.flush().await?;
            add(counters, |all| &all.to_peers_bytes, bytes as u64);
            at_hand.advance(bytes);
            replying.done.send_replace(if core.is_whole() { core.begun } else { core.begun - 1 });
        }
    }

    /// Notes the allocation that passes, so that its reply is known when it comes.
    fn expect(&self, core: &Requests, bytes: u64) -> Result<(), RpcFault> {
        let mut buffers = self.holding.buffers();
        if core.exact {
            return buffers.ask(core.asked, bytes);
        }
        buffers.ask_unnamed(bytes);
        Ok(())
    }

    /// Says that there is no memory, in the place of the rpc-server and after all that it still has to say.
    async fn refuse(&self, bytes: u64, asked: u64, asking: &mut Asking) -> Result<(), RpcFault> {
        tracing::warn!(
            host = %self.host.id.short(),
            bytes,
            allocated = self.lent.allocated(),
            lent = self.lent.offer.bytes_max,
            "the host asks for more memory than it was lent: it does not get it"
        );
        asking.done.wait_for(|done| *done >= asked).await.map_err(|_| RpcFault::Half)?;
        asking.answers.send(NO_MEMORY).await.map_err(|_| RpcFault::Half)
    }

    /// Writes a SET_TENSOR whose data comes from this machine's disk. The last piece goes out only once all bytes are known to
    /// be those of the weight: the rpc-server uses nothing of a frame that is not whole.
    async fn inject(&self, to: &mut WriteHalf<'_>, frame: &[u8], weight: WeightId) -> Result<(), RpcFault> {
        let known = self.lent.offer.weights.as_ref().zip(self.weights.get(&weight));
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
        let remote = Remote { scope: self.host.scope, peer: at.node, service: at.service.clone() };
        let how = RpcUse { weights: None, build: self.lent.offer.build.clone() };
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
