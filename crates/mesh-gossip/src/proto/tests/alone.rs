//! One core alone: what it makes of inputs and frames, and how records merge.

use super::*;

pub(super) struct Lone {
    pub(super) core: Membership<Double>,
    pub(super) now: Instant,
}

pub(super) fn key(number: u8) -> NodeKey {
    NodeKey::from_seed([number; 32])
}

impl Lone {
    pub(super) fn new(number: u8) -> Self {
        Self::at(number, 1_800_000_000)
    }

    fn at(number: u8, started: u64) -> Self {
        let id = key(number).node_id();
        let me = Me {
            id,
            grant: Double::grant(Role::Member, &format!("node{number}")),
            addr: NodeAddr::default(),
            started: UnixTime(started),
        };
        let now = Instant::now();
        let core = Membership::new(me, Config::default(), Double::new(id), [number; 32], now).unwrap();
        Self { core, now }
    }

    pub(super) fn input(&mut self, input: Input) -> Vec<Output> {
        self.core.handle(input, self.now).unwrap();
        std::iter::from_fn(|| self.core.poll_output()).collect()
    }

    pub(super) fn frame(&mut self, from: NodeId, message: &Message) -> Vec<Output> {
        self.input(Input::Frame { from, role: Role::Member, frame: message.encode() })
    }

    fn set(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), SetError> {
        let value = value.map(Bytes::copy_from_slice);
        let set = Command::Set { id: 1, key: key.into(), value, audience: Audience::Members };
        let outputs = self.input(Input::Command(set));
        let [Output::Reply { id: 1, result }] = outputs.as_slice() else { panic!("{outputs:?}") };
        *result
    }

    /// Its own record as it would send it.
    pub(super) fn own(&mut self) -> NodeRecord {
        let peer = key(200).node_id();
        let outputs = self.input(Input::LinkUp { peer, role: Role::Member });
        self.input(Input::LinkDown { peer, why: crate::proto::LinkLoss::Lost });
        let records = outputs.iter().filter_map(|output| match output {
            Output::Send { frame, .. } => match Message::decode(frame).unwrap() {
                Some(Message::Records { records }) => Some(records),
                _ => None,
            },
            _ => None,
        });
        records.flatten().next().unwrap()
    }
}

#[test]
fn bounds_of_values_are_told_and_change_nothing() {
    let mut node = Lone::new(1);
    assert_eq!(node.set("", Some(b"x")), Err(SetError::BadKey));
    assert_eq!(node.set(&"k".repeat(65), Some(b"x")), Err(SetError::BadKey));
    assert_eq!(node.set("k", Some(&[0; 4097])), Err(SetError::ValueTooLarge));
    for index in 0..8 {
        assert_eq!(node.set(&format!("k{index}"), Some(&[0; 4096])), Ok(()));
    }
    assert_eq!(node.set("more", Some(b"x")), Err(SetError::RecordFull));
    for index in 0..8 {
        assert_eq!(node.set(&format!("k{index}"), None), Ok(()));
    }
    for index in 0..56 {
        assert_eq!(node.set(&format!("other{index}"), Some(b"x")), Ok(()));
    }
    assert_eq!(node.set("one more", Some(b"x")), Err(SetError::TooManyKeys));
    assert_eq!(node.core.members().me().unwrap().values.len(), 56);
}

#[test]
fn forged_and_foreign_records_are_refused_and_counted() {
    let mut node = Lone::new(1);
    let mut other = Lone::new(2);
    other.set("k", Some(b"true")).unwrap();
    let from = key(3).node_id();
    let good = other.own();
    let mut forged_value = good.clone();
    forged_value.entries[0].value = Some(b"false".to_vec());
    let mut forged_card = good.clone();
    forged_card.card.course = Course::Left;
    let mut stolen = good.clone();
    stolen.id = *key(4).node_id().as_bytes();
    for bad in [forged_value, forged_card, stolen] {
        let outputs = node.frame(from, &Message::Records { records: vec![bad] });
        assert!(matches!(outputs.as_slice(), [Output::Refused { .. }]), "{outputs:?}");
    }
    node.frame(from, &Message::Records { records: vec![good] });
    node.input(Input::LinkUp { peer: other.core.me, role: Role::Member });
    assert_eq!(node.core.members().get(&other.core.me).unwrap().value("k").unwrap(), &b"true"[..]);
}

#[test]
fn a_word_about_somebody_else_is_not_believed() {
    let (mut node, mut other) = (Lone::new(1), Lone::new(2));
    let (peer, liar) = (other.core.me, key(3).node_id());
    node.input(Input::LinkUp { peer, role: Role::Member });
    node.frame(peer, &Message::Records { records: vec![other.own()] });
    let incarnation = node.core.members().get(&peer).unwrap().incarnation;
    node.input(Input::LinkUp { peer: liar, role: Role::Member });
    node.frame(liar, &Message::Accused { incarnation: incarnation.as_u64() });
    assert!(node.core.members().get(&peer).unwrap().is_alive());
}

#[test]
fn refutes_an_accusation_once_with_a_higher_incarnation() {
    let mut node = Lone::new(1);
    let peer = key(2).node_id();
    let before = node.core.members().me().unwrap().incarnation;
    for claimed in [before.as_u64() + 7, before.as_u64(), before.as_u64(), before.as_u64() + 1] {
        node.frame(peer, &Message::Accused { incarnation: claimed });
    }
    assert_eq!(node.core.members().me().unwrap().incarnation.as_u64(), before.as_u64() + 1);
}

#[test]
fn dials_are_repeated_for_ever_with_growing_waits() {
    let (mut node, mut other) = (Lone::new(1), Lone::new(2));
    let peer = other.core.me;
    node.frame(key(3).node_id(), &Message::Records { records: vec![other.own()] });
    let (mut dials, mut last) = (0, node.now);
    let end = node.now + 600 * SECOND;
    while node.now < end {
        node.now = node.core.next_deadline().unwrap();
        let outputs = node.input(Input::Tick);
        if outputs.contains(&Output::Dial { to: peer }) {
            dials += 1;
            assert!(node.now.duration_since(last) <= 31 * SECOND);
            last = node.now;
            node.input(Input::DialFailed { peer });
        }
    }
    assert!((20..60).contains(&dials), "{dials}");
}

#[test]
fn a_contact_is_dialed_until_its_record_comes() {
    let (mut node, mut other) = (Lone::new(1), Lone::new(2));
    let peer = other.core.me;
    node.input(Input::Command(Command::Contacts(vec![peer, node.core.me])));
    let next_dial = |node: &mut Lone| {
        loop {
            node.now = node.core.next_deadline().unwrap();
            let outputs = node.input(Input::Tick);
            if let Some(Output::Dial { to }) =
                outputs.into_iter().find(|output| matches!(output, Output::Dial { .. }))
            {
                return to;
            }
        }
    };
    for _ in 0..20 {
        assert_eq!(next_dial(&mut node), peer);
        node.input(Input::DialFailed { peer });
    }
    other.input(Input::Command(Command::Leave));
    let left = other.own();
    node.frame(key(3).node_id(), &Message::Records { records: vec![left] });
    let end = node.now + 60 * SECOND;
    while node.now < end {
        node.now = node.core.next_deadline().unwrap();
        assert!(!node.input(Input::Tick).contains(&Output::Dial { to: peer }), "it has left");
    }
    assert!(node.core.dials.is_empty());
}

#[test]
fn a_full_node_makes_room_of_the_unheard_and_the_dead_but_not_of_the_living() {
    let mut node = Lone::new(1);
    node.core.config.nodes_max = 2;
    let from = key(9).node_id();
    let refused = |outputs: &[Output]| outputs.iter().any(|output| matches!(output, Output::Refused { .. }));
    let takes = |node: &mut Lone, number: u8| {
        !refused(&node.frame(from, &Message::Records { records: vec![Lone::new(number).own()] }))
    };
    let knows = |node: &Lone, number: u8| node.core.nodes.contains_key(&key(number).node_id());
    for number in 2..6 {
        assert!(takes(&mut node, number), "nobody says that those before it live");
        node.now += SECOND;
    }
    assert_eq!((node.core.nodes.len(), node.core.dials.len()), (2, 2));
    for number in 4..6 {
        node.input(Input::LinkUp { peer: key(number).node_id(), role: Role::Member });
    }
    assert!(!takes(&mut node, 6), "both are alive");
    node.input(Input::LinkDown { peer: key(4).node_id(), why: crate::proto::LinkLoss::Gone });
    assert!(takes(&mut node, 6));
    assert!(!knows(&node, 4) && knows(&node, 5));
}

#[test]
fn bad_frames_are_the_peers_fault_and_change_nothing() {
    let mut node = Lone::new(1);
    let from = key(2).node_id();
    let frame = |bytes: Vec<u8>| Input::Frame { from, role: Role::Member, frame: Bytes::from(bytes) };
    assert_eq!(node.core.handle(frame(vec![]), node.now), Err(PeerFault::Malformed));
    assert_eq!(node.core.handle(frame(vec![0, 1, 1]), node.now), Err(PeerFault::Malformed));
    assert_eq!(
        node.core.handle(frame(vec![0; limits::FRAME_BYTES_MAX + 1]), node.now),
        Err(PeerFault::TooLong)
    );
    assert!(node.core.poll_output().is_none());
}

#[test]
fn golden_bytes_of_every_message() {
    let signature = Signature([7; 64]).into();
    let card = Card {
        incarnation: 5 << 20,
        version: 3,
        course: Course::Stopped,
        addr: vec![0],
        grant: vec![1, 2],
        signature,
    };
    let entry = Entry { key: "k".into(), version: 2, everyone: true, value: Some(vec![9]), signature };
    let (id, hash) = ([0x11; 32], [0x22; 16]);
    let messages = [
        (Message::Ping { seq: 300 }, "00ac02".into()),
        (Message::Pong { seq: 1 }, "0101".into()),
        (
            Message::Root { records: hash, revocations: [0x33; 16] },
            format!("02{}{}", "22".repeat(16), "33".repeat(16)),
        ),
        (Message::Buckets { sums: vec![hash] }, format!("0301{}", "22".repeat(16))),
        (
            Message::Digest {
                buckets: BucketSet::These(5),
                items: vec![DigestItem { id, incarnation: 1, dead: true, print: hash }],
            },
            format!("04000501{}0101{}", "11".repeat(32), "22".repeat(16)),
        ),
        (Message::Digest { buckets: BucketSet::Named, items: Vec::new() }, "040100".into()),
        (
            Message::Summaries {
                summaries: vec![Summary { id, incarnation: 1, card: 2, keys: vec![("k".into(), 3)] }],
            },
            format!("0501{}010201016b03", "11".repeat(32)),
        ),
        (
            Message::Records { records: vec![NodeRecord { id, alive: true, card, entries: vec![entry] }] },
            format!(
                "0601{0}01 8080c0020301010002 0102{1}01016b02010101 09{1}",
                "11".repeat(32),
                "07".repeat(64)
            ),
        ),
        (Message::Accused { incarnation: 128 }, "078001".into()),
        (
            Message::Revocations { have: vec![hash], whole: vec![vec![4]], answer: true },
            format!("0801{}01010401", "22".repeat(16)),
        ),
        (Message::Ask { subject: id, nonce: 300 }, format!("09{}ac02", "11".repeat(32))),
        (
            Message::Heard { subject: id, nonce: 1, signature },
            format!("0a{}01{}", "11".repeat(32), "07".repeat(64)),
        ),
        (
            Message::Accusations {
                accusations: vec![Accusation {
                    subject: id,
                    incarnation: 1,
                    witness: [0x44; 32],
                    evidence: Evidence::Gone,
                    signature,
                }],
            },
            format!("0b01{}01{}01{}", "11".repeat(32), "44".repeat(32), "07".repeat(64)),
        ),
    ];
    for (message, golden) in messages {
        let bytes = message.encode();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden.replace(' ', ""), "{message:?}");
        assert_eq!(Message::decode(&bytes).unwrap(), Some(message));
    }
}

/// Frames that three nodes sent in two lives each, with changes between.
fn history() -> Vec<NodeRecord> {
    let mut frames = Vec::new();
    for number in 2..5_u8 {
        for started in [1_800_000_000, 1_800_000_100] {
            let mut node = Lone::at(number, started);
            frames.push(node.own());
            for (key, value) in [("a", Some("1")), ("b", Some("2")), ("a", Some("3")), ("b", None)] {
                node.set(key, value.map(str::as_bytes)).unwrap();
                let mut whole = node.own();
                frames.push(whole.clone());
                whole.entries.retain(|entry| entry.key == key);
                frames.push(whole);
            }
            let incarnation = node.core.members().me().unwrap().incarnation;
            node.frame(key(9).node_id(), &Message::Accused { incarnation: incarnation.as_u64() });
            frames.push(node.own());
            if number == 4 {
                node.input(Input::Command(Command::Leave));
                frames.push(node.own());
            }
        }
    }
    frames
}

/// What a core knows after these frames, opinions left out.
fn knowledge(frames: impl IntoIterator<Item = NodeRecord>) -> Vec<Vec<u8>> {
    let mut node = Lone::new(1);
    for frame in frames {
        node.frame(key(9).node_id(), &Message::Records { records: vec![frame] });
    }
    let view = crate::proto::record::View::Member;
    let whole = |record: NodeRecord| Message::Records { records: vec![record] }.encode().to_vec();
    node.core.nodes.values().map(|node| whole(node.record.whole(view, false))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_order_and_repetition_of_frames_ends_in_the_same_records(
        order in Just((0..history().len()).collect::<Vec<_>>()).prop_shuffle(),
        again in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let frames = history();
        let mut shuffled: Vec<_> = order.iter().map(|index| frames[*index].clone()).collect();
        for index in again {
            let frame = index.get(&frames).clone();
            shuffled.insert(index.index(shuffled.len() + 1), frame);
        }
        prop_assert_eq!(knowledge(shuffled), knowledge(frames));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut node = Lone::new(1);
        let from = key(2).node_id();
        node.input(Input::LinkUp { peer: from, role: Role::Member });
        let _ = node.core.handle(Input::Frame { from, role: Role::Member, frame: Bytes::from(bytes) }, node.now);
    }

    #[test]
    fn bent_messages_never_panic(position in any::<prop::sample::Index>(), byte in any::<u8>(), pick in 0..history().len()) {
        let mut node = Lone::new(1);
        let from = key(2).node_id();
        node.input(Input::LinkUp { peer: from, role: Role::Member });
        let mut bytes = Message::Records { records: vec![history()[pick].clone()] }.encode().to_vec();
        let index = position.index(bytes.len());
        bytes[index] = byte;
        let _ = node.core.handle(Input::Frame { from, role: Role::Member, frame: Bytes::from(bytes) }, node.now);
    }

    #[test]
    fn whatever_the_weather_members_agree_in_the_end(seed in any::<u64>(), loss in 0.0..0.3_f64) {
        let mut sim = line(seed, 4, Weather { loss, duplication: 0.1, ..Weather::default() });
        sim.set(1, "k", "first");
        sim.run(3 * SECOND);
        sim.set(1, "k", "second");
        sim.set(2, "gone", "soon");
        sim.run(SECOND);
        let gone = Command::Set { id: 0, key: "gone".into(), value: None, audience: Audience::Members };
        sim.command(2, gone);
        sim.until("agreement", 60 * SECOND, |sim| {
            let first = words(&sim.core(0).members());
            first.len() == 4 && (1..4).all(|index| words(&sim.core(index).members()) == first)
        });
        let id = sim.id(1);
        let members = sim.core(0).members();
        prop_assert_eq!(members.get(&id).unwrap().value("k").unwrap(), &b"second"[..]);
    }
}

#[test]
fn up_events_say_why() {
    let mut sim = line(11, 2, Weather::default());
    sim.until("alive", 5 * SECOND, |sim| alive_everywhere(sim, 2));
    let whys = |events: Vec<Event>| -> BTreeSet<UpWhy> {
        events
            .into_iter()
            .filter_map(|event| match event {
                Event::MemberUp { why, .. } => Some(why),
                _ => None,
            })
            .collect()
    };
    assert_eq!(whys(sim.take_events(0)), [UpWhy::Joined].into());
    sim.cut(&[0], &[1]);
    sim.until("suspect", 3 * SECOND, |sim| sim.state(0, 1) == Some(State::Suspect));
    sim.heal();
    sim.until("alive", 5 * SECOND, |sim| alive_everywhere(sim, 2));
    assert_eq!(whys(sim.take_events(0)), [UpWhy::Recovered].into());
}

#[test]
fn a_changed_network_ends_long_waits_for_a_dial() {
    let mut node = Lone::new(1);
    let peer = key(2).node_id();
    node.input(Input::Command(Command::Contacts(vec![peer])));
    let is_dialed = |node: &mut Lone| {
        node.now = node.core.next_deadline().unwrap();
        node.input(Input::Tick).contains(&Output::Dial { to: peer })
    };
    for _ in 0..20 {
        while !is_dialed(&mut node) {}
        node.input(Input::DialFailed { peer });
    }
    let changed = node.now;
    node.input(Input::NetworkChanged);
    while !is_dialed(&mut node) {}
    assert!(node.now.duration_since(changed) <= Duration::from_millis(50));
    node.input(Input::NetworkChanged);
    node.input(Input::DialFailed { peer });
    while !is_dialed(&mut node) {}
    assert!(node.now.duration_since(changed) <= SECOND, "waits begin anew");
}

#[test]
fn another_node_with_this_key_is_noticed_and_an_earlier_life_is_not() {
    let from = key(3).node_id();
    let sees = |node: &mut Lone, record: NodeRecord| {
        let outputs = node.frame(from, &Message::Records { records: vec![record] });
        outputs.iter().any(|output| matches!(output, Output::Event(Event::KeyInUseTwice { .. })))
    };
    let (mut node, mut copy) = (Lone::new(1), Lone::new(1));
    copy.set("who", Some(b"copy")).unwrap();
    let earlier = copy.own();
    for _ in 0..10 {
        assert!(!sees(&mut node, earlier.clone()));
    }
    let mut told = 0;
    for _ in 0..4 {
        let (own, its) = (node.own(), copy.own());
        told += usize::from(sees(&mut copy, own)) + usize::from(sees(&mut node, its));
        let own = node.own();
        told += usize::from(sees(&mut copy, own));
    }
    assert!(told > 0, "both are alive");
}
