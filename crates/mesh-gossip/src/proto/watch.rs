//! Looking after the neighbours: pings over links, questions by way of others, and how much silence is too much.
//!
//! A neighbour that was not heard for a while is pinged. Unanswered, it is pinged again, and others are asked whether they
//! hear it; each such round makes a living node more unlikely to stay unheard. How many rounds it takes follows from how
//! many frames get lost here, and from whether this node itself is in good health.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use mesh_identity::{NodeId, Role};

use super::timers::Timer;
use super::trust::{Signature, Trust};
use super::wire::{self, Evidence, Message, RawId};
use super::{Membership, at_least_a_millisecond};

/// Others that are asked at once (SWIM's k; Das, Gupta, Motivala 2002, section 3.1).
const HELPERS: usize = 3;
/// Share of the pings of living nodes that may end in a wrong accusation, which the other watchers then refuse to share.
const WRONG: f64 = 3e-6;
/// Share of lost pings below which the network counts as clean.
const CLEAN: f64 = 0.01;
/// Up to this share of lost pings nobody has to wait longer.
const GOOD: f64 = 0.05;
/// What is assumed before anything was measured.
const UNKNOWN: f64 = 0.15;
/// A path by way of others is not trusted to fail less often than this: paths share machines and cables.
const SHARED_FATE: f64 = 0.02;
/// Weight of one ping in the share of lost ones: eight neighbours are a hundred pings in ten seconds.
const WEIGHT: f64 = 1.0 / 128.0;
/// What was assumed weighs as much as so many pings.
const ASSUMED: f64 = 8.0;
/// Rounds at most, however bad the network.
const ROUNDS_MAX: u8 = 16;
/// A new neighbour without a link has this long to be linked before it is asked for.
const LINK_GRACE: Duration = Duration::from_secs(2);
/// A neighbour that only others can reach is asked for this often.
const UNLINKED_INTERVAL: Duration = Duration::from_secs(2);
/// Answer to a ping over a link that was never measured.
const UNMEASURED: Duration = Duration::from_millis(250);
/// Shortest wait for an answer: what an idle machine takes to schedule three processes, with room.
const ANSWER_MIN: Duration = Duration::from_millis(100);
/// Longest wait for an answer: above this a path is of no use to anybody who waits.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Questions passed on whose answers are waited for, at most.
const ASKED_MAX: usize = 256;
/// Signed answers to questions within one [`Membership`] second, at most: each costs a signature.
const HEARD_PER_SECOND: u32 = 200;
/// How much worse than the best this node's health can get (Dadgar et al., "Lifeguard", 2018, section IV.A).
const SICK_MAX: u8 = 8;
/// Answered pings that make a sick node a degree better.
const WELL: u8 = 16;

/// What is known of one neighbour's answers.
#[derive(Debug)]
pub(crate) struct Watch {
    at: Instant,
    heard: Instant,
    /// Rounds without an answer.
    rounds: u8,
    pinged: Option<(u32, Instant)>,
    /// An earlier ping whose answer was not seen yet although the peer was heard meanwhile.
    open: Option<u32>,
    nonce: u64,
    /// Others accuse it.
    is_urgent: bool,
}

impl Watch {
    /// Begins anew: the neighbour counts as heard now.
    fn calm(&mut self, now: Instant) {
        self.heard = now;
        (self.rounds, self.pinged, self.is_urgent) = (0, None, false);
    }
}

/// The neighbours, and what this node knows of its own condition.
#[derive(Debug)]
pub(crate) struct Watches {
    all: BTreeMap<NodeId, Watch>,
    seq: u32,
    /// Who asked for whom, by the question's number.
    asked: VecDeque<(u64, NodeId)>,
    /// Share of pings of living nodes that got no answer.
    lost: f64,
    weight: f64,
    sick: u8,
    well: u8,
    signed: (Option<Instant>, u32),
}

impl Watches {
    pub(crate) fn new() -> Self {
        Self {
            all: BTreeMap::new(),
            seq: 0,
            asked: VecDeque::new(),
            lost: UNKNOWN,
            weight: 1.0 / ASSUMED,
            sick: 0,
            well: 0,
            signed: (None, 0),
        }
    }

    pub(crate) fn contains(&self, id: &NodeId) -> bool {
        self.all.contains_key(id)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.all.keys().copied()
    }

    /// Whether the neighbour answered when it was asked last.
    pub(crate) fn is_quiet(&self, id: &NodeId) -> bool {
        self.all.get(id).is_none_or(|watch| watch.rounds == 0 && !watch.is_urgent)
    }

    /// A sick node waits longer before it believes that others are dead.
    pub(crate) fn patience(&self, wait: Duration) -> Duration {
        wait + wait * u32::from(self.sick) / 4
    }

    /// Waits of a judgement are longer where frames get lost: a word against it may take several tries.
    pub(crate) fn weathered(&self, wait: Duration) -> Duration {
        self.patience(wait.mul_f64(1.0 + ((self.lost - GOOD).max(0.0) / 0.1).min(4.0)))
    }

    /// More rounds where frames get lost.
    pub(crate) fn longer(&self, rounds: u8) -> u8 {
        let more = [0.1, 0.2, 0.35, 0.5, 0.65].into_iter().filter(|share| self.lost > *share).count();
        rounds * u8::try_from(more + 1).unwrap_or(1) + self.sick
    }

    pub(crate) fn fell_ill(&mut self, degrees: u8) {
        self.sick = self.sick.saturating_add(degrees).min(SICK_MAX);
        self.well = 0;
    }

    /// A ping was answered.
    fn answered(&mut self, after_rounds: u8) {
        self.count(0.0);
        if after_rounds == 0 && self.sick > 0 {
            self.well += 1;
            if self.well >= WELL {
                (self.sick, self.well) = (self.sick - 1, 0);
            }
        }
    }

    fn count(&mut self, lost: f64) {
        self.lost += (lost - self.lost) * self.weight;
        self.weight = (self.weight / (1.0 + self.weight)).max(WEIGHT);
    }

    /// So many pings of a node that lives were not.
    fn missed(&mut self, rounds: u8) {
        for _ in 0..rounds {
            self.count(1.0);
        }
    }

    /// Rounds of silence after which it is dead rather than unlucky.
    fn rounds(&self, helpers: usize) -> u8 {
        // Two standard deviations of the estimate on the safe side.
        let doubt = 2.0 * (self.lost * (1.0 - self.lost) * self.weight / 2.0).sqrt();
        let direct = (self.lost + doubt).clamp(CLEAN, 0.95);
        // By way of another one four frames have to arrive instead of two.
        let helped = 1.0 - (1.0 - direct) * (1.0 - direct);
        let helpers = i32::try_from(helpers.min(HELPERS)).unwrap_or(0);
        let round = direct * helped.powi(helpers).max(SHARED_FATE);
        // The first round is a ping alone.
        let rounds = 1.0 + ((WRONG / direct).ln() / round.ln()).ceil();
        let rounds = (2..=ROUNDS_MAX).rev().find(|whole| f64::from(*whole) <= rounds).unwrap_or(2);
        rounds.saturating_add(self.sick)
    }
}

impl<T: Trust> Membership<T> {
    /// Begins and ends looking after nodes, so that `neighbours` are watched and no others.
    pub(super) fn watch_only(&mut self, neighbours: &[NodeId]) {
        let gone: Vec<NodeId> = self.watches.ids().filter(|id| !neighbours.contains(id)).collect();
        for id in gone {
            if let Some(watch) = self.watches.all.remove(&id) {
                self.timers.unset(watch.at, Timer::Watch(id));
            }
        }
        for id in neighbours {
            if self.watches.contains(id) {
                continue;
            }
            let wait = if self.links.contains(id) { self.probe_interval() } else { LINK_GRACE };
            let at = self.now + self.rng.jittered(wait);
            let watch = Watch {
                at,
                heard: self.now,
                rounds: 0,
                pinged: None,
                open: None,
                nonce: 0,
                is_urgent: false,
            };
            self.watches.all.insert(*id, watch);
            self.timers.set(at, Timer::Watch(*id));
        }
    }

    /// A frame came over the peer's link, or word signed by it.
    pub(super) fn heard(&mut self, peer: &NodeId) {
        self.links.heard(peer, self.now);
        let Some(watch) = self.watches.all.get_mut(peer) else { return };
        let (rounds, is_urgent) = (watch.rounds, watch.is_urgent);
        watch.open = watch.pinged.map(|(seq, _)| seq).or(watch.open);
        watch.calm(self.now);
        watch.nonce = 0;
        self.watches.missed(rounds);
        if rounds > 0 || is_urgent {
            self.reconsider(peer);
        }
    }

    pub(super) fn handle_pong(&mut self, peer: &NodeId, seq: u32) {
        let Some(watch) = self.watches.all.get_mut(peer) else { return };
        let rounds = watch.rounds;
        if let Some((_, at)) = watch.pinged.take_if(|(sent, _)| *sent == seq) {
            self.links.measured(peer, self.now.saturating_duration_since(at));
            self.watches.answered(rounds);
        } else if watch.open.take_if(|open| *open == seq).is_some() {
            self.watches.answered(rounds);
        }
    }

    /// Asks at once, since others accuse the node or its link is lost.
    pub(super) fn watch_closely(&mut self, id: &NodeId, is_missing: bool) {
        let Some(watch) = self.watches.all.get_mut(id) else { return };
        if is_missing {
            watch.rounds = watch.rounds.max(1);
        }
        if !watch.is_urgent {
            watch.is_urgent = true;
            if watch.pinged.is_none() {
                self.arm_watch(id, Duration::from_millis(1));
            }
        }
    }

    pub(super) fn handle_watch_due(&mut self, id: NodeId) {
        let is_linked = self.links.contains(&id);
        let interval = if is_linked { self.probe_interval() } else { UNLINKED_INTERVAL };
        let helpers = self.helpers(&id).len();
        let (needed, wait) = (self.watches.rounds(helpers), self.answer_wait(&id));
        let is_dialed = self.dials.get(&id).is_some_and(|dial| dial.failed > 0);
        let Some(watch) = self.watches.all.get_mut(&id).filter(|watch| watch.at <= self.now) else { return };
        let silent = self.now.saturating_duration_since(watch.heard);
        if watch.rounds == 0 && !watch.is_urgent && watch.pinged.is_none() && silent < interval {
            let wait = interval - silent;
            let wait = wait + self.rng.between(Duration::ZERO, interval / 8);
            self.arm_watch(&id, wait);
            return;
        }
        let needed = if watch.is_urgent { needed.div_ceil(2) } else { needed };
        // Whom nobody asked nobody failed to hear.
        if watch.pinged.is_some() && (is_linked || is_dialed || helpers > 0 || watch.rounds > 0) {
            watch.rounds = watch.rounds.saturating_add(1).min(ROUNDS_MAX + SICK_MAX);
        }
        let rounds = watch.rounds;
        let nonce = if watch.nonce == 0 { self.rng.next() | 1 } else { watch.nonce };
        self.watches.seq = self.watches.seq.wrapping_add(1);
        let seq = self.watches.seq;
        if let Some(watch) = self.watches.all.get_mut(&id) {
            (watch.pinged, watch.nonce) = (Some((seq, self.now)), nonce);
            let is_lost = watch.open.take().is_some();
            self.watches.missed(u8::from(is_lost));
        }
        if is_linked {
            self.send(id, &Message::Ping { seq });
        }
        if rounds >= 1 || !is_linked {
            self.ask_others(&id, nonce);
        }
        // On a clean network the first silence is doubt enough for whoever looks for a node to use.
        if rounds > 0 && rounds >= needed / 2 {
            self.suspect_if_alive(&id);
        }
        let has_testified = rounds >= needed;
        if has_testified {
            self.testify(&id, Evidence::Silent);
        }
        self.arm_watch(&id, if has_testified { interval.max(wait) } else { wait });
    }

    fn arm_watch(&mut self, id: &NodeId, wait: Duration) {
        let at = self.now + at_least_a_millisecond(wait);
        if let Some(watch) = self.watches.all.get_mut(id) {
            let old = std::mem::replace(&mut watch.at, at);
            self.timers.unset(old, Timer::Watch(*id));
            self.timers.set(at, Timer::Watch(*id));
        }
    }

    /// Fewer neighbours are pinged more often; the traffic stays about the same.
    fn probe_interval(&self) -> Duration {
        let longest = self.config.probe_interval;
        let share = u32::try_from(self.watches.all.len().max(1)).unwrap_or(u32::MAX);
        let neighbours = u32::try_from(super::rings::NEIGHBOURS).unwrap_or(u32::MAX);
        (longest * share / neighbours).clamp(longest * 2 / 5, longest)
    }

    fn answer_wait(&self, id: &NodeId) -> Duration {
        let wait = self.links.rtt(id).map_or(UNMEASURED, |(smooth, deviation)| smooth * 2 + deviation * 4);
        self.watches.patience(wait.clamp(ANSWER_MIN, ANSWER_MAX))
    }

    fn helpers(&self, subject: &NodeId) -> Vec<NodeId> {
        let is_helper = |peer: &NodeId| peer != subject && self.watches.is_quiet(peer);
        let members = self.links.peers().filter(|(_, role)| *role == Role::Member);
        members.map(|(peer, _)| peer).filter(is_helper).collect()
    }

    fn ask_others(&mut self, subject: &NodeId, nonce: u64) {
        let helpers = self.helpers(subject);
        let ask = Message::Ask { subject: *subject.as_bytes(), nonce };
        for helper in self.rng.pick(helpers, HELPERS) {
            self.send(helper, &ask);
        }
    }

    /// Asks for a node whether it is a neighbour or not.
    pub(super) fn ask_for(&mut self, subject: &NodeId, nonce: u64) {
        self.ask_others(subject, nonce);
        if self.links.contains(subject) {
            self.send(*subject, &Message::Ask { subject: *subject.as_bytes(), nonce });
        }
    }

    /// A question on its way: about this node, or to be passed on to a linked one.
    pub(super) fn handle_ask(&mut self, from: NodeId, subject: RawId, nonce: u64) {
        if subject == *self.me.as_bytes() {
            if self.own.as_ref().is_some_and(|own| !own.has_ended()) && self.may_sign() {
                let signature = self.trust.sign(wire::HEARD, &wire::heard_statement(nonce));
                self.send(from, &Message::Heard { subject, nonce, signature: signature.into() });
            }
            return;
        }
        let Some(id) = self.known(&subject).filter(|id| *id != from && self.links.contains(id)) else {
            return;
        };
        self.watches.asked.push_back((nonce, from));
        if self.watches.asked.len() > ASKED_MAX {
            self.watches.asked.pop_front();
        }
        self.send(id, &Message::Ask { subject, nonce });
    }

    fn may_sign(&mut self) -> bool {
        let (since, count) = self.watches.signed;
        if since.is_none_or(|since| self.now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            self.watches.signed = (Some(self.now), 1);
            return true;
        }
        self.watches.signed = (since, count + 1);
        count < HEARD_PER_SECOND
    }

    pub(super) fn handle_heard(&mut self, subject: RawId, nonce: u64, signature: Signature) {
        let Some(id) = self.known(&subject) else { return };
        if self.is_answer(&id, nonce) {
            if self.trust.is_signed(&id, wire::HEARD, &wire::heard_statement(nonce), &signature) {
                self.heard_of(&id);
                self.acquit(&id);
            }
            return;
        }
        if self.watches.all.get(&id).is_some_and(|watch| watch.nonce == nonce && nonce != 0) {
            if self.trust.is_signed(&id, wire::HEARD, &wire::heard_statement(nonce), &signature) {
                self.heard_of(&id);
            }
            return;
        }
        let asked = self.watches.asked.iter().rev().find(|(number, asker)| *number == nonce && *asker != id);
        if let Some((_, asker)) = asked.copied() {
            self.send(asker, &Message::Heard { subject, nonce, signature: signature.into() });
        }
    }

    /// Signed word of a neighbour came by way of others.
    fn heard_of(&mut self, id: &NodeId) {
        let Some(watch) = self.watches.all.get_mut(id) else { return };
        // The way over others is the longer one: what was asked directly is lost, too.
        let missed = watch.rounds + u8::from(watch.pinged.is_some() && self.links.contains(id));
        watch.calm(self.now);
        watch.nonce = 0;
        self.watches.missed(missed);
        self.reconsider(id);
    }

    /// This process did not run for a while: what nobody answered meanwhile says nothing.
    pub(super) fn thaw(&mut self) {
        self.watches.fell_ill(2);
        let ids: Vec<NodeId> = self.watches.ids().collect();
        for id in ids {
            if let Some(watch) = self.watches.all.get_mut(&id) {
                watch.calm(self.now);
            }
            let wait = self.rng.jittered(self.probe_interval());
            self.arm_watch(&id, wait);
        }
        self.adjourn_cases();
    }

    /// Whether this node has first-hand reason to take the node for dead now.
    pub(super) fn hears(&self, id: &NodeId) -> bool {
        let patience = self.config.probe_interval + self.config.probe_interval / 2;
        let heard = self
            .links
            .heard_at(id)
            .into_iter()
            .chain(self.watches.all.get(id).map(|watch| watch.heard))
            .max();
        let is_recent = heard.is_some_and(|at| self.now.saturating_duration_since(at) < patience);
        is_recent && self.watches.all.get(id).is_none_or(|watch| watch.rounds == 0)
    }
}
