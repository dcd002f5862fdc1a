//! Carrying at the side of the llama-server.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BytesMut};
use mesh_transport::{RecvStream, SendStream, Stream};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};

use super::fill::fill;
use super::open::Entrance;
use super::{by_peer, reset_code};
use crate::carry::{Cut, Open, until_cut};
use crate::metrics::{Counters, add};
use crate::proto::rpc::{
    Buffers, HEAD_BYTES, RegisterAt, Replies, ReplyStep, Requests, RpcFault, Run, SET_TENSOR_HEAD_BYTES,
    Side, Step, Version, pack, reference_of, reply_payload,
};
use crate::tunnels::Inner;
use crate::{Remote, WeightId};

/// The reply to a SET_TENSOR_HASH whose bytes are at the worker: one byte, 1.
const HERE_ALREADY: [u8; 9] = [1, 0, 0, 0, 0, 0, 0, 0, 1];
/// Hashing so much takes some 50 us; more goes to a blocking thread.
const HASHED_HERE_BYTES: usize = 128 * 1024;
/// Frames that nobody waits for are held until somebody does, or until they are so many bytes: a llama-server writes a dozen
/// of them for each token, and together they are one packet or few.
const HELD_BYTES_MAX: usize = 64 * 1024;
/// Or until they name weights of so many bytes, which the peer's disk is to begin with.
const HELD_WEIGHTS_MAX: u64 = 4 << 20;
/// What `asked` says when it is not known any more.
const UNKNOWN: u64 = u64::MAX;

/// One connection of a llama-server.
pub(crate) struct Entering<'a> {
    pub(crate) inner: &'a Arc<Inner>,
    pub(crate) remote: &'a Remote,
    pub(crate) entrance: &'a Entrance,
    pub(crate) counters: &'a [&'a Counters],
}

/// What the two directions of a connection tell each other.
struct Talk {
    /// Replies that were asked for, or [`UNKNOWN`].
    asked: AtomicU64,
    /// What llama-server has allocated.
    buffers: Mutex<Buffers>,
}

impl Talk {
    fn buffers(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entering<'_> {
    /// Carries both ways until both directions have ended; as [`crate::carry::carry`] but for what the frames say.
    pub(crate) async fn carry(
        &self,
        socket: TcpStream,
        stream: Stream,
        at_peer: Arc<HashSet<WeightId>>,
    ) -> Result<(), RpcFault> {
        let mut socket = Cut::new(socket);
        let _open = Open::count(self.counters);
        let cut_off = stream.cut_off();
        let (mut send, mut recv) = stream.split();
        let (mut from_local, mut to_local) = socket.split();
        let talk = Talk { asked: AtomicU64::new(0), buffers: Mutex::default() };
        let (answers, answered_here) = mpsc::channel(1);
        let (done, replied) = (watch::Sender::new(0), watch::Sender::new(None));
        let requests = Requesting {
            entering: self,
            talk: &talk,
            answers,
            done: done.subscribe(),
            version: replied.subscribe(),
            held: BytesMut::new(),
            held_weights: 0,
            core: Requests::new(
                self.inner.config.rpc.clone(),
                Side::Entry { known: Arc::clone(&self.entrance.known), at_peer },
            ),
        };
        let replies =
            Replying { entering: self, talk: &talk, answers: answered_here, done, version: replied };
        let both = async {
            tokio::try_join!(requests.run(&mut from_local, &mut send), replies.run(&mut recv, &mut to_local),)
        };
        let carried = until_cut(cut_off, both).await.map(drop).map_err(by_peer);
        socket.end(carried.is_ok(), self.counters);
        if let Err(fault) = &carried {
            send.reset(reset_code(fault));
            recv.stop(reset_code(fault));
        }
        carried
    }

    fn chunk(&self) -> usize {
        self.inner.config.buffer_bytes.max(1)
    }
}

struct Requesting<'a> {
    entering: &'a Entering<'a>,
    talk: &'a Talk,
    answers: mpsc::Sender<[u8; 9]>,
    done: watch::Receiver<u64>,
    version: watch::Receiver<Option<Version>>,
    /// Frames that nobody waits for yet.
    held: BytesMut,
    /// Bytes of the weights that they name.
    held_weights: u64,
    core: Requests,
}

impl Requesting<'_> {
    async fn run(mut self, from: &mut ReadHalf<'_>, to: &mut SendStream) -> Result<(), RpcFault> {
        let chunk = self.entering.chunk();
        let mut at_hand = BytesMut::with_capacity(chunk);
        loop {
            let (frames, sent) = (self.core.frames, self.core.weights_sent);
            let step = self.core.step(&mut at_hand)?;
            self.count(frames, sent);
            match step {
                Step::Need(needed) => {
                    if !fill(from, &mut at_hand, needed, chunk).await? {
                        self.release(to).await?;
                        let whole = self.core.is_whole() && at_hand.is_empty();
                        return if whole { Ok(to.shutdown().await?) } else { Err(RpcFault::Half) };
                    }
                }
                Step::Pass(bytes) => {
                    match self.core.run {
                        Run::Quiet => self.hold(to, &at_hand[..bytes], 0).await?,
                        Run::Whole => self.hand_over(to, &at_hand[..bytes]).await?,
                        Run::Part => {
                            self.release(to).await?;
                            self.write(to, &at_hand[..bytes]).await?;
                        }
                    }
                    at_hand.advance(bytes);
                }
                Step::Hello(bytes) => {
                    self.write(to, &at_hand[..bytes]).await?;
                    at_hand.advance(bytes);
                    self.learn().await?;
                }
                Step::Answer { frame, reference, weight_bytes } => {
                    self.hold(to, &reference, weight_bytes).await?;
                    self.answer().await?;
                    self.referenced(weight_bytes);
                    at_hand.advance(frame);
                }
                Step::Check { frame, weights } => {
                    at_hand = self.check(to, at_hand, frame, &weights).await?;
                }
                Step::Register { frame, command, peer_id, port } => {
                    let (node, service) = self.stands_for(port)?;
                    // Whether a reply follows depends on the fork.
                    self.core.exact = false;
                    let at = RegisterAt { command, peer_id, node, service };
                    self.hand_over(to, &at.to_frame()).await?;
                    self.core.replaced();
                    add(self.entering.counters, |all| &all.requests, 1);
                    at_hand.advance(frame);
                }
                Step::Allocate { bytes, .. } => {
                    self.core.pass_frame(&at_hand);
                    if self.core.exact {
                        self.talk.buffers().ask(self.core.asked, bytes)?;
                    }
                }
                Step::Free { pointer } => {
                    self.core.pass_frame(&at_hand);
                    self.talk.buffers().free(pointer);
                }
                Step::Inject { .. } | Step::RegisterAt { .. } | Step::Unpack { .. } => {
                    return Err(RpcFault::Malformed);
                }
            }
        }
    }

    /// Keeps frames that nobody waits for, and hands all of them over once they are enough.
    async fn hold(&mut self, to: &mut SendStream, frames: &[u8], weight_bytes: u64) -> Result<(), RpcFault> {
        self.held.extend_from_slice(frames);
        self.held_weights += weight_bytes;
        let enough = self.held.len() >= HELD_BYTES_MAX || self.held_weights >= HELD_WEIGHTS_MAX;
        if enough { self.release(to).await } else { Ok(()) }
    }

    /// Hands over what is held.
    async fn release(&mut self, to: &mut SendStream) -> Result<(), RpcFault> {
        self.hand_over(to, &[]).await
    }

    /// Hands over what is held, and these frames after it.
    async fn hand_over(&mut self, to: &mut SendStream, frames: &[u8]) -> Result<(), RpcFault> {
        let mut held = std::mem::take(&mut self.held);
        self.held_weights = 0;
        let all = if held.is_empty() {
            frames
        } else {
            held.extend_from_slice(frames);
            &held
        };
        if !all.is_empty() {
            let packed = pack(all);
            self.write(to, packed.as_deref().unwrap_or(all)).await?;
        }
        held.clear();
        if held.capacity() <= 2 * HELD_BYTES_MAX {
            self.held = held;
        }
        Ok(())
    }

    /// Writes and counts. What is asked is known before the bytes are on their way, so that no reply comes unasked.
    async fn write(&self, to: &mut SendStream, bytes: &[u8]) -> Result<(), RpcFault> {
        self.talk.asked.store(if self.core.exact { self.core.asked } else { UNKNOWN }, Relaxed);
        to.write_all(bytes).await?;
        to.flush().await?;
        add(self.entering.counters, |all| &all.to_peers_bytes, bytes.len() as u64);
        Ok(())
    }

    async fn learn(&mut self) -> Result<(), RpcFault> {
        let version = self.version.wait_for(Option::is_some).await.map_err(|_| RpcFault::Half)?;
        if let Some(version) = *version {
            self.core.learn(version);
        }
        Ok(())
    }

    /// Answers once all that was asked before is answered: replies carry no name, only their place.
    async fn answer(&mut self) -> Result<(), RpcFault> {
        let asked = self.core.asked;
        self.done.wait_for(|done| *done >= asked).await.map_err(|_| RpcFault::Half)?;
        self.answers.send(HERE_ALREADY).await.map_err(|_| RpcFault::Half)
    }

    async fn check(
        &mut self,
        to: &mut SendStream,
        at_hand: BytesMut,
        frame: usize,
        weights: &[WeightId],
    ) -> Result<BytesMut, RpcFault> {
        let hash = move |bytes: &BytesMut| {
            let data = bytes.get(HEAD_BYTES + SET_TENSOR_HEAD_BYTES..frame).unwrap_or_default();
            WeightId(*blake3::hash(data).as_bytes())
        };
        let (mut at_hand, id) = if frame <= HASHED_HERE_BYTES {
            let id = hash(&at_hand);
            (at_hand, id)
        } else {
            let hashed = tokio::task::spawn_blocking(move || {
                let id = hash(&at_hand);
                (at_hand, id)
            });
            hashed.await.map_err(std::io::Error::other)?
        };
        let reference = weights.contains(&id).then(|| reference_of(&at_hand, id)).flatten();
        match reference {
            Some(reference) => {
                let weight_bytes = (frame - HEAD_BYTES - SET_TENSOR_HEAD_BYTES) as u64;
                self.hold(to, &reference, weight_bytes).await?;
                self.referenced(weight_bytes);
                at_hand.advance(frame);
            }
            None => {
                let (frames, sent) = (self.core.frames, self.core.weights_sent);
                self.core.pass_frame(&at_hand);
                self.count(frames, sent);
            }
        }
        Ok(at_hand)
    }

    fn referenced(&mut self, weight_bytes: u64) {
        self.core.replaced();
        let counters = self.entering.counters;
        add(counters, |all| &all.requests, 1);
        add(counters, |all| &all.weights_by_reference, 1);
        add(counters, |all| &all.weights_by_reference_bytes, weight_bytes);
    }

    fn count(&self, frames: u64, sent: u64) {
        add(self.entering.counters, |all| &all.requests, self.core.frames - frames);
        add(self.entering.counters, |all| &all.weights_sent_bytes, self.core.weights_sent - sent);
    }

    /// Which service of which node a port of this machine stands for.
    fn stands_for(&self, port: u16) -> Result<(mesh_identity::NodeId, crate::ServiceName), RpcFault> {
        self.entering.inner.stands_for(port, &self.entering.remote.scope).ok_or(RpcFault::NotATunnel)
    }
}

struct Replying<'a> {
    entering: &'a Entering<'a>,
    talk: &'a Talk,
    answers: mpsc::Receiver<[u8; 9]>,
    done: watch::Sender<u64>,
    version: watch::Sender<Option<Version>>,
}

impl Replying<'_> {
    async fn run(mut self, from: &mut RecvStream, to: &mut WriteHalf<'_>) -> Result<(), RpcFault> {
        let chunk = self.entering.chunk();
        let mut core = Replies::new(self.entering.inner.config.rpc.frame_bytes_max);
        let mut at_hand = BytesMut::with_capacity(chunk);
        loop {
            let asked = Some(self.talk.asked.load(Relaxed)).filter(|asked| *asked != UNKNOWN);
            let begun = core.begun;
            let awaited = self.talk.buffers().awaited();
            let step = core.step(&mut at_hand, asked, awaited)?;
            add(self.entering.counters, |all| &all.replies, core.begun - begun);
            let (ReplyStep::Pass(bytes) | ReplyStep::Hello(bytes, _) | ReplyStep::Awaited(bytes)) = step
            else {
                let ReplyStep::Need(needed) = step else { continue };
                let filled = tokio::select! { biased;
                    // Only ever sent where no reply is outstanding, so it falls between two.
                    Some(answer) = self.answers.recv() => {
                        to.write_all(&answer).await?;
                        add(self.entering.counters, |all| &all.replies, 1);
                        continue;
                    }
                    filled = fill(from, &mut at_hand, needed, chunk) => filled?,
                };
                if filled {
                    continue;
                }
                let whole = core.is_whole() && at_hand.is_empty();
                return if whole { Ok(to.shutdown().await?) } else { Err(RpcFault::Half) };
            };
            if let ReplyStep::Awaited(bytes) = step {
                self.allocated(&at_hand[..bytes]);
            }
            to.write_all(&at_hand[..bytes]).await?;
            add(self.entering.counters, |all| &all.from_peers_bytes, bytes as u64);
            at_hand.advance(bytes);
            let done = if core.is_whole() { core.begun } else { core.begun - 1 };
            self.done.send_replace(done);
            if let ReplyStep::Hello(_, version) = step {
                self.version.send_replace(Some(version));
            }
        }
    }

    /// Says so where llama-server does not get the memory that it asks for; itself it only says that it did not.
    fn allocated(&self, reply: &[u8]) {
        let bytes = self.talk.buffers().answered(reply_payload(reply));
        if bytes > 0 {
            let peer = self.entering.remote.peer.short();
            tracing::warn!(%peer, bytes, "llama-server does not get this memory of the worker: it is more than the worker lends, or has");
        }
    }
}
