//! Drives the codec by bytes alone, as the drivers do by sockets; for tests and fuzzing.

use std::collections::HashSet;
use std::sync::Arc;

use super::command::{HELLO, Head};
use super::*;
use crate::WeightId;

/// What leaves an end of the tunnel when bytes come in such portions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Out {
    pub(super) bytes: Vec<u8>,
    pub(super) answers: usize,
    pub(super) fault: Option<String>,
    pub(super) frames: u64,
    pub(super) asked: u64,
    /// By the number of the reply.
    pub(super) allocated: Vec<(u64, u64)>,
    pub(super) freed: Vec<u64>,
    /// Bytes that came as they went.
    pub(super) as_sent: usize,
}

/// Drives the core as the drivers do, with `portions` cut off the input one after another, over and over.
pub(super) fn drive(side: Side, input: &[u8], portions: &[usize]) -> Out {
    let mut core = Requests::new(Policy { frame_bytes_max: 1 << 20, unknown_commands: true }, side);
    let (mut out, mut at_hand, mut rest) = (Out::default(), Vec::new(), input);
    let mut portions = portions.iter().cycle();
    loop {
        let held = at_hand.len();
        let step = match core.step(&mut at_hand) {
            Ok(step) => step,
            Err(fault) => {
                out.fault = Some(fault.to_string());
                break;
            }
        };
        let taken = match step {
            Step::Need(needed) => {
                assert!(needed > held, "asks for what it has");
                assert!(needed <= (17 << 20), "holds at most a tensor that it would replace");
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at(rest.len().min(*portions.next().expect("cycles")));
                at_hand.extend_from_slice(now);
                rest = later;
                continue;
            }
            Step::Pass(bytes) => {
                out.bytes.extend_from_slice(&at_hand[..bytes]);
                bytes
            }
            Step::Hello(bytes) => {
                out.bytes.extend_from_slice(&at_hand[..bytes]);
                core.learn(Version { major: 7, minor: 0, patch: 0 });
                bytes
            }
            Step::Answer { frame, reference, .. } => {
                out.bytes.extend(reference);
                out.answers += 1;
                core.replaced();
                frame
            }
            Step::Check { frame, weights } => {
                let data = &at_hand[HEAD_BYTES + SET_TENSOR_HEAD_BYTES..frame];
                let id = WeightId(*blake3::hash(data).as_bytes());
                if !weights.contains(&id) {
                    core.pass_frame(&at_hand);
                    continue;
                }
                out.bytes.extend(reference_of(&at_hand, id).expect("a tensor"));
                core.replaced();
                frame
            }
            Step::Register { frame, command, peer_id, port } => {
                out.bytes.extend(register_peer(command, peer_id, port ^ 1));
                core.replaced();
                frame
            }
            Step::Inject { frame, weight } => {
                out.bytes.extend(injected(&at_hand[..frame], 3).expect("a reference"));
                out.bytes.extend_from_slice(&weight.0[..3]);
                core.replaced();
                frame
            }
            Step::RegisterAt { frame, at } => {
                out.bytes.extend(register_peer(at.command, at.peer_id, 1));
                core.replaced();
                frame
            }
            Step::Allocate { bytes, .. } => {
                core.pass_frame(&at_hand);
                out.allocated.push((core.asked, bytes));
                continue;
            }
            Step::Free { pointer } => {
                core.pass_frame(&at_hand);
                out.freed.push(pointer);
                continue;
            }
            Step::Unpack { frame } => {
                let frames = unpack(&at_hand[HEAD_BYTES..frame]);
                let Ok(frames) = frames else {
                    out.fault = frames.err().map(|fault| fault.to_string());
                    break;
                };
                core.unpacked(frames.len());
                at_hand.splice(..frame, frames);
                continue;
            }
        };
        out.as_sent += core.taken(taken);
        at_hand.drain(..taken);
    }
    (out.frames, out.asked) = (core.frames, core.asked);
    out
}

/// What becomes of replies that come in such portions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RepliesOut {
    pub(super) bytes: Vec<u8>,
    pub(super) version: Option<Version>,
    pub(super) fault: Option<String>,
    pub(super) begun: u64,
    /// The one that was awaited.
    pub(super) awaited: Vec<Vec<u8>>,
}

pub(super) fn drive_replies(
    input: &[u8],
    portions: &[usize],
    asked: Option<u64>,
    awaited: Option<u64>,
) -> RepliesOut {
    let mut core = Replies::new(1 << 20);
    let (mut out, mut at_hand, mut rest) = (RepliesOut::default(), Vec::new(), input);
    let mut portions = portions.iter().cycle();
    loop {
        let step = core.step(&mut at_hand, asked, awaited);
        out.begun = core.begun;
        let passes = match step {
            Err(fault) => {
                out.fault = Some(fault.to_string());
                return out;
            }
            Ok(ReplyStep::Need(needed)) => {
                assert!(
                    needed > at_hand.len() && needed <= 64 << 10,
                    "asks for what it has, or for too much"
                );
                if rest.is_empty() {
                    return out;
                }
                let (now, later) = rest.split_at(rest.len().min(*portions.next().expect("cycles")));
                at_hand.extend_from_slice(now);
                rest = later;
                continue;
            }
            Ok(ReplyStep::Pass(bytes)) => bytes,
            Ok(ReplyStep::Awaited(bytes)) => {
                out.awaited.push(reply_payload(&at_hand[..bytes]).to_vec());
                bytes
            }
            Ok(ReplyStep::Hello(bytes, said)) => {
                out.version = Some(said);
                bytes
            }
        };
        out.bytes.extend(at_hand.drain(..passes));
    }
}

/// Arbitrary bytes as what a llama-server, a host, and an rpc-server send: the first byte says as what, and in which portions
/// they come. Whatever they are, they come to the same as whole, and no end asks for what it has, or holds without bound.
///
/// # Panics
/// When they do not.
pub fn codec(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let portions = [1 + usize::from(kind >> 3), 1 + 7 * usize::from(*kind)];
    let hello = [&Head { command: HELLO, bytes: 24 }.to_bytes()[..], &[0; 24]].concat();
    let greeted = [&hello, bytes].concat();
    let side = |exit: bool| {
        if exit {
            return Side::Exit { counts: kind & 2 > 0 };
        }
        Side::Entry { known: Arc::default(), at_peer: Arc::new(HashSet::new()) }
    };
    for exit in [false, true] {
        let input = if kind & 1 > 0 { &greeted[..] } else { bytes };
        assert_eq!(drive(side(exit), input, &portions), drive(side(exit), input, &[usize::MAX]));
    }
    let asked = (kind & 4 > 0).then_some(3);
    let replies = |portions: &[usize]| drive_replies(bytes, portions, asked, Some(2));
    assert_eq!(replies(&portions), replies(&[usize::MAX]));
    let _ = unpack(bytes);
}
