//! What is believed of a chain, and what is not.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const NOW: UnixTime = UnixTime(1_795_233_906);

fn key(seed: u8) -> NodeKey {
    NodeKey::from_seed([seed; 32])
}

fn agent(seed: u8) -> AgentAt {
    AgentAt { node: key(seed).node_id(), agent: format!("agent-{seed}").parse().expect("an id") }
}

fn scope() -> ScopeId {
    ScopeId::lan(None)
}

fn budget(tokens: u64) -> Budget {
    Budget { tokens: Some(tokens), cost_micros: None, until: Expiry::at(UnixTime(NOW.0 + 600)) }
}

fn hop(from: u8, to: u8, tokens: u64) -> Hop {
    let session = SessionId::from_uuid(Uuid::from_bytes([from; 16]));
    Hop { from: agent(from), session, to: agent(to), budget: budget(tokens) }
}

fn received(chain: SignedChain, from: u8, to: u8) -> Result<Chain, ChainError> {
    let chain = SignedChain::decode(&chain.encode()).expect("its own bytes");
    chain.verify(&scope(), &key(from).node_id(), &key(to).node_id(), NOW)
}

fn one() -> SignedChain {
    SignedChain::begin(&key(1), &scope(), hop(1, 2, 1000)).expect("a chain")
}

fn two() -> SignedChain {
    let at_two = received(one(), 1, 2).expect("sound");
    at_two.extend(&key(2), &scope(), hop(2, 3, 500)).expect("a chain")
}

fn three() -> SignedChain {
    let at_three = received(two(), 2, 3).expect("sound");
    at_three.extend(&key(3), &scope(), hop(3, 4, 500)).expect("a chain")
}

#[test]
fn what_came_unsigned_counts_its_depth_from_what_was_said() {
    let hop = || Hop {
        from: AgentAt { agent: "opus@ct111".parse().expect("an id"), ..agent(1) },
        to: agent(1),
        ..hop(1, 2, 9)
    };
    let written = |before| SignedChain::received(&key(1), &scope(), before, hop());
    let here = received(written(1).expect("a chain"), 1, 1).expect("sound");
    assert_eq!((here.depth(), here.is_at_end()), (2, false));
    let there =
        here.extend(&key(1), &scope(), Hop { from: agent(1), to: agent(2), ..hop() }).expect("a chain");
    let there = received(there, 1, 2).expect("sound");
    assert!(there.is_at_end() && there.waits(&agent(1)));
    assert_eq!(written(3), Err(ChainError::TooDeep { depth: 4 }));
}

#[test]
fn a_chain_grows_to_its_depth_and_no_further() {
    let at_four = received(three(), 3, 4).expect("sound");
    assert_eq!((at_four.depth(), at_four.is_at_end()), (3, true));
    assert_eq!(at_four.at(), &agent(4));
    assert_eq!(at_four.budget().tokens, Some(500));
    assert!(at_four.waits(&agent(1)) && at_four.waits(&agent(3)) && !at_four.waits(&agent(4)));
    let deeper = at_four.extend(&key(4), &scope(), hop(4, 5, 1));
    assert_eq!(deeper, Err(ChainError::TooDeep { depth: 4 }));
}

#[test]
fn a_chain_comes_back_to_nobody_who_waits() {
    let to_itself = SignedChain::begin(&key(1), &scope(), hop(1, 1, 1));
    assert_eq!(to_itself, Err(ChainError::Loop { agent: agent(1).agent }));
    let at_two = received(one(), 1, 2).expect("sound");
    let back = at_two.extend(&key(2), &scope(), hop(2, 1, 1));
    assert_eq!(back, Err(ChainError::Loop { agent: agent(1).agent }));
    // Another agent of the same node is no loop.
    let mut other = hop(2, 1, 1);
    other.to.agent = "another".parse().expect("an id");
    at_two.extend(&key(2), &scope(), other).expect("a chain");
}

#[test]
fn a_budget_never_grows() {
    let at_two = received(one(), 1, 2).expect("sound");
    assert_eq!(at_two.extend(&key(2), &scope(), hop(2, 3, 1001)), Err(ChainError::Widened));
    let mut forever = hop(2, 3, 10);
    forever.budget.until = Expiry::NEVER;
    assert_eq!(at_two.extend(&key(2), &scope(), forever), Err(ChainError::Widened));
    let mut unbounded = hop(2, 3, 10);
    unbounded.budget.tokens = None;
    assert_eq!(at_two.extend(&key(2), &scope(), unbounded), Err(ChainError::Widened));
    assert!(budget(5).is_within(&Budget::UNBOUNDED) && !Budget::UNBOUNDED.is_within(&budget(5)));
    let less = Budget { cost_micros: Some(7), ..Budget::UNBOUNDED }.min(budget(5));
    assert_eq!(less, Budget { cost_micros: Some(7), ..budget(5) });
}

#[test]
fn a_chain_is_for_one_link_one_scope_and_its_time() {
    assert_eq!(received(two(), 1, 3), Err(ChainError::Misdirected));
    assert_eq!(received(two(), 2, 4), Err(ChainError::Misdirected));
    let elsewhere = ScopeId::lan(Some(b"psk"));
    let (from, me) = (key(2).node_id(), key(3).node_id());
    let foreign = two().verify(&elsewhere, &from, &me, NOW);
    assert_eq!(foreign, Err(ChainError::BadSignature { hop: 1 }));
    let late = two().verify(&scope(), &from, &me, UnixTime(NOW.0 + 700));
    assert_eq!(late, Err(ChainError::Expired { at: UnixTime(NOW.0 + 600) }));
}

#[test]
fn a_session_that_has_moved_delegates_as_deep_as_it_is() {
    let at_three = received(two(), 2, 3).expect("sound");
    let from = AgentAt { node: key(5).node_id(), ..agent(3) };
    let moved = |to, tokens| Hop { from: from.clone(), ..hop(3, to, tokens) };
    let onward = at_three.extend(&key(5), &scope(), moved(4, 500)).expect("a chain");
    let at_four = received(onward, 5, 4).expect("sound");
    assert_eq!((at_four.depth(), at_four.hops().count()), (3, 1));
    assert_eq!(at_three.extend(&key(5), &scope(), moved(4, 501)), Err(ChainError::Widened));
    let back = at_three.extend(&key(5), &scope(), moved(1, 1));
    assert_eq!(back, Err(ChainError::Loop { agent: agent(1).agent }));
    let other = Hop { from: agent(5), ..hop(3, 4, 500) };
    assert_eq!(at_three.extend(&key(5), &scope(), other), Err(ChainError::Broken));
    assert!(two().is_signed(&scope()) && !two().is_signed(&ScopeId::lan(Some(b"psk"))));
}

#[test]
fn another_scope_sees_the_depth_and_not_the_nodes() {
    let elsewhere = ScopeId::lan(Some(b"psk"));
    let at_three = received(two(), 2, 3).expect("sound");
    let onward = at_three.extend(&key(3), &elsewhere, hop(3, 4, 500)).expect("a chain");
    let at_four = onward.verify(&elsewhere, &key(3).node_id(), &key(4).node_id(), NOW).expect("sound");
    assert_eq!(at_four.depth(), 3);
    assert_eq!(at_four.hops().count(), 1);
    let back = at_three.extend(&key(3), &elsewhere, hop(3, 1, 1));
    assert_eq!(back, Err(ChainError::Loop { agent: agent(1).agent }));
    let more = at_three.extend(&key(3), &elsewhere, hop(3, 4, 501));
    assert_eq!(more, Err(ChainError::Widened));
}

#[test]
fn nobody_changes_what_another_signed() {
    let is_refused = |change: &dyn Fn(&mut SignedChain)| {
        let mut chain = three();
        change(&mut chain);
        received(chain, 3, 4).expect_err("a change")
    };
    let at = ChainError::BadSignature { hop: 1 };
    assert_eq!(is_refused(&|chain| chain.hops[0].hop.budget.tokens = Some(900)), at);
    assert_eq!(is_refused(&|chain| chain.hops[0].hop.session = SessionId::from_uuid(Uuid::nil())), at);
    assert_eq!(is_refused(&|chain| chain.before = 1), ChainError::TooDeep { depth: 4 });
    // Hops left out in front make it look less deep.
    let shorter = is_refused(&|chain| drop(chain.hops.remove(0)));
    assert_eq!(shorter, ChainError::BadSignature { hop: 1 });
    let middle = is_refused(&|chain| drop(chain.hops.remove(1)));
    assert_eq!(middle, ChainError::Broken);
    let swapped = is_refused(&|chain| chain.hops[1].signature = chain.hops[0].signature);
    assert_eq!(swapped, ChainError::BadSignature { hop: 2 });
    assert_eq!(is_refused(&|chain| chain.hops.clear()), ChainError::Broken);
    let not_mine = SignedChain::begin(&key(9), &scope(), hop(1, 2, 1));
    assert_eq!(not_mine, Err(ChainError::Broken));
}

#[test]
fn the_encoding_keeps_its_bytes() {
    let bytes = three().encode();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, include_str!("golden.txt").trim());
}

#[test]
fn the_longest_chain_fits() {
    let long =
        |seed: u8| AgentAt { node: key(seed).node_id(), agent: "x".repeat(127).parse().expect("an id") };
    let most = Budget { tokens: Some(u64::MAX), cost_micros: Some(u64::MAX), until: Expiry::NEVER };
    let hop = |from, to| Hop { from: long(from), to: long(to), budget: most, ..hop(from, to, 0) };
    let mut chain = SignedChain::begin(&key(1), &scope(), hop(1, 2)).expect("a chain");
    for (from, to) in [(2, 3), (3, 4)] {
        let here = received(chain, from - 1, from).expect("sound");
        chain = here.extend(&key(from), &scope(), hop(from, to)).expect("a chain");
    }
    assert!(chain.encode().len() <= CHAIN_BYTES_MAX, "{}", chain.encode().len());
    let text = chain.to_string();
    assert_eq!(text.parse::<SignedChain>().expect("its own text"), chain);
}

#[test]
fn another_encoding_of_a_chain_is_refused() {
    let bytes = three().encode();
    assert_eq!(SignedChain::decode(&[bytes.as_slice(), &[0]].concat()), Err(InvalidChain));
    assert_eq!(SignedChain::decode(&bytes[..bytes.len() - 1]), Err(InvalidChain));
    let mut other = bytes.clone();
    other[0] = 2;
    assert_eq!(SignedChain::decode(&other), Err(InvalidChain));
    // The number of hops in two bytes instead of one.
    assert_eq!(bytes[2], 3);
    let padded = [&bytes[..2], &[0x83, 0x00], &bytes[3..]].concat();
    assert_eq!(SignedChain::decode(&padded), Err(InvalidChain));
    assert_eq!(SignedChain::decode(&[1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]), Err(InvalidChain));
    assert_eq!("no base64!".parse::<SignedChain>(), Err(InvalidChain));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = SignedChain::decode(&bytes);
    }

    #[test]
    fn a_changed_byte_is_never_believed(at in 0..700usize, flip in 1..=255u8) {
        let mut bytes = three().encode();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        if let Ok(chain) = SignedChain::decode(&bytes) {
            let believed = chain.verify(&scope(), &key(3).node_id(), &key(4).node_id(), NOW);
            prop_assert!(believed.is_err());
        }
    }
}
