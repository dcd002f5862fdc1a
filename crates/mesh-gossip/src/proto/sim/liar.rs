//! Members that break the rules. A liar runs a core, so that it is linked and answers, and bends what goes in and out of
//! it. It signs with its own key alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_identity::NodeId;

use super::super::wire::{self, Accusation, Evidence, Message, NodeRecord, RawId};
use super::super::{Membership, Trust};
use super::double::Double;
use super::network::{Happening, Wish};
use super::simulated::Directory;
use crate::member::Incarnation;

/// How often a liar says something of its own.
const EVERY: Duration = Duration::from_millis(500);
/// Records in one of its frames.
const RECORDS_PER_FRAME: usize = 64;

/// What a liar does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Passes on nothing that is of others.
    Withhold,
    /// Shows everybody, again and again, every record that it ever saw: the dead, and earlier lives of the living.
    Replay,
    /// Signs two contents under one version: one for half of its peers, another for the rest.
    Equivocate,
    /// Accuses everybody, again and again, with its own signature.
    Accuse,
    /// Accuses everybody in the names of others.
    Forge,
    /// Says of everybody, the dead included, that they live: in what it passes on, and when it is asked.
    Vouch,
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
    pub(super) fn notice(&mut self, what: &Happening, wishes: &mut Vec<Wish>) {
        match what {
            Happening::LinkUp { peer } => {
                self.peers.insert(*peer);
            }
            Happening::LinkDown { peer, .. } => {
                self.peers.remove(peer);
            }
            Happening::Frame { frame, .. } if self.lie == Lie::Replay => {
                for record in records_in(frame).into_iter().flatten() {
                    let record = NodeRecord { alive: true, ..record };
                    self.seen.insert((record.id, record.card.incarnation), record);
                }
            }
            Happening::Frame { from, frame } if self.lie == Lie::Vouch => {
                if let Ok(Some(Message::Ask { subject, nonce })) = Message::decode(frame) {
                    let signature = self.pen.sign(wire::HEARD, &wire::heard_statement(nonce)).into();
                    let frame = Message::Heard { subject, nonce, signature }.encode();
                    wishes.push(Wish::Send { to: *from, frame });
                }
            }
            Happening::Frame { .. } | Happening::Tick | Happening::DialFailed { .. } => {}
        }
    }

    /// What it sends of its own accord.
    pub(super) fn tick(
        &mut self,
        (world, core): (&Directory, &Membership<Double>),
        now: Instant,
        wishes: &mut Vec<Wish>,
    ) {
        if self.next > now {
            return;
        }
        self.next = now + EVERY;
        match self.lie {
            Lie::Replay => {
                let all: Vec<_> = self.seen.values().cloned().collect();
                for records in all.chunks(RECORDS_PER_FRAME) {
                    self.tell_all(&Message::Records { records: records.to_vec() }.encode(), wishes);
                }
            }
            Lie::Accuse | Lie::Forge => {
                let all = self.accusations(world, core);
                for accusations in all.chunks(wire::ACCUSATIONS_PER_FRAME) {
                    self.tell_all(
                        &Message::Accusations { accusations: accusations.to_vec() }.encode(),
                        wishes,
                    );
                }
            }
            Lie::Withhold | Lie::Equivocate | Lie::Vouch => {}
        }
    }

    /// Against each other member: its own, or one in the name of every other.
    fn accusations(&self, world: &Directory, core: &Membership<Double>) -> Vec<Accusation> {
        let mut accusations = Vec::new();
        for subject in world.ids() {
            let Some(incarnation) = core.incarnation_of(subject).map(Incarnation::as_u64) else { continue };
            let (subject, evidence) = (*subject.as_bytes(), Evidence::Gone);
            let statement = wire::accusation_statement(&subject, incarnation, evidence);
            let signature = self.pen.sign(wire::ACCUSATION, &statement).into();
            let witnesses: Vec<RawId> = match self.lie {
                Lie::Forge => {
                    world.ids().iter().map(|id| *id.as_bytes()).filter(|id| *id != self.me).collect()
                }
                _ => vec![self.me],
            };
            let all = witnesses.into_iter().filter(|witness| *witness != subject);
            accusations.extend(all.map(|witness| Accusation {
                subject,
                incarnation,
                witness,
                evidence,
                signature,
            }));
        }
        accusations
    }

    fn tell_all(&self, frame: &Bytes, wishes: &mut Vec<Wish>) {
        wishes.extend(self.peers.iter().map(|to| Wish::Send { to: *to, frame: frame.clone() }));
    }

    /// What becomes of a frame that its core wants sent.
    pub(super) fn twist(&self, to: u32, frame: Bytes) -> Option<Bytes> {
        let mut records = match Message::decode(&frame) {
            Ok(Some(Message::Records { records })) => records,
            Ok(Some(Message::Accusations { accusations })) => return self.pass_on(accusations),
            _ => return Some(frame),
        };
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
            Lie::Vouch => {
                for record in &mut records {
                    record.alive = true;
                }
                Some(Message::Records { records }.encode())
            }
            Lie::Equivocate | Lie::Replay | Lie::Accuse | Lie::Forge => Some(frame),
        }
    }

    /// What it passes on of testimonies, its own included.
    fn pass_on(&self, mut accusations: Vec<Accusation>) -> Option<Bytes> {
        match self.lie {
            Lie::Withhold => accusations.retain(|accusation| accusation.witness == self.me),
            // Not a word against anybody.
            Lie::Vouch => accusations.clear(),
            Lie::Replay | Lie::Equivocate | Lie::Accuse | Lie::Forge => {}
        }
        (!accusations.is_empty()).then(|| Message::Accusations { accusations }.encode())
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
