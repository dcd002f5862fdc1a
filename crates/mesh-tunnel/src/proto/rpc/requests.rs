//! Requests: what of them passes, what is replaced, and what is answered here.

use std::collections::HashSet;
use std::sync::Arc;

use super::RpcFault;
use super::command::{
    ALLOC_BUFFER, Command, FREE_BUFFER, GRAPH_COMPUTE, HEAD_BYTES, HELLO, HELLO_BYTES_MAX, Head, Policy,
    SET_TENSOR, SET_TENSOR_HASH, Version,
};
use super::own::{
    REFERENCE, REFERENCE_BYTES, REGISTER_AT, REGISTER_AT_BYTES_MAX, RegisterAt, reference, registered,
};
use super::pack::{PACKED, PACKED_BYTES_MAX};
use super::tensor::{HASH_BYTES, SET_TENSOR_HEAD_BYTES, SetTensor, SetTensorHash};
use crate::WeightId;
use crate::weights::Known;

/// Frames up to here go on when they are whole: a llama-server writes one in three pieces, and what is in pieces is of no use
/// to its reader anyway. Above, bytes go on as they come, but for a graph at the entry, which is packed. 64 KiB: the
/// activations of a token.
pub(crate) const WHOLE_BYTES_MAX: usize = 64 * 1024;
/// Tensors below are sent: a reference is longer than their data by 32 bytes at most.
const REFERENCE_DATA_MIN: u64 = 64;
/// Tensors above are sent unless their hash was asked for first, as llama-server does from 10 MiB on: they are not held here to
/// be hashed.
const REFERENCE_DATA_MAX: u64 = 16 << 20;

/// At which end of the tunnel requests are looked at.
#[derive(Debug)]
pub(crate) enum Side {
    /// Where the llama-server is: with its own weights, and those of them that the exit has.
    Entry { known: Arc<Known>, at_peer: Arc<HashSet<WeightId>> },
    /// Where the rpc-server is.
    Exit {
        /// Whether what is allocated is counted.
        counts: bool,
    },
}

/// What to do with the first bytes of those at hand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing before there are so many.
    Need(usize),
    /// They pass as they are; [`Requests::run`] says what they are.
    Pass(usize),
    /// HELLO, its capabilities cleared: it passes, and the version must be known before the next step.
    Hello(usize),
    /// A SET_TENSOR_HASH whose bytes the peer has: once no reply is outstanding, `reference` goes on instead, and the reply
    /// says "here already".
    Answer { frame: usize, reference: Vec<u8>, weight_bytes: u64 },
    /// A SET_TENSOR whose data may be one of these weights: [`Requests::replaced`] or [`Requests::pass_frame`] says which.
    Check { frame: usize, weights: Vec<WeightId> },
    /// A REGISTER_PEER: another frame goes on instead.
    Register { frame: usize, command: u8, peer_id: u32, port: u16 },
    /// A reference: the weight's bytes go on behind the head that [`injected`] makes.
    Inject { frame: usize, weight: WeightId },
    /// A REGISTER_PEER of the peer's: [`super::register_peer`] goes on instead.
    RegisterAt { frame: usize, at: RegisterAt },
    /// Memory is asked for: [`Requests::pass_frame`], or [`Requests::replaced`] where the exit answers itself.
    Allocate { frame: usize, bytes: u64 },
    /// Memory is given back: the frame passes by [`Requests::pass_frame`].
    Free { pointer: u64 },
    /// Frames that the peer has packed: what [`super::unpack`] makes of it comes instead, and [`Requests::unpacked`] says so.
    Unpack { frame: usize },
}

/// What passes in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    /// Whole frames that nobody waits for: they have no reply, and nothing is computed by them.
    Quiet,
    /// Whole frames.
    Whole,
    /// A part of a frame, alone or beside whole ones.
    Part,
}

/// Follows the requests of one connection.
#[derive(Debug)]
pub(crate) struct Requests {
    policy: Policy,
    side: Side,
    version: Option<Version>,
    /// What is left of the frame that is passing.
    passing: u64,
    said_hello: bool,
    /// So many of the bytes at hand came packed.
    from_packed: usize,
    /// What the last [`Step::Pass`] was.
    pub(crate) run: Run,
    /// Replies that were asked for so far.
    pub(crate) asked: u64,
    /// Whether `asked` is exact: an unknown command may have a reply or none.
    pub(crate) exact: bool,
    /// Frames so far, as the llama-server wrote them.
    pub(crate) frames: u64,
    /// Bytes of weights that passed.
    pub(crate) weights_sent: u64,
}

impl Requests {
    pub(crate) fn new(policy: Policy, side: Side) -> Self {
        Self {
            policy,
            side,
            version: None,
            passing: 0,
            said_hello: false,
            from_packed: 0,
            run: Run::Quiet,
            asked: 0,
            exact: true,
            frames: 0,
            weights_sent: 0,
        }
    }

    /// What the reply to HELLO said.
    pub(crate) fn learn(&mut self, version: Version) {
        self.version = Some(version);
    }

    /// Whether the bytes so far end with a whole frame.
    pub(crate) fn is_whole(&self) -> bool {
        self.passing == 0
    }

    /// What was packed has taken the place of the frame at hand, and is so long.
    pub(crate) fn unpacked(&mut self, bytes: usize) {
        self.from_packed = bytes;
    }

    /// So many bytes are no longer at hand; how many of them the peer has sent as they were.
    pub(crate) fn taken(&mut self, bytes: usize) -> usize {
        let from_packed = bytes.min(self.from_packed);
        self.from_packed -= from_packed;
        bytes - from_packed
    }

    /// The frame at hand goes on as something else.
    pub(crate) fn replaced(&mut self) {
        self.frames += 1;
    }

    /// The frame at hand passes as it is.
    pub(crate) fn pass_frame(&mut self, bytes: &[u8]) {
        if let (Some(head), Some(version)) = (Head::of(bytes), self.version) {
            self.begin(head, version.command(head.command), bytes);
        }
    }

    fn pass(&mut self, bytes: usize) -> Step {
        if self.passing > 0 {
            self.run = Run::Part;
        }
        Step::Pass(bytes)
    }

    /// The next step. After one that holds a frame back the caller skips that frame.
    ///
    /// # Errors
    /// [`RpcFault`]: the frame at hand must not pass.
    pub(crate) fn step(&mut self, bytes: &mut [u8]) -> Result<Step, RpcFault> {
        let mut run = 0;
        self.run = if self.passing > 0 { Run::Part } else { Run::Quiet };
        loop {
            let rest = &mut bytes[run..];
            let passed = usize::try_from(self.passing).unwrap_or(usize::MAX).min(rest.len());
            self.passing -= passed as u64;
            run += passed;
            let rest = &mut rest[passed..];
            let packed = run < self.from_packed;
            let judged = if self.passing > 0 { Ok(Err(Step::Need(1))) } else { self.judge(rest, packed) };
            let judged = match judged {
                Ok(Ok(passes)) => Ok(passes),
                // What goes before is handed over first; the rest is judged again then.
                _ if run > 0 => return Ok(self.pass(run)),
                judged => judged?,
            };
            match judged {
                Err(Step::Hello(frame)) => {
                    self.said_hello = true;
                    (self.frames, self.asked) = (1, 1);
                    // What HELLO says are offers to leave TCP for a transport that the tunnel could not carry.
                    rest[HEAD_BYTES..frame].fill(0);
                    return Ok(Step::Hello(frame));
                }
                Err(step) => return Ok(step),
                Ok((head, command)) => self.begin(head, command, rest),
            }
        }
    }

    fn begin(&mut self, head: Head, command: Option<&'static Command>, bytes: &[u8]) {
        self.frames += 1;
        self.passing = head.frame_bytes();
        match command {
            Some(command) => self.asked += u64::from(command.replies),
            None => self.exact = false,
        }
        if self.run == Run::Quiet && !(self.exact && command.is_some_and(|command| command.is_quiet())) {
            self.run = Run::Whole;
        }
        if let (SET_TENSOR, Side::Entry { known, .. }, Some(front)) = (head.command, &self.side, front(bytes))
        {
            let data = head.bytes - SET_TENSOR_HEAD_BYTES as u64;
            if known.by_name(SetTensor::of(front).name, data).next().is_some() {
                self.weights_sent += data;
            }
        }
    }

    /// Whether the frame at hand passes (`Ok`), or what is to be done first or instead. Changes nothing.
    fn judge(&self, bytes: &[u8], packed: bool) -> Result<Result<Passes, Step>, RpcFault> {
        let Some(head) = Head::of(bytes) else { return Ok(Err(Step::Need(HEAD_BYTES))) };
        let whole = usize::try_from(head.frame_bytes()).unwrap_or(usize::MAX);
        let Some(version) = self.version else { return self.judge_hello(head, whole, bytes.len()).map(Err) };
        match (&self.side, head.command) {
            (Side::Exit { .. }, REFERENCE | REGISTER_AT) => return judge_own(head, whole, bytes).map(Err),
            // What is packed holds nothing packed, so that it never becomes longer than its bound.
            (Side::Exit { .. }, PACKED) if !packed => return judge_packed(head, whole, bytes).map(Err),
            _ => {}
        }
        let command = self.policy.check(version, head)?;
        let stock_tensors = command.is_some() && self.exact;
        let needed = match head.command {
            SET_TENSOR if stock_tensors => HEAD_BYTES + SET_TENSOR_HEAD_BYTES,
            _ => HEAD_BYTES,
        };
        let is_graph =
            matches!(self.side, Side::Entry { .. }) && head.command == GRAPH_COMPUTE && command.is_some();
        let whole_max = if is_graph { PACKED_BYTES_MAX } else { WHOLE_BYTES_MAX };
        let needed = if whole <= whole_max { whole } else { needed };
        if bytes.len() < needed {
            return Ok(Err(Step::Need(needed)));
        }
        if version.is_register_peer(head) {
            return self.judge_register(head, &bytes[..whole]).map(Err);
        }
        if command.is_some()
            && !matches!(self.side, Side::Exit { counts: false })
            && let Some(step) = judge_memory(head, whole, bytes)
        {
            return Ok(Err(step));
        }
        if let (Side::Entry { known, at_peer }, true) = (&self.side, stock_tensors) {
            let replaced = match head.command {
                SET_TENSOR => judge_tensor(known, at_peer, whole, bytes),
                SET_TENSOR_HASH => judge_hash(known, at_peer, whole, bytes),
                _ => None,
            };
            if let Some(step) = replaced {
                return Ok(Err(step));
            }
        }
        Ok(Ok((head, command)))
    }

    fn judge_hello(&self, head: Head, whole: usize, at_hand: usize) -> Result<Step, RpcFault> {
        if self.said_hello || head.command != HELLO {
            return Err(RpcFault::NotHello(head.command));
        }
        if head.bytes > HELLO_BYTES_MAX {
            let (bytes, bytes_max) = (head.bytes, HELLO_BYTES_MAX);
            return Err(RpcFault::Size { command: "HELLO", code: HELLO, bytes, bytes_max });
        }
        Ok(if at_hand < whole { Step::Need(whole) } else { Step::Hello(whole) })
    }

    fn judge_register(&self, head: Head, frame: &[u8]) -> Result<Step, RpcFault> {
        // Its port is one of the sender's machine: the sending end of the tunnel says what it stands for.
        let named =
            if matches!(self.side, Side::Exit { .. }) { None } else { registered(&frame[HEAD_BYTES..]) };
        let (peer_id, port) = named.ok_or(RpcFault::NotATunnel)?;
        Ok(Step::Register { frame: frame.len(), command: head.command, peer_id, port })
    }
}

type Passes = (Head, Option<&'static Command>);

fn front(bytes: &[u8]) -> Option<&[u8; SET_TENSOR_HEAD_BYTES]> {
    bytes.get(HEAD_BYTES..)?.first_chunk()
}

fn judge_own(head: Head, whole: usize, bytes: &[u8]) -> Result<Step, RpcFault> {
    let reference = head.command == REFERENCE;
    let fits = if reference {
        head.bytes == REFERENCE_BYTES as u64
    } else {
        head.bytes <= REGISTER_AT_BYTES_MAX as u64
    };
    if !fits {
        return Err(RpcFault::Malformed);
    }
    let Some(payload) = bytes.get(HEAD_BYTES..whole) else { return Ok(Step::Need(whole)) };
    if !reference {
        return Ok(Step::RegisterAt { frame: whole, at: RegisterAt::of(payload)? });
    }
    let id = payload.last_chunk().ok_or(RpcFault::Malformed)?;
    Ok(Step::Inject { frame: whole, weight: WeightId(*id) })
}

/// Memory that is asked for or given back; its frame is whole.
fn judge_memory(head: Head, whole: usize, bytes: &[u8]) -> Option<Step> {
    let payload = bytes.get(HEAD_BYTES..whole)?;
    let number = |bytes: &[u8]| bytes.first_chunk().map(|number| u64::from_le_bytes(*number));
    match head.command {
        ALLOC_BUFFER => Some(Step::Allocate { frame: whole, bytes: number(payload.get(4..)?)? }),
        FREE_BUFFER => Some(Step::Free { pointer: number(payload)? }),
        _ => None,
    }
}

fn judge_packed(head: Head, whole: usize, bytes: &[u8]) -> Result<Step, RpcFault> {
    if head.bytes > PACKED_BYTES_MAX as u64 {
        return Err(RpcFault::Malformed);
    }
    Ok(if bytes.len() < whole { Step::Need(whole) } else { Step::Unpack { frame: whole } })
}

fn judge_tensor(known: &Known, at_peer: &HashSet<WeightId>, whole: usize, bytes: &[u8]) -> Option<Step> {
    let data = (whole - HEAD_BYTES - SET_TENSOR_HEAD_BYTES) as u64;
    let tensor = SetTensor::of(front(bytes)?);
    if tensor.offset != 0 || !(REFERENCE_DATA_MIN..=REFERENCE_DATA_MAX).contains(&data) {
        return None;
    }
    let weights: Vec<_> = known.by_name(tensor.name, data).filter(|id| at_peer.contains(id)).collect();
    if weights.is_empty() {
        return None;
    }
    Some(if bytes.len() < whole { Step::Need(whole) } else { Step::Check { frame: whole, weights } })
}

fn judge_hash(known: &Known, at_peer: &HashSet<WeightId>, whole: usize, bytes: &[u8]) -> Option<Step> {
    let payload: &[u8; HASH_BYTES] = bytes.get(HEAD_BYTES..)?.first_chunk()?;
    let hash = SetTensorHash::of(payload);
    let (id, weight_bytes) = known.by_fnv(hash.fnv, hash.name).filter(|(id, _)| at_peer.contains(id))?;
    Some(Step::Answer { frame: whole, reference: reference(&hash.set_tensor_head(), id), weight_bytes })
}

/// The frame that stands in for a checked SET_TENSOR. `None` when the bytes are none.
pub(crate) fn reference_of(bytes: &[u8], weight: WeightId) -> Option<Vec<u8>> {
    let mut head = *front(bytes)?;
    // The peer has these bytes in a file: its server need not keep them in another.
    head[SET_TENSOR_HEAD_BYTES - 9] = 0;
    Some(reference(&head, weight))
}

/// What stands in front of a weight's bytes on the way to the rpc-server, from the frame of a reference.
pub(crate) fn injected(reference: &[u8], weight_bytes: u64) -> Option<Vec<u8>> {
    let bytes = weight_bytes.checked_add(SET_TENSOR_HEAD_BYTES as u64)?;
    let mut frame = Head { command: SET_TENSOR, bytes }.to_bytes().to_vec();
    frame.extend_from_slice(front(reference)?);
    Some(frame)
}
