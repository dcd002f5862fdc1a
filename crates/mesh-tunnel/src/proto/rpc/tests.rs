//! Both directions: split anywhere they come to the same as whole, and hostile bytes are bounded.

use std::collections::HashSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::command::{HELLO, Head};
use super::drive::{codec, drive, drive_replies};
use super::tensor::{HASH_BYTES, TENSOR_BYTES, named};
use super::*;
use crate::weights::Known;
use crate::{Fnv, Weight, WeightId};

const STOCK: Version = Version { major: 7, minor: 0, patch: 0 };

fn frame(command: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Head { command, bytes: payload.len() as u64 }.to_bytes().to_vec();
    frame.extend_from_slice(payload);
    frame
}

fn hello() -> Vec<u8> {
    frame(HELLO, &[9; 24])
}

fn set_tensor(name: &str, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut payload = named(name).to_vec();
    payload.push(1);
    payload.extend_from_slice(&offset.to_le_bytes());
    payload.extend_from_slice(data);
    frame(6, &payload)
}

fn hash_of(name: &str, data: &[u8]) -> Vec<u8> {
    let mut fnv = Fnv::default();
    fnv.update(data);
    let mut payload = named(name).to_vec();
    payload.extend_from_slice(&0u64.to_le_bytes());
    payload.extend_from_slice(&fnv.finish().to_le_bytes());
    assert_eq!(payload.len(), HASH_BYTES);
    frame(7, &payload)
}

fn weight(name: &str, data: &[u8]) -> Weight {
    let mut fnv = Fnv::default();
    fnv.update(data);
    let id = WeightId(*blake3::hash(data).as_bytes());
    Weight { id, fnv: fnv.finish(), bytes: data.len() as u64, name: name.into() }
}

/// An entry whose weights are all at the peer, but for `missing`.
fn entry(weights: &[Weight], missing: &[&str]) -> Side {
    let known = Arc::new(Known::of(weights));
    let there = weights.iter().filter(|weight| !missing.contains(&weight.name.as_str()));
    Side::Entry { known, at_peer: Arc::new(there.map(|weight| weight.id).collect()) }
}

#[test]
fn what_concerns_nobody_passes_unchanged_but_for_capabilities() {
    let input: Vec<u8> =
        [hello(), frame(15, &[]), frame(0, &[7; 12]), frame(200, b"new"), frame(10, &[1; 100_000])].concat();
    let out = drive(Side::Exit { counts: true }, &input, &[1000]);
    assert_eq!((out.fault, out.frames, out.asked), (None, 5, 3));
    assert_eq!((out.allocated, out.as_sent), (vec![(3, 0x0707_0707_0707_0707)], input.len()));
    assert_eq!(out.bytes[HEAD_BYTES..HEAD_BYTES + 24], [0; 24], "no offer to leave TCP");
    assert_eq!(out.bytes[33..], input[33..]);
}

#[test]
fn weights_at_the_peer_go_by_reference_and_the_rest_is_sent() {
    let (there, missing) = (vec![5; 5000], vec![6; 5000]);
    let weights = [weight("a", &there), weight("b", &missing), weight("big", &[7; 9])];
    let other = vec![8; 5000];
    let sent = [
        set_tensor("b", 0, &missing),
        set_tensor("a", 0, &other),
        set_tensor("x", 0, &there),
        set_tensor("a", 1, &there),
    ];
    let input =
        [hello(), set_tensor("a", 0, &there), sent.concat(), hash_of("big", &[7; 9]), hash_of("b", &missing)]
            .concat();
    let out = drive(entry(&weights, &["b"]), &input, &[4096]);
    let mut uncached: [u8; SET_TENSOR_HEAD_BYTES] =
        set_tensor("a", 0, &[])[HEAD_BYTES..].try_into().expect("a head");
    uncached[TENSOR_BYTES] = 0;
    let reference = own::reference(&uncached, weights[0].id);
    let big = set_tensor("big", 0, &[]);
    let mut big: [u8; SET_TENSOR_HEAD_BYTES] = big[HEAD_BYTES..].try_into().expect("a head");
    big[TENSOR_BYTES] = 0;
    let expected = [
        frame(HELLO, &[0; 24]),
        reference,
        sent.concat(),
        own::reference(&big, weights[2].id),
        hash_of("b", &missing),
    ]
    .concat();
    assert!(out.bytes == expected, "{} bytes of {}", out.bytes.len(), expected.len());
    assert_eq!((out.fault, out.answers, out.frames), (None, 1, 8));
    assert_eq!(out.asked, 2, "HELLO and the hash that was passed on");
}

#[test]
fn nothing_goes_by_reference_after_an_unknown_command() {
    let data = vec![5; 5000];
    let input = [hello(), frame(99, &[]), hash_of("a", &data), set_tensor("a", 0, &data)].concat();
    let out = drive(entry(&[weight("a", &data)], &[]), &input, &[usize::MAX]);
    assert_eq!(out.bytes[33..], input[33..], "it may have a reply, so none of our own finds its place");
}

#[test]
fn frames_that_must_not_pass_do_not_and_what_came_before_does() {
    let reference = own::reference(&[0; SET_TENSOR_HEAD_BYTES], WeightId([1; 32]));
    let far = frame(18, &[b'x'; 132]);
    let register = register_peer(18, 1, 9);
    let cases = [
        (false, reference, "command 224 is the tunnel's own"),
        (false, frame(0xff, &[]), "command 255 is the tunnel's own"),
        (true, frame(0xff, &[]), "command 255 is the tunnel's own"),
        (true, frame(0xE0, &[]), "a malformed frame"),
        (true, frame(0xE1, &[0; 300]), "a malformed frame"),
        (true, frame(0xE1, &[0; 50]), "a malformed frame"),
        (false, far, "a peer is registered at a port that is no tunnel"),
        (true, register, "a peer is registered at a port that is no tunnel"),
        (false, hello(), "a second HELLO"),
        (true, frame(0, &[]), "a frame ALLOC_BUFFER (0) of 0 bytes, at most 12"),
        (
            false,
            Head { command: 6, bytes: u64::MAX }.to_bytes().to_vec(),
            "a frame SET_TENSOR (6) of 18446744073709551615",
        ),
        (
            true,
            Head { command: 77, bytes: 1 << 40 }.to_bytes().to_vec(),
            "a frame unknown (77) of 1099511627776",
        ),
    ];
    for (exit, bad, words) in cases {
        let side = if exit { Side::Exit { counts: true } } else { entry(&[], &[]) };
        let input = [hello(), frame(15, &[]), bad, frame(15, &[])].concat();
        let out = drive(side, &input, &[3]);
        assert!(
            out.fault.as_deref().is_some_and(|fault| fault.starts_with(words)),
            "{words}: {:?}",
            out.fault
        );
        assert_eq!(out.bytes.len(), 33 + 9, "{words}");
    }
    for first in [frame(15, &[]), b"GET / HTTP/1.1\r\n".to_vec()] {
        let out = drive(Side::Exit { counts: true }, &first, &[usize::MAX]);
        assert!(out.fault.is_some_and(|fault| fault.ends_with("not HELLO")) && out.bytes.is_empty());
    }
    let long = Head { command: HELLO, bytes: 65 }.to_bytes();
    assert!(
        drive(Side::Exit { counts: true }, &long, &[9])
            .fault
            .is_some_and(|fault| fault.starts_with("a frame HELLO"))
    );
}

#[test]
fn what_is_packed_comes_out_as_it_went_in() {
    let frames =
        [frame(15, &[]), set_tensor("x", 0, &[0; 3000]), frame(10, &[3; 90_000]), frame(4, &[9; 8])].concat();
    let packed = pack(&frames).expect("shorter");
    let input = [hello(), packed.clone(), frame(15, &[]), packed.clone()].concat();
    for portions in [&[usize::MAX][..], &[1], &[700, 30]] {
        let out = drive(Side::Exit { counts: true }, &input, portions);
        assert_eq!((out.fault, out.frames, out.freed), (None, 10, vec![0x0909_0909_0909_0909; 2]));
        let expected = [frame(HELLO, &[0; 24]), frames.clone(), frame(15, &[]), frames.clone()].concat();
        assert!(out.bytes == expected);
        assert_eq!(out.as_sent, 33 + 9, "the rest came packed");
    }
    // Nothing is packed twice, and nothing by a llama-server.
    let twice = pack(&[packed.clone(), frames.clone()].concat()).expect("shorter");
    let fault = drive(Side::Exit { counts: true }, &[hello(), twice].concat(), &[usize::MAX]).fault;
    assert_eq!(fault.as_deref(), Some("command 226 is the tunnel's own and none of an rpc-server's"));
    let fault = drive(entry(&[], &[]), &[hello(), packed].concat(), &[usize::MAX]).fault;
    assert_eq!(fault.as_deref(), Some("command 226 is the tunnel's own and none of an rpc-server's"));
}

#[test]
fn a_graph_is_held_to_be_packed_and_a_tensor_is_not() {
    let graph = frame(10, &[0; 200_000]);
    for (long, held) in [(graph, true), (set_tensor("x", 0, &[0; 200_000]), false)] {
        let mut core = Requests::new(Policy::default(), entry(&[], &[]));
        let mut bytes = [hello(), long[..100_000].to_vec()].concat();
        assert_eq!(core.step(&mut bytes).expect("passes"), Step::Hello(33));
        core.learn(STOCK);
        let step = core.step(&mut bytes[33..]).expect("passes");
        assert_eq!(step, if held { Step::Need(200_009) } else { Step::Pass(100_000) });
        assert!(held || core.run == Run::Part);
    }
}

#[test]
fn only_frames_that_nobody_waits_for_are_quiet() {
    let run = |frames: &[Vec<u8>]| {
        let mut core = Requests::new(Policy::default(), entry(&[], &[]));
        core.step(&mut hello()).expect("passes");
        core.learn(STOCK);
        let mut bytes = frames.concat();
        assert_eq!(core.step(&mut bytes).expect("passes"), Step::Pass(bytes.len()));
        core.run
    };
    let tensor = set_tensor("x", 0, &[1; 100]);
    assert_eq!(
        run(&[tensor.clone(), frame(12, &[0; 296]), frame(17, &[0; 313]), frame(5, &[0; 9])]),
        Run::Quiet
    );
    for waited_for in [frame(16, &[0; 4]), frame(10, &[0; 12]), frame(1, &[0; 4]), frame(99, &[])] {
        assert_eq!(run(&[tensor.clone(), waited_for, tensor.clone()]), Run::Whole);
    }
}

/// Replies that leave when bytes come in such portions, and the version.
fn replies(
    input: &[u8],
    portions: &[usize],
    asked: Option<u64>,
) -> (Vec<u8>, Option<Version>, Option<String>, u64) {
    let out = drive_replies(input, portions, asked, None);
    (out.bytes, out.version, out.fault, out.begun)
}

fn reply(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u64).to_le_bytes()[..], payload].concat()
}

#[test]
fn the_replys_version_is_read_and_its_capabilities_are_cleared() {
    let input = [reply(&[7, 0, 2, 0, 9, 9, 9]), reply(&[]), reply(&[3; 70_000])].concat();
    let (out, version, fault, begun) = replies(&input, &[5], Some(3));
    assert_eq!((version, fault, begun), (Some(Version { major: 7, minor: 0, patch: 2 }), None, 3));
    assert_eq!(out[8..15], [7, 0, 2, 0, 0, 0, 0]);
    assert_eq!(out[15..], input[15..]);
    assert_eq!(replies(&reply(&[3, 7, 0]), &[1], None).1, Some(Version { major: 3, minor: 7, patch: 0 }));
    assert_eq!(replies(&reply(&[]), &[1], None).1, Some(Version { major: 0, minor: 0, patch: 0 }));
}

#[test]
fn the_awaited_reply_is_found_among_the_others() {
    let input = [reply(&[7, 0, 0]), reply(&[1; 70_000]), reply(&[]), reply(&[4; 16]), reply(&[5])].concat();
    for portions in [&[usize::MAX][..], &[1], &[5000, 7]] {
        for (awaited, payload) in [(3, vec![]), (4, vec![4; 16]), (5, vec![5])] {
            let out = drive_replies(&input, portions, Some(5), Some(awaited));
            assert_eq!(
                (out.bytes.len(), out.fault, out.begun, out.awaited),
                (input.len(), None, 5, vec![payload])
            );
        }
    }
    let out = drive_replies(&input, &[usize::MAX], Some(5), Some(9));
    assert_eq!((out.begun, out.awaited.len()), (5, 0));
}

#[test]
fn a_reply_that_nothing_asked_for_or_without_bound_is_a_fault() {
    let input = [reply(&[7, 0, 0]), reply(&[1]), reply(&[2])].concat();
    assert_eq!(replies(&input, &[1], Some(2)).2.as_deref(), Some("a reply that nothing asked for"));
    for (input, words) in [
        (
            [reply(&[7, 0, 0]), u64::MAX.to_le_bytes().to_vec()].concat(),
            "a frame reply (0) of 18446744073709551615",
        ),
        (reply(&[7; 65]), "a frame reply (0) of 65"),
    ] {
        let fault = replies(&input, &[1], None).2.expect("a fault");
        assert!(fault.starts_with(words), "{fault}");
    }
}

fn a_frame() -> impl Strategy<Value = Vec<u8>> {
    let names = prop::sample::select(vec!["a", "b", "x"]);
    prop_oneof![
        Just(frame(15, &[])),
        Just(frame(11, &[0; 4])),
        Just(frame(0, &[3; 12])),
        Just(frame(4, &[3; 8])),
        Just(pack(&[frame(11, &[0; 4]), set_tensor("a", 0, &[5; 2000])].concat()).expect("shorter")),
        Just(register_peer(18, 5, 1234)),
        Just(own::reference(&[3; SET_TENSOR_HEAD_BYTES], WeightId([4; 32]))),
        (0..300usize).prop_map(|bytes| frame(99, &vec![1; bytes])),
        (0..200_000usize).prop_map(|bytes| frame(10, &vec![2; bytes.max(12)])),
        (names.clone(), 0..2u64, prop::sample::select(vec![0u8, 5, 6]), 0..3000usize)
            .prop_map(|(name, offset, byte, bytes)| set_tensor(name, offset, &vec![byte; bytes + 1000])),
        (names, prop::sample::select(vec![5u8, 6])).prop_map(|(name, byte)| hash_of(name, &vec![byte; 2000])),
    ]
}

proptest! {
    #[test]
    fn requests_split_anywhere_come_to_the_same_as_whole(
        frames in prop::collection::vec(a_frame(), 0..8),
        portions in prop::collection::vec(1..5000usize, 1..6),
        exit in any::<bool>(),
        cut in 0..40usize,
    ) {
        let weights = [weight("a", &[5; 2000]), weight("b", &[6; 2000])];
        let side = || if exit { Side::Exit { counts: true } } else { entry(&weights, &["b"]) };
        let mut input = [hello(), frames.concat()].concat();
        input.truncate(input.len() - cut.min(input.len()));
        let whole = drive(side(), &input, &[usize::MAX]);
        prop_assert_eq!(&drive(side(), &input, &portions), &whole);
        if input.len() < 5000 {
            prop_assert_eq!(&drive(side(), &input, &[1]), &whole);
        }
    }

    #[test]
    fn arbitrary_requests_never_panic_and_are_never_held_beyond_bounds(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        greeted in any::<bool>(),
        exit in any::<bool>(),
    ) {
        let side = if exit { Side::Exit { counts: true } } else { entry(&[weight("", &[0; 2000])], &[]) };
        let input = if greeted { [hello(), bytes].concat() } else { bytes };
        drive(side, &input, &[7]);
    }

    /// What the fuzz target does with bytes that it finds, here with some of every kind of frame.
    #[test]
    fn whatever_is_sent_comes_to_the_same_in_any_portions(
        kind in any::<u8>(),
        frames in prop::collection::vec(
            prop_oneof![a_frame(), prop::collection::vec(any::<u8>(), 0..40), (any::<u8>(), 0..400usize)
                .prop_map(|(command, bytes)| frame(command, &vec![command; bytes]))],
            0..6,
        ),
    ) {
        codec(&[&[kind][..], &frames.concat()].concat());
    }

    #[test]
    fn replies_split_anywhere_come_to_the_same_as_whole(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6),
        long in 0..150_000usize,
        portions in prop::collection::vec(1..5000usize, 1..6),
        asked in prop::option::of(0..8u64),
    ) {
        let frames: Vec<u8> = frames.iter().flat_map(|payload| reply(payload)).collect();
        let input = [reply(&[7, 0, 0, 1]), frames, reply(&vec![1; long])].concat();
        prop_assert_eq!(replies(&input, &portions, asked), replies(&input, &[usize::MAX], asked));
    }

    #[test]
    fn arbitrary_replies_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        replies(&bytes, &[3], None);
        replies(&bytes, &[3], Some(2));
    }
}

#[test]
fn an_entry_without_weights_holds_no_tensor() {
    let input = [hello(), Head { command: 6, bytes: 1 << 20 }.to_bytes().to_vec(), vec![0; 400]].concat();
    let out = drive(Side::Entry { known: Arc::default(), at_peer: Arc::new(HashSet::new()) }, &input, &[50]);
    assert_eq!(out.bytes.len(), input.len(), "bytes go on as they come");
}
