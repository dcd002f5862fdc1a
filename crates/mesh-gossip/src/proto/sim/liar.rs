//! Members that break the rules. A liar runs a core, so that it is linked and answers, and bends what goes in and out of
//! it. It signs with its own key alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_identity::NodeId;

use super::super::Trust;
use super::super::wire::{self, Accusation, Evidence, Message, NodeRecord, RawId};
use super::double::Double;
use super::network::{Happening, Wish};
use super::simulated::Directory;
use crate::member::Incarnation;

/// How often a liar says something of its own.
const EVERY: Duration = Duration::from_millis(500);
/// Testimonies in one of its frames.
const ACCUSATIONS_PER_FRAME: usize = 400;
/// Records in one of its frames.
const RECORDS_PER_FRAME: usize = 64;

/// What a liar does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Passes on nothing that is of others.
    Withhold,
    /// Shows everybody, again and again, every record that it ever saw: the dead, and earlier lives of the living.
    Replay,
    /// Testifies that everybody is dead, again and again, for every incarnation that it sees.
    Accuse,
    /// Writes testimonies in the names of others, and answers in theirs that they live.
    Forge,
    /// Signs two contents under one version: one for half of its peers, another for the rest.
    Equivocate,
}

impl Lie {
    fn needs_records(self) -> bool {
        matches!(self, Self::Replay | Self::Accuse | Self::Forge)
    }
}

/// What a liar needs to lie.
pub(super) struct Liar {
    lie: Lie,
    pen: Double,
    me: RawId,
    peers: BTreeSet<u32>,
    seen: BTreeMap<(RawId, u64), NodeRecord>,
    pub(super) next: Instant,
}

impl Liar {
    pub(super) fn new(lie: Lie, me: NodeId, peers: BTreeSet<u32>, now: Instant) -> Self {
        Self {
            lie,
            pen: Double::new(me),
            me: *me.as_bytes(),
            peers,
            seen: BTreeMap::new(),
            next: now + EVERY,
        }
    }

    /// Looks at what happens to it.
    pub(super) fn notice(&mut self, what: &Happening, _world: &Directory) {
        match what {
            Happening::LinkUp { peer } => {
                self.peers.insert(*peer);
            }
            Happening::LinkDown { peer, .. } => {
                self.peers.remove(peer);
            }
            Happening::Frame { frame, .. } if self.lie.needs_records() => {
                for record in records_in(frame).into_iter().flatten() {
                    self.seen.insert((record.id, record.card.incarnation), record);
                }
            }
            Happening::Frame { .. } | Happening::Tick | Happening::DialFailed { .. } => {}
        }
    }

    /// What it sends of its own accord.
    pub(super) fn tick(&mut self, _world: &Directory, now: Instant, wishes: &mut Vec<Wish>) {
        if self.next > now {
            return;
        }
        self.next = now + EVERY;
        match self.lie {
            Lie::Replay => {
                let all: Vec<_> = self.seen.values().cloned().collect();
                for records in all.chunks(RECORDS_PER_FRAME) {
                    let frame = Message::Records { records: records.to_vec() }.encode();
                    self.tell_all(&frame, wishes);
                }
            }
            Lie::Accuse | Lie::Forge => {
                let accusations = self.accusations();
                self.tell_all(&Message::Accusations { accusations }.encode(), wishes);
            }
            Lie::Withhold | Lie::Equivocate => {}
        }
    }

    /// Everybody is dead, as far as the liar goes: by its own word or by everybody's.
    fn accusations(&self) -> Vec<Accusation> {
        let ids: BTreeSet<RawId> = self.seen.keys().map(|(id, _)| *id).collect();
        let subjects = self.seen.keys().filter(|(id, _)| *id != self.me);
        let accusation = |(subject, incarnation): (RawId, u64), witness: RawId| {
            let statement = wire::accusation_statement(&subject, incarnation, Evidence::Gone);
            let signature = self.pen.sign(wire::ACCUSATION, &statement).into();
            Accusation { subject, incarnation, witness, evidence: Evidence::Gone, signature }
        };
        match self.lie {
            Lie::Forge => {
                let all = subjects.flat_map(|one| ids.iter().map(|witness| accusation(*one, *witness)));
                all.take(ACCUSATIONS_PER_FRAME).collect()
            }
            _ => subjects.map(|one| accusation(*one, self.me)).collect(),
        }
    }

    fn tell_all(&self, frame: &Bytes, wishes: &mut Vec<Wish>) {
        wishes.extend(self.peers.iter().map(|to| Wish::Send { to: *to, frame: frame.clone() }));
    }

    /// What becomes of a frame that its core wants sent.
    pub(super) fn twist(&self, to: u32, frame: Bytes) -> Option<Bytes> {
        if let (Lie::Forge, Ok(Some(Message::Ask { subject, nonce }))) = (self.lie, Message::decode(&frame)) {
            let signature = self.pen.sign(wire::HEARD, &wire::heard_statement(nonce)).into();
            return Some(Message::Heard { subject, nonce, signature }.encode());
        }
        let Some(mut records) = records_in(&frame) else { return Some(frame) };
        match self.lie {
            Lie::Withhold => {
                records.retain(|record| record.id == self.me);
                (!records.is_empty()).then(|| Message::Records { records }.encode())
            }
            Lie::Equivocate if to.is_multiple_of(2) => {
                for record in records.iter_mut().filter(|record| record.id == self.me) {
                    self.contradict(record);
                }
                Some(Message::Records { records }.encode())
            }
            Lie::Equivocate | Lie::Replay | Lie::Accuse | Lie::Forge => Some(frame),
        }
    }

    /// Another content under the same version, with as good a signature.
    fn contradict(&self, record: &mut NodeRecord) {
        let life = Incarnation::from_u64(record.card.incarnation).life();
        for entry in record.entries.iter_mut().filter(|entry| entry.value.is_some()) {
            entry.value = Some(b"something else".to_vec());
            entry.signature = self.pen.sign(wire::ENTRY, &entry.statement(life)).into();
        }
    }
}

fn records_in(frame: &[u8]) -> Option<Vec<NodeRecord>> {
    match Message::decode(frame) {
        Ok(Some(Message::Records { records })) => Some(records),
        _ => None,
    }
}
