//! Accusations and verdicts: how a scope agrees that one of its nodes is dead.
//!
//! A witness signs what it saw. The words of the subject's neighbours count, and nobody else's, since nobody chooses whose
//! neighbour it is. When most of them agree, and the subject has had time to contradict, it is down. Where they do not
//! agree, or are missing themselves, as after a partition, each node asks for the subject itself before it believes those
//! who are left. One word alone is never enough, unless it is one's own and nobody else could have one.

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
/// The same words about a node that has answered are not heard again for so long.
const ACQUITTED: Duration = Duration::from_secs(10);
/// Rounds in which this node itself asks for the accused of a disputed case.
const INQUIRY: u8 = 4;
/// A witness that was wrong so often within [`WRONG_WITHIN`] is not listened to for a while: twice for each of its neighbours,
/// which an honest one reaches when the whole scope falls apart and together again twice in a minute.
const WRONG_MAX: u32 = 2 * super::rings::NEIGHBOURS as u32;
const WRONG_WITHIN: Duration = Duration::from_secs(60);
/// How long, doubled each time.
const MUTED_MIN: Duration = Duration::from_secs(60);
const MUTED_DOUBLINGS: u32 = 5;
/// Witnesses remembered for having been wrong, at most.
const WITNESSES_MAX: usize = 4096;
/// Who was wrong before gets a contradiction from the accused no more often than this; sooner than a disputed case is decided.
const SLOW_REFUTATION: Duration = Duration::from_millis(1500);

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
    /// This node's own questions for the accused: their number, and how many rounds there were.
    inquiry: Option<(u64, u8)>,
    at: Option<Instant>,
}

/// How often a witness was wrong.
#[derive(Debug)]
struct Record {
    since: Instant,
    wrong: u32,
    muted: Option<Instant>,
    times: u32,
}

/// Open cases, closed ones whose testimonies others may lack, and witnesses that were wrong.
#[derive(Debug, Default)]
pub(crate) struct Cases {
    open: BTreeMap<NodeId, Case>,
    closed: BTreeMap<NodeId, (Incarnation, Voices)>,
    /// Nodes that answered although they were accused, and when.
    acquitted: BTreeMap<NodeId, (Instant, Incarnation, Voices)>,
    witnesses: BTreeMap<NodeId, Record>,
    refuted: Option<Instant>,
    refutes_at: Option<Instant>,
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
        self.witnesses.get(witness).is_some_and(|record| record.muted.is_some_and(|until| until > now))
    }

    /// The witness was contradicted.
    fn was_wrong(&mut self, witness: NodeId, now: Instant) {
        let is_old = |record: &Record| now.saturating_duration_since(record.since) >= WRONG_WITHIN;
        if self.witnesses.len() >= WITNESSES_MAX {
            self.witnesses.retain(|_, record| !is_old(record));
        }
        if self.witnesses.len() >= WITNESSES_MAX {
            return;
        }
        let new = Record { since: now, wrong: 0, muted: None, times: 0 };
        let record = self.witnesses.entry(witness).or_insert(new);
        if is_old(record) {
            (record.since, record.wrong) = (now, 0);
        }
        record.wrong += 1;
        if record.wrong >= WRONG_MAX {
            record.muted = Some(now + MUTED_MIN * (1 << record.times.min(MUTED_DOUBLINGS)));
            (record.wrong, record.times) = (0, record.times + 1);
        }
    }

    pub(crate) fn forget(&mut self, id: &NodeId) {
        self.closed.remove(id);
        self.witnesses.remove(id);
        self.acquitted.remove(id);
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
        let Some(witness) = self.witness(accusation).filter(|_| is_current) else { return };
        let last = self.cases.refuted.map(|last| self.now.saturating_duration_since(last));
        let is_slow = self.cases.is_muted(&witness, self.now);
        if is_slow && last.is_some_and(|last| last < SLOW_REFUTATION) {
            self.refute_in(SLOW_REFUTATION);
        } else if self.refute(Incarnation::from_u64(accusation.incarnation)) {
            self.watches.fell_ill(1);
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
        if !is_dead && !self.cases.is_open(&id) && !self.jury(&id).contains(&witness) {
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
        if is_dead || self.is_juror(&id, &witness) {
            self.pass_on(from, accusation);
        }
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
        self.disputed(id, &jury, (voices, age))
    }

    /// No majority: this node asks for the accused itself.
    fn disputed(&mut self, id: &NodeId, jury: &[NodeId], (voices, age): (usize, Duration)) -> Verdict {
        let Some(case) = self.cases.open.get(id) else { return Verdict::Dropped };
        let has_own = case.voices.contains_key(&self.me);
        let is_alone = jury.iter().all(|juror| *juror == self.me);
        let wait = if is_alone && !self.config.uninvited { self.config.alone } else { self.config.disputed };
        let wait = self.watches.weathered(wait);
        if age < wait {
            return Verdict::Later(wait - age);
        }
        if is_alone && has_own {
            return Verdict::Dead(case.why(&[self.me]));
        }
        let (nonce, rounds) = case.inquiry.unwrap_or((0, 0));
        if rounds > self.watches.longer(INQUIRY) {
            // One other's word is no verdict where others could know: they look by now, and speak for themselves.
            let is_enough = voices >= 2 || has_own || (voices == 1 && jury.len() == 1);
            return if is_enough { Verdict::Dead(case.why(jury)) } else { Verdict::Dropped };
        }
        let nonce = if nonce == 0 { self.rng.next() | 1 } else { nonce };
        if let Some(case) = self.cases.open.get_mut(id) {
            case.inquiry = Some((nonce, rounds + 1));
        }
        self.ask_for(id, nonce);
        Verdict::Later(LOOK)
    }

    /// Signed word of an accused node came in answer to this node's own question. Whether it was one.
    pub(super) fn is_answer(&self, id: &NodeId, nonce: u64) -> bool {
        self.cases.open.get(id).is_some_and(|case| case.inquiry.is_some_and(|(asked, _)| asked == nonce))
    }

    /// The accused has answered: whatever its accusers see, it lives.
    pub(super) fn acquit(&mut self, id: &NodeId) {
        if let Some(case) = self.cases.open.get(id) {
            let entry = (self.now, case.incarnation, case.voices.clone());
            let acquitted = &mut self.cases.acquitted;
            if acquitted.len() >= CASES_MAX {
                acquitted.retain(|_, (at, ..)| self.now.saturating_duration_since(*at) < ACQUITTED);
            }
            acquitted.insert(*id, entry);
        }
        self.close_case(id, true);
        self.reconsider(id);
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
                self.cases.was_wrong(witness, self.now);
            }
        }
    }

    /// All waits begin anew.
    pub(super) fn adjourn_cases(&mut self) {
        for case in self.cases.open.values_mut() {
            (case.since, case.agreed, case.inquiry) = (self.now, None, None);
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
