//! Weighing a case: what most of the neighbours say, what the accused says, and what this node finds out itself.

use std::time::Duration;

use mesh_identity::NodeId;

use super::case::{ACQUITTED, CASES_MAX, Verdict};
use super::timers::Timer;
use super::trust::Trust;
use super::wire::Evidence;
use super::{Membership, at_least_a_millisecond};
use crate::event::DownWhy;

/// A case that the neighbours have not agreed on by then is dropped.
const CASE_MAX: Duration = Duration::from_secs(20);
/// Between two looks at a disputed case.
const LOOK: Duration = Duration::from_millis(250);
/// Rounds in which this node itself asks for the accused of a disputed case.
const INQUIRY: u8 = 4;

impl<T: Trust> Membership<T> {
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
        let heard_at = self.links.heard_at(id);
        let now = self.now;
        let Some(case) = self.cases.open.get(id) else { return Verdict::Dropped };
        let age = now.saturating_duration_since(case.since);
        let is_up =
            |juror: &NodeId| *juror == self.me || self.nodes.get(juror).is_some_and(super::Node::is_up);
        let jury: Vec<NodeId> = case.jury.iter().filter(|juror| is_up(juror)).copied().collect();
        let voices = jury.iter().filter(|juror| case.voices.contains_key(juror)).count();
        let saw_the_end =
            |juror: &&NodeId| case.voices.get(*juror).is_some_and(|voice| voice.evidence != Evidence::Silent);
        let seen = jury.iter().filter(saw_the_end).count();
        let is_seen = seen * 2 > jury.len() && seen >= 2;
        if is_mine {
            // Its own word to us, or its machine's: nothing to wait for.
            return Verdict::Dead(case.why(&case.voices.keys().copied().collect::<Vec<_>>()));
        }
        // What was heard before the process ended is no contradiction.
        if is_heard && !(is_seen && heard_at.is_none_or(|at| at <= case.since)) {
            self.reconsider(id);
            return if age > CASE_MAX { Verdict::Dropped } else { Verdict::Later(LOOK) };
        }
        let agreed = voices * 2 > jury.len() && voices >= 2;
        let (why, agreed_at) = (case.why(&jury), case.agreed);
        if voices > 0 {
            self.suspect_if_alive(id);
        }
        if agreed {
            // Those who have not spoken may know better; the more they are, the longer the accused has.
            let count = |some: usize| u32::try_from(some).unwrap_or(u32::MAX);
            let missing = count(jury.len() - voices);
            let grace = self.watches.weathered(self.config.grace);
            let grace = if missing == 0 && why != DownWhy::Silent {
                Duration::ZERO
            } else if is_seen {
                grace * 2 * count(jury.len() - seen) / count(jury.len())
            } else {
                grace * missing.saturating_add(1)
            };
            let since = agreed_at.unwrap_or(now);
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
        let is_alone = self.around(id, |_| false).iter().flatten().all(|one| *one == self.me);
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
}
