//! Accusations and verdicts: how a scope agrees that one of its nodes is dead.
//!
//! A witness signs what it saw. The words of the subject's neighbours count, and nobody else's, since nobody chooses whose
//! neighbour it is. When most of them agree, and the subject has had time to contradict, it is down. Where the
//! neighbours themselves are missing, as after a partition, those that are left decide, more slowly. One word alone is
//! never enough, unless it is one's own and nobody else could have one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mesh_identity::{NodeId, Role};

use super::node::Phase;
use super::own::REFUTATION_PAUSE;
use super::record::View;
use super::timers::Timer;
use super::trust::{Refusal, Signature, Trust};
use super::wire::{self, Accusation, Evidence, Message};
use super::{Membership, Output, at_least_a_millisecond};
use crate::event::DownWhy;
use crate::member::Incarnation;

/// Testimonies kept for one node: its neighbours', and some of others that set them looking.
const VOICES_MAX: usize = 24;
/// Open cases at most: more are not opened, the nodes concerned are weighed later.
const CASES_MAX: usize = 4096;
/// A case that the neighbours have not agreed on by then is dropped.
const CASE_MAX: Duration = Duration::from_secs(20);
/// Between two looks at a disputed case.
const LOOK: Duration = Duration::from_millis(250);
/// A witness that was wrong is not listened to for so long, doubled each time.
const MUTED_MIN: Duration = Duration::from_secs(10);
const MUTED_DOUBLINGS: u32 = 6;
/// Witnesses remembered for having been wrong, at most.
const MUTED_MAX: usize = 4096;

/// One witness's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Voice {
    pub(crate) evidence: Evidence,
    /// None where this node may not sign for others to hear: its word counts for itself alone.
    pub(crate) signature: Option<Signature>,
}

pub(crate) type Voices = BTreeMap<NodeId, Voice>;

/// A node that is accused.
#[derive(Debug)]
pub(crate) struct Case {
    incarnation: Incarnation,
    since: Instant,
    agreed: Option<Instant>,
    voices: Voices,
    /// Its neighbours, when that was looked at last.
    jury: Vec<NodeId>,
    at: Option<Instant>,
}

/// Open cases, closed ones whose testimonies others may lack, and witnesses that were wrong.
#[derive(Debug, Default)]
pub(crate) struct Cases {
    open: BTreeMap<NodeId, Case>,
    closed: BTreeMap<NodeId, (Incarnation, Voices)>,
    muted: BTreeMap<NodeId, (Instant, u32)>,
}

enum Verdict {
    Dead(DownWhy),
    Later(Duration),
    Dropped,
}

impl Cases {
    pub(crate) fn is_open(&self, id: &NodeId) -> bool {
        self.open.contains_key(id)
    }

    fn is_muted(&self, witness: &NodeId, now: Instant) -> bool {
        self.muted.get(witness).is_some_and(|(until, _)| *until > now)
    }

    fn mute(&mut self, witness: NodeId, now: Instant) {
        if self.muted.len() >= MUTED_MAX {
            self.muted.retain(|_, (until, _)| *until > now);
        }
        if self.muted.len() < MUTED_MAX {
            let (until, times) = self.muted.entry(witness).or_insert((now, 0));
            *until = now + MUTED_MIN * (1 << (*times).min(MUTED_DOUBLINGS));
            *times += 1;
        }
    }

    pub(crate) fn forget(&mut self, id: &NodeId) {
        self.closed.remove(id);
        self.muted.remove(id);
    }
}

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
        if !is_current || self.witness(accusation).is_none() {
            return;
        }
        if self.refute(Incarnation::from_u64(accusation.incarnation)) {
            self.watches.fell_ill(1);
        }
    }

    /// Contradicts the word that this node is dead; the next incarnation goes out at once.
    pub(super) fn refute(&mut self, incarnation: Incarnation) -> bool {
        let Some(own) = &mut self.own else { return false };
        let is_refuted = own.refute(incarnation, self.now, &self.trust);
        if is_refuted {
            self.touched.insert(self.me);
            self.push();
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
        let voices = if node.is_dead() {
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
        let is_new = if is_dead {
            self.add_closed(&id, incarnation, (witness, voice))
        } else {
            self.add_voice(&id, incarnation, (witness, voice))
        };
        if !is_new {
            return;
        }
        self.pass_on(from, accusation);
        if !is_dead {
            self.watch_closely(&id, false);
            if self.is_juror(&id, &witness) && !self.hears(&id) {
                self.suspect_if_alive(&id);
            }
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
            let case =
                Case { incarnation, since: self.now, agreed: None, voices: Voices::new(), jury, at: None };
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

    /// Those whose word counts: the subject's neighbours, this node among them if it is one.
    fn jury(&self, id: &NodeId) -> Vec<NodeId> {
        if self.config.uninvited { Vec::new() } else { self.neighbours_of(id) }
    }

    pub(super) fn handle_case_due(&mut self, id: &NodeId) {
        let Some(case) = self.cases.open.get_mut(id) else { return };
        if case.at.is_none_or(|at| at > self.now) {
            return;
        }
        case.at = None;
        let jury = self.jury(id);
        if let Some(case) = self.cases.open.get_mut(id) {
            case.jury = jury;
        }
        self.weigh(id);
    }

    /// Looks at a case: closes it, or says when to look again.
    pub(super) fn weigh(&mut self, id: &NodeId) {
        let verdict = self.verdict(id);
        let Some(case) = self.cases.open.get_mut(id) else { return };
        if let Some(at) = case.at.take() {
            self.timers.unset(at, Timer::Case(*id));
        }
        match verdict {
            Verdict::Later(wait) => {
                let at = self.now + at_least_a_millisecond(wait);
                if let Some(case) = self.cases.open.get_mut(id) {
                    case.at = Some(at);
                }
                self.timers.set(at, Timer::Case(*id));
            }
            Verdict::Dead(why) => self.convict(id, why),
            Verdict::Dropped => {
                self.cases.open.remove(id);
                self.reconsider(id);
            }
        }
    }

    fn verdict(&mut self, id: &NodeId) -> Verdict {
        let (is_mine, is_heard) = (self.is_first_hand(id), self.hears(id));
        let now = self.now;
        let Some(case) = self.cases.open.get(id) else { return Verdict::Dropped };
        let age = now.saturating_duration_since(case.since);
        let is_up =
            |juror: &NodeId| *juror == self.me || self.nodes.get(juror).is_some_and(super::Node::is_up);
        let jury: Vec<NodeId> = case.jury.iter().filter(|juror| is_up(juror)).copied().collect();
        let voices = jury.iter().filter(|juror| case.voices.contains_key(juror)).count();
        if is_mine {
            // Its own word to us, or its machine's: nothing to wait for.
            return Verdict::Dead(case.why(&case.voices.keys().copied().collect::<Vec<_>>()));
        }
        if is_heard {
            self.reconsider(id);
            return if age > CASE_MAX { Verdict::Dropped } else { Verdict::Later(LOOK) };
        }
        let agreed = voices * 2 > jury.len() && voices >= 2;
        if agreed {
            let why = case.why(&jury);
            // Those who have not spoken may know better; the more they are, the longer the accused has.
            let missing = u32::try_from(jury.len() - voices).unwrap_or(u32::MAX);
            let grace = if missing == 0 && why != DownWhy::Silent {
                Duration::ZERO
            } else {
                self.watches.weathered(self.config.grace) * missing.saturating_add(1)
            };
            let since = case.agreed.unwrap_or(now);
            if let Some(case) = self.cases.open.get_mut(id) {
                case.agreed = Some(since);
            }
            let waited = now.saturating_duration_since(since);
            return if waited >= grace { Verdict::Dead(why) } else { Verdict::Later(grace - waited) };
        }
        self.disputed(id, &jury, age)
    }

    /// No majority: who of the neighbours is accused and silent, too, has no say any more.
    fn disputed(&self, id: &NodeId, jury: &[NodeId], age: Duration) -> Verdict {
        let Some(case) = self.cases.open.get(id) else { return Verdict::Dropped };
        let is_alone = jury.iter().all(|juror| *juror == self.me) && !self.config.uninvited;
        let wait = if is_alone { self.config.alone } else { self.config.disputed };
        let wait = self.watches.weathered(wait);
        if age < wait {
            return Verdict::Later(wait - age);
        }
        let is_silent = |juror: &NodeId| {
            self.cases.open.get(juror).is_some_and(|case| {
                *juror != self.me
                    && self.now.saturating_duration_since(case.since) >= wait
                    && !self.hears(juror)
            })
        };
        let left: Vec<NodeId> = jury.iter().filter(|juror| !is_silent(juror)).copied().collect();
        let voices = left.iter().filter(|juror| case.voices.contains_key(juror)).count();
        let has_own = case.voices.contains_key(&self.me);
        let is_dead =
            if left.is_empty() { has_own || case.voices.len() >= 2 } else { voices * 2 > left.len() };
        if is_dead && (voices >= 2 || has_own || left.len() < 2) {
            Verdict::Dead(case.why(&left))
        } else if age > CASE_MAX && !has_own {
            Verdict::Dropped
        } else {
            Verdict::Later(LOOK)
        }
    }

    /// Whether this node itself was told by the subject, or by its machine, that it has ended.
    fn is_first_hand(&self, id: &NodeId) -> bool {
        let voice = self.cases.open.get(id).and_then(|case| case.voices.get(&self.me));
        voice.is_some_and(|voice| voice.evidence != Evidence::Silent)
    }

    fn convict(&mut self, id: &NodeId, why: DownWhy) {
        let Some(case) = self.cases.open.remove(id) else { return };
        let why = match why {
            DownWhy::Silent if self.watches.contains(id) && !self.links.contains(id) => DownWhy::LinkLost,
            why => why,
        };
        let witnesses = case.voices.keys().copied().collect();
        self.cases.closed.insert(*id, (case.incarnation, case.voices));
        self.down(id, why, witnesses);
    }

    /// A later incarnation contradicts the accusers.
    pub(super) fn close_case(&mut self, id: &NodeId, is_refuted: bool) {
        let Some(case) = self.cases.open.remove(id) else { return };
        if let Some(at) = case.at {
            self.timers.unset(at, Timer::Case(*id));
        }
        if !is_refuted {
            return;
        }
        for witness in case.voices.into_keys() {
            if witness == self.me {
                self.watches.fell_ill(1);
            } else {
                self.cases.mute(witness, self.now);
            }
        }
    }

    /// All waits begin anew.
    pub(super) fn adjourn_cases(&mut self) {
        for case in self.cases.open.values_mut() {
            (case.since, case.agreed) = (self.now, None);
        }
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

impl Case {
    /// What most of these witnesses saw.
    fn why(&self, jury: &[NodeId]) -> DownWhy {
        let saw = |what: Evidence| {
            jury.iter().filter(|one| self.voices.get(one).is_some_and(|voice| voice.evidence == what)).count()
        };
        let (silent, gone, shutdown) = (saw(Evidence::Silent), saw(Evidence::Gone), saw(Evidence::Shutdown));
        if gone > 0 && gone >= silent && gone >= shutdown {
            DownWhy::Gone
        } else if shutdown > 0 && shutdown >= silent {
            DownWhy::Stopped
        } else {
            DownWhy::Silent
        }
    }
}
