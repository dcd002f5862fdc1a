//! Testimonies on their way: this node's own, others', and the accused's contradiction.

use std::time::{Duration, Instant};

use mesh_identity::{NodeId, Role};

use super::case::{ACQUITTED, CASES_MAX, Case, VOICES_MAX, Voice, Voices};
use super::node::Phase;
use super::own::REFUTATION_PAUSE;
use super::record::View;
use super::rings::NEIGHBOURS;
use super::timers::Timer;
use super::trust::{Refusal, Signature, Trust};
use super::wire::{self, Accusation, Evidence, Message};
use super::{Membership, Output};
use crate::event::DownWhy;
use crate::member::Incarnation;

/// Who was wrong before gets a contradiction from the accused no more often than this; sooner than a disputed case is decided.
const SLOW_REFUTATION: Duration = Duration::from_millis(1500);

/// More than half of as many neighbours as a node can have.
const MAJORITY: usize = NEIGHBOURS / 2 + 1;

impl<T: Trust> Membership<T> {
    /// Says that the node is dead, as far as this one can tell.
    pub(super) fn testify(&mut self, id: &NodeId, evidence: Evidence) {
        let Some(node) = self.nodes.get(id).filter(|node| !node.is_dead()) else { return };
        let incarnation = node.record.card.incarnation;
        let said = self.cases.open.get(id).and_then(|case| case.voices.get(&self.me));
        if said.is_some_and(|said| said.evidence >= evidence) {
            return;
        }
        let raw = *id.as_bytes();
        let statement = wire::accusation_statement(&raw, incarnation.as_u64(), evidence);
        let signature = self.may_testify().then(|| self.trust.sign(wire::ACCUSATION, &statement));
        let me = self.me;
        if !self.add_voice(id, incarnation, (me, Voice { evidence, signature })) {
            return;
        }
        if let Some(signature) = signature {
            let accusation = Accusation {
                subject: raw,
                incarnation: incarnation.as_u64(),
                witness: *me.as_bytes(),
                evidence,
                signature: signature.into(),
            };
            self.pass_on(me, accusation);
        }
        self.weigh(id);
    }

    fn may_testify(&self) -> bool {
        self.own.is_some() && self.role == Role::Member && !self.config.uninvited
    }

    pub(super) fn handle_accusations(&mut self, from: NodeId, accusations: Vec<Accusation>) {
        if self.config.uninvited {
            return;
        }
        for accusation in accusations {
            if accusation.subject == *self.me.as_bytes() {
                self.handle_own_accusation(&accusation);
            } else {
                self.handle_accusation(from, accusation);
            }
        }
    }

    fn handle_own_accusation(&mut self, accusation: &Accusation) {
        let is_current =
            self.own.as_ref().is_some_and(|own| own.incarnation().as_u64() == accusation.incarnation);
        let Some(witness) = self.witness(accusation).filter(|_| is_current) else { return };
        let last = self.cases.refuted.map(|last| self.now.saturating_duration_since(last));
        // A majority convicts soon, whatever this node thinks of it; of a few nobody need be told at once.
        let is_urgent = self.cases.accuse_me(accusation.incarnation, witness, &self.overlay.peers);
        let is_slow = self.cases.is_muted(&witness, self.now) && !is_urgent;
        if is_slow && last.is_some_and(|last| last < SLOW_REFUTATION) {
            self.refute_in(SLOW_REFUTATION);
        } else if self.refute(Incarnation::from_u64(accusation.incarnation)) {
            // One that is wrong again and again says more of itself than of this node.
            if !self.cases.has_been_wrong(&witness) {
                self.watches.fell_ill(1);
            }
            self.cases.was_wrong(witness, self.now);
        }
    }

    /// An accusation comes once; what it is too early to contradict is contradicted later.
    fn refute_in(&mut self, wait: Duration) {
        if self.cases.refutes_at.is_none() {
            let at = self.now + wait;
            self.cases.refutes_at = Some(at);
            self.timers.set(at, Timer::Refute);
        }
    }

    pub(super) fn handle_refute_due(&mut self) {
        self.cases.refutes_at = None;
        if let Some(incarnation) = self.own.as_ref().map(super::Own::incarnation) {
            self.refute(incarnation);
        }
    }

    /// Contradicts the word that this node is dead; the next incarnation goes out at once.
    pub(super) fn refute(&mut self, incarnation: Incarnation) -> bool {
        let Some(own) = &mut self.own else { return false };
        let is_current = own.incarnation() == incarnation && !own.has_ended();
        let is_refuted = own.refute(incarnation, self.now, &self.trust);
        if is_refuted {
            if let Some(at) = self.cases.refutes_at.take() {
                self.timers.unset(at, Timer::Refute);
            }
            self.cases.refuted = Some(self.now);
            self.touched.insert(self.me);
            self.push();
        } else if is_current {
            self.refute_in(REFUTATION_PAUSE);
        }
        is_refuted
    }

    fn handle_accusation(&mut self, from: NodeId, accusation: Accusation) {
        let Some(id) = self.known(&accusation.subject) else { return };
        let incarnation = Incarnation::from_u64(accusation.incarnation);
        let Some(node) = self.nodes.get(&id) else { return };
        if node.record.card.incarnation > incarnation {
            // Contradicted already; the sender may not know.
            self.tell_of(from, &id);
            return;
        }
        let is_other = node.record.card.incarnation != incarnation || matches!(node.phase, Phase::Left);
        let is_heard_before = |voices: &Voices| {
            self.known(&accusation.witness)
                .and_then(|witness| voices.get(&witness))
                .is_some_and(|voice| voice.evidence >= accusation.evidence)
        };
        let is_acquitted = |(at, of, _): &&(Instant, Incarnation, Voices)| {
            *of == incarnation && self.now.saturating_duration_since(*at) < ACQUITTED
        };
        let acquitted = self.cases.acquitted.get(&id).filter(is_acquitted);
        let voices = if let Some((_, _, voices)) = acquitted.filter(|_| !self.cases.is_open(&id)) {
            Some(voices)
        } else if node.is_dead() {
            self.cases.closed.get(&id).filter(|(of, _)| *of == incarnation).map(|(_, voices)| voices)
        } else {
            self.cases.open.get(&id).map(|case| &case.voices)
        };
        if is_other || voices.is_some_and(is_heard_before) {
            return;
        }
        let Some(witness) = self.witness(&accusation) else {
            self.outputs.push_back(Output::Refused { from, why: Refusal::BadSignature });
            return;
        };
        if self.cases.is_muted(&witness, self.now) {
            return;
        }
        let voice = Voice { evidence: accusation.evidence, signature: Some(accusation.signature.into()) };
        let is_dead = node.is_dead();
        let is_candidate = is_dead || self.is_juror(&id, &witness) || self.is_candidate(&id, &witness);
        if !self.cases.is_open(&id) && !is_candidate {
            // Nobody's word but a neighbour's makes a case; but a neighbour may look.
            self.watch_closely(&id, false);
            return;
        }
        let is_new = if is_dead {
            self.add_closed(&id, incarnation, (witness, voice))
        } else {
            self.add_voice(&id, incarnation, (witness, voice))
        };
        if !is_new {
            return;
        }
        // A majority of any node's neighbours was passed on already: whoever had it from here agrees.
        let is_agreed =
            is_dead && self.cases.closed.get(&id).is_some_and(|(_, voices)| voices.len() > MAJORITY);
        if !is_agreed && is_candidate {
            self.pass_on(from, accusation);
        }
        if !is_dead {
            self.watch_closely(&id, false);
            self.weigh(&id);
        }
    }

    /// The witness, when its signature holds and it is one whose word anybody would hear.
    fn witness(&self, accusation: &Accusation) -> Option<NodeId> {
        let Accusation { subject, incarnation, witness, evidence, signature } = accusation;
        let witness = if witness == self.me.as_bytes() { self.me } else { self.known(witness)? };
        if witness != self.me {
            let node = self.nodes.get(&witness)?;
            let has_no_right =
                matches!(node.phase, Phase::Left | Phase::Down(DownWhy::Revoked | DownWhy::GrantExpired));
            if has_no_right || node.record.card.standing.role != Role::Member {
                return None;
            }
        }
        let statement = wire::accusation_statement(subject, *incarnation, *evidence);
        let signature = Signature::from(*signature);
        self.trust.is_signed(&witness, wire::ACCUSATION, &statement, &signature).then_some(witness)
    }

    fn add_voice(
        &mut self,
        id: &NodeId,
        incarnation: Incarnation,
        (witness, voice): (NodeId, Voice),
    ) -> bool {
        if !self.cases.open.contains_key(id) {
            if self.cases.open.len() >= CASES_MAX {
                return false;
            }
            let jury = self.jury(id);
            let case = Case {
                incarnation,
                since: self.now,
                agreed: None,
                voices: Voices::new(),
                jury,
                inquiry: None,
                at: None,
            };
            self.cases.open.insert(*id, case);
        }
        let Some(case) = self.cases.open.get_mut(id) else { return false };
        if case.incarnation != incarnation
            || (case.voices.len() >= VOICES_MAX && !case.jury.contains(&witness))
        {
            return false;
        }
        case.voices.insert(witness, voice);
        true
    }

    fn add_closed(
        &mut self,
        id: &NodeId,
        incarnation: Incarnation,
        (witness, voice): (NodeId, Voice),
    ) -> bool {
        match self.cases.closed.get_mut(id) {
            Some((of, voices)) if *of == incarnation && voices.len() < VOICES_MAX => {
                voices.insert(witness, voice);
                true
            }
            _ => false,
        }
    }

    fn is_juror(&self, id: &NodeId, witness: &NodeId) -> bool {
        self.cases.open.get(id).is_some_and(|case| case.jury.contains(witness))
    }

    /// Whether the word of the witness may come to count: it is a neighbour of the subject but for nodes that are doubted.
    fn is_candidate(&self, id: &NodeId, witness: &NodeId) -> bool {
        let is_doubted = |one: &NodeId| self.nodes.get(one).is_some_and(|node| node.phase == Phase::Suspect);
        !self.config.uninvited && self.around(id, is_doubted).iter().flatten().any(|one| one == witness)
    }

    /// Those whose word counts: the subject's neighbours, this node among them if it is one. In the place of a neighbour
    /// that is missing itself stands the next one of its side, who looks after the subject by now.
    pub(super) fn jury(&self, id: &NodeId) -> Vec<NodeId> {
        if self.config.uninvited {
            return Vec::new();
        }
        let wait = self.watches.weathered(self.config.disputed);
        let is_missing = |one: &NodeId| {
            let node = self.nodes.get(one).filter(|node| node.phase == Phase::Suspect);
            node.is_some_and(|node| self.now.saturating_duration_since(node.since) >= wait)
        };
        let sides = self.around(id, is_missing);
        let mut jury: Vec<NodeId> =
            sides.iter().filter_map(|side| side.last()).filter(|one| !is_missing(one)).copied().collect();
        jury.sort_unstable();
        jury.dedup();
        jury
    }

    /// Tells neighbours, and the accused, at once.
    fn pass_on(&mut self, from: NodeId, accusation: Accusation) {
        let subject = self.known(&accusation.subject);
        let frame = Message::Accusations { accusations: vec![accusation] }.encode();
        let linked: Vec<NodeId> = self
            .flood_peers()
            .chain(subject.filter(|id| self.links.contains(id)))
            .filter(|peer| *peer != from)
            .collect();
        for to in linked {
            self.outputs.push_back(Output::Send { to, frame: frame.clone() });
        }
    }

    /// Sends the testimonies on which this node holds another one for dead.
    pub(super) fn tell_verdict(&mut self, to: NodeId, ids: &[NodeId]) {
        let mut accusations = Vec::new();
        for id in ids {
            let Some((incarnation, voices)) = self.cases.closed.get(id) else { continue };
            let signed = voices
                .iter()
                .filter_map(|(witness, voice)| Some((witness, voice.evidence, voice.signature?)));
            accusations.extend(signed.map(|(witness, evidence, signature)| Accusation {
                subject: *id.as_bytes(),
                incarnation: incarnation.as_u64(),
                witness: *witness.as_bytes(),
                evidence,
                signature: signature.into(),
            }));
        }
        for some in accusations.chunks(wire::ACCUSATIONS_PER_FRAME) {
            self.send(to, &Message::Accusations { accusations: some.to_vec() });
        }
    }

    /// Tells a linked node that only a later incarnation of it will do.
    pub(super) fn accuse_if_down(&mut self, peer: &NodeId) {
        let Some(node) = self.nodes.get(peer) else { return };
        if node.is_dead() && node.is_welcome() {
            let incarnation = node.record.card.incarnation.as_u64();
            if self.links.may_accuse(peer, REFUTATION_PAUSE, self.now) {
                self.send(*peer, &Message::Accused { incarnation });
            }
        }
    }

    /// The peer holds us for dead.
    pub(super) fn handle_accused(&mut self, (from, view): (NodeId, View), incarnation: Incarnation) {
        if self.refute(incarnation) {
            return;
        }
        let Some(own) = &self.own else { return };
        if incarnation < own.incarnation() {
            let record = own.record.whole(view, !own.has_ended());
            self.send(from, &Message::Records { records: vec![record] });
        }
    }
}
