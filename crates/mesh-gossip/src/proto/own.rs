//! This node's own record: the only one it signs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_identity::{NodeAddr, NodeId};

use super::record::{Card, Entry, OwnCard, Record};
use super::trust::{Standing, Trust};
use super::wire::{self, Course};
use crate::error::SetError;
use crate::limits;
use crate::member::{Audience, Incarnation};

/// A report of our death is contradicted at most this often: each costs every member a frame.
/// Half of the time that a bare majority of liars would need to convict it again.
pub(crate) const REFUTATION_PAUSE: Duration = Duration::from_millis(300);

/// So many contradictions of what this process said show that another one is alive: what an earlier process said is
/// outlived at once, twice if it ran in the same second with a clock that was set back.
const CONTRADICTIONS: usize = 3;
/// Within this time: two processes outdo each other with every exchange, every few seconds.
const CONTRADICTED_WITHIN: Duration = Duration::from_secs(600);

/// What this node says of itself.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) record: Record,
    grant: Vec<u8>,
    /// The highest version given out in this life.
    version: u64,
    refuted: Option<Instant>,
    contradicted: VecDeque<Instant>,
    /// What linked peers have not been sent yet.
    unsent: BTreeSet<String>,
    is_sent: bool,
}

impl Own {
    pub(crate) fn new(
        me: NodeId,
        (grant, standing): (Vec<u8>, Standing),
        (incarnation, addr): (Incarnation, &NodeAddr),
        trust: &impl Trust,
    ) -> Self {
        let card = OwnCard {
            incarnation,
            version: 1,
            course: Course::Running,
            addr,
            grant: &grant,
            standing: &standing,
        };
        let record = Record::own(me, Card::signed(&card, trust));
        Self {
            record,
            grant,
            version: 1,
            refuted: None,
            contradicted: VecDeque::new(),
            unsent: BTreeSet::new(),
            is_sent: true,
        }
    }

    /// Whether it has said goodbye.
    pub(crate) fn has_ended(&self) -> bool {
        self.record.card.course != Course::Running
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.record.card.incarnation
    }

    /// Whether linked peers were sent all there is.
    pub(crate) fn is_sent(&self) -> bool {
        self.is_sent
    }

    /// The keys that linked peers have not been sent; now they are.
    pub(crate) fn take_unsent(&mut self) -> BTreeSet<String> {
        self.is_sent = true;
        std::mem::take(&mut self.unsent)
    }

    /// Sets or removes a value. Returns whether anything changed.
    pub(crate) fn set(
        &mut self,
        key: &str,
        (value, audience): (Option<Bytes>, Audience),
        trust: &impl Trust,
    ) -> Result<bool, SetError> {
        let held = self.record.entries.get(key);
        if held.is_some_and(|held| held.value == value && held.audience == audience) {
            return Ok(false);
        }
        match held {
            None if value.is_none() => return Ok(false),
            None if self.record.entries.len() >= limits::KEYS_MAX => return Err(SetError::TooManyKeys),
            Some(held) if held.audience != audience && value.is_some() => {
                return Err(SetError::AudienceFixed);
            }
            _ => {}
        }
        let audience = held.map_or(audience, |held| held.audience);
        let before = held.and_then(|held| held.value.as_ref()).map_or(0, Bytes::len);
        let after = self.record.bytes() - before + value.as_ref().map_or(0, Bytes::len);
        if after > limits::NODE_BYTES_MAX {
            return Err(SetError::RecordFull);
        }
        self.version += 1;
        let entry = Entry::signed(key, (self.version, audience, value), self.incarnation().life(), trust);
        self.record.set_entry(key, entry);
        self.unsent.insert(key.to_owned());
        self.is_sent = false;
        Ok(true)
    }

    /// New addresses. Returns whether anything changed.
    pub(crate) fn set_addr(&mut self, addr: &NodeAddr, trust: &impl Trust) -> bool {
        if self.record.card.addr == *addr {
            return false;
        }
        self.issue(self.incarnation(), self.record.card.course, Some(addr), trust);
        true
    }

    /// A renewed grant. It comes with the next incarnation: members that saw the old one end take it back.
    pub(crate) fn set_grant(&mut self, grant: Vec<u8>, standing: Standing, trust: &impl Trust) {
        self.grant = grant;
        self.record.card.standing = standing;
        self.step(self.incarnation().refuted(), trust);
    }

    /// Says goodbye. Final for this incarnation.
    pub(crate) fn end(&mut self, course: Course, trust: &impl Trust) {
        self.issue(self.incarnation(), course, None, trust);
    }

    /// Contradicts a report that `incarnation` is dead. Returns whether the record changed.
    pub(crate) fn refute(&mut self, incarnation: Incarnation, now: Instant, trust: &impl Trust) -> bool {
        let is_early =
            self.refuted.is_some_and(|last| now.saturating_duration_since(last) < REFUTATION_PAUSE);
        if incarnation != self.incarnation() || self.has_ended() || is_early {
            return false;
        }
        self.refuted = Some(now);
        self.step(incarnation.refuted(), trust);
        true
    }

    /// Whether `sent`, which claims to be of this node, is signed by it and later than all that this process said:
    /// then an earlier process had a clock that was ahead, or ran within the same second.
    pub(crate) fn is_contradicted_by(&self, sent: &wire::NodeRecord, trust: &impl Trust) -> bool {
        let me = &self.record.id;
        let seen = Incarnation::from_u64(sent.card.incarnation);
        let card = &self.record.card;
        let is_later_card = (seen, sent.card.version) > (card.incarnation, card.version)
            || ((seen, sent.card.version) == (card.incarnation, card.version) && !card.is(&sent.card));
        if is_later_card
            && trust.is_signed(me, wire::CARD, &sent.card.statement(), &sent.card.signature.into())
        {
            return true;
        }
        let life = card.incarnation.life();
        seen.life() == life
            && sent.entries.iter().any(|entry| {
                !self.record.has_at_least(entry)
                    && trust.is_signed(me, wire::ENTRY, &entry.statement(life), &entry.signature.into())
            })
    }

    /// Notes a contradiction; whether there were so many that another process with this key is alive.
    pub(crate) fn is_contradicted_by_the_living(&mut self, now: Instant) -> bool {
        self.contradicted.push_back(now);
        self.contradicted.retain(|at| now.saturating_duration_since(*at) < CONTRADICTED_WITHIN);
        let is_alive = self.contradicted.len() >= CONTRADICTIONS;
        if is_alive {
            self.contradicted.clear();
        }
        is_alive
    }

    /// Starts a life after the one that `seen` names.
    pub(crate) fn outlive(&mut self, seen: Incarnation, trust: &impl Trust) {
        self.step(seen.max(self.incarnation()).next_life(), trust);
    }

    /// Goes on as `incarnation`; in a new life every value is signed anew.
    fn step(&mut self, incarnation: Incarnation, trust: &impl Trust) {
        let is_new_life = incarnation.life() != self.incarnation().life();
        let entries = if is_new_life { std::mem::take(&mut self.record.entries) } else { BTreeMap::new() };
        self.issue(incarnation, self.record.card.course, None, trust);
        for (key, entry) in entries.into_iter().filter(|(_, entry)| entry.value.is_some()) {
            self.version += 1;
            let entry =
                Entry::signed(&key, (self.version, entry.audience, entry.value), incarnation.life(), trust);
            self.record.set_entry(&key, entry);
            self.unsent.insert(key);
        }
    }

    fn issue(
        &mut self,
        incarnation: Incarnation,
        course: Course,
        addr: Option<&NodeAddr>,
        trust: &impl Trust,
    ) {
        self.version += 1;
        let old = &self.record.card;
        let card = OwnCard {
            incarnation,
            version: self.version,
            course,
            addr: addr.unwrap_or(&old.addr),
            grant: &self.grant,
            standing: &old.standing,
        };
        let card = Card::signed(&card, trust);
        self.record.set_card(card);
        self.is_sent = false;
    }
}
