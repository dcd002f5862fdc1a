//! The registry as one node sees it: the merged entries, its own among them, and when each of them last moved by this node's own clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::contents::Contents;
use super::limits::NODES_MAX;
use super::node::{Entry, Facts, Status};

/// How a node of the registry does, as far as it can be told from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Life {
    /// Its entry moved within the threshold.
    Online,
    /// Its entry has not moved for longer.
    Stale,
    /// It said that it stops.
    Offline,
}

/// A change that somebody may want to be told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// An id that was not here.
    Joined(String),
    /// A node said that it stops.
    Left(String),
    /// A node was silent for longer than the threshold.
    Stale(String),
    /// A node that was stale or offline moved again.
    Returned(String),
    /// Somebody counts in this node's name, at another place.
    Contested,
}

/// The merged registry. Reads no clock: `now` is this machine's monotonic clock, `now_ms` what its entries carry.
#[derive(Debug, Clone)]
pub(super) struct Local {
    facts: Facts,
    own: Entry,
    others: BTreeMap<String, Known>,
    stale: Duration,
    changes: Vec<Change>,
}

/// What came of merging.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Moved {
    /// All of it was known.
    #[default]
    Nothing,
    /// Signs of life; others need to hear of them within a heartbeat.
    Signs,
    /// Something that others need to hear of now.
    News,
}

#[derive(Debug, Clone)]
struct Known {
    entry: Entry,
    moved: Instant,
    life: Life,
}

impl Local {
    /// A registry with this node alone, and what the file has of its earlier life. Its counter begins at its clock, so that
    /// it is past that life even where nobody is left who knows of it; a clock that went back is mended by [`Self::merge`].
    pub(super) fn new(facts: Facts, before: Option<&Entry>, stale: Duration, now_ms: u64) -> Self {
        let counter = now_ms.max(before.map_or(0, Entry::counter) + 1);
        let own = Entry::own(&facts, Status::Online, before, counter, now_ms);
        Self { facts, own, others: BTreeMap::new(), stale, changes: Vec::new() }
    }

    pub(super) fn own(&self) -> &Entry {
        &self.own
    }

    /// Counts on: the sign of life. `status` is offline for the last one.
    pub(super) fn beat(&mut self, status: Status, now_ms: u64) {
        let last = self.own.last_seen();
        self.own = Entry::own(&self.facts, status, Some(&self.own), self.own.counter() + 1, now_ms.max(last));
    }

    /// Says something else of itself. True when it is something else.
    pub(super) fn set(&mut self, facts: Facts, now_ms: u64) -> bool {
        if facts == self.facts {
            return false;
        }
        self.facts = facts;
        self.beat(Status::Online, now_ms);
        true
    }

    /// Takes in what others wrote.
    ///
    /// Of this node only it itself knows: an entry of its id that is not its own makes it count past that one and say again
    /// what is true. What an unknown hand added to its entry stays.
    pub(super) fn merge(
        &mut self,
        entries: impl IntoIterator<Item = Entry>,
        now: Instant,
        now_ms: u64,
    ) -> Moved {
        let one = |entry: Entry| {
            if entry.id() == self.own.id() { self.answer(&entry, now_ms) } else { self.take(entry, now) }
        };
        entries.into_iter().map(one).max().unwrap_or_default()
    }

    /// Takes in an entry whose node somebody sees alive who is not told each time it counts. It moves once in `every`.
    pub(super) fn sight(&mut self, entry: Entry, every: Duration, now: Instant, now_ms: u64) -> Moved {
        let known = self.others.get(entry.id());
        if known.is_some_and(|known| known.life == Life::Online && known.moved + every > now) {
            return self.merge([entry], now, now_ms);
        }
        let later = known.map(|known| &known.entry).filter(|known| known.order(&entry).is_gt()).cloned();
        self.merge([later.unwrap_or(entry).seen(now_ms)], now, now_ms)
    }

    fn answer(&mut self, said: &Entry, now_ms: u64) -> Moved {
        // An older word of ours that is still on its way, or one that somebody has only seen later than we wrote it.
        if said.counter() < self.own.counter() || said.is_but_for_its_time(&self.own) {
            return Moved::Nothing;
        }
        let is_elsewhere = (said.host(), said.port()) != (self.own.host(), self.own.port());
        if said.counter() > self.own.counter() && is_elsewhere {
            self.changes.push(Change::Contested);
        }
        let counter = said.counter() + 1;
        let now_ms = now_ms.max(self.own.last_seen());
        self.own = Entry::own(&self.facts, self.own.status(), Some(said), counter, now_ms);
        Moved::News
    }

    fn take(&mut self, entry: Entry, now: Instant) -> Moved {
        let gone = entry.status() == Status::Offline;
        let life = if gone { Life::Offline } else { Life::Online };
        let id = entry.id().to_owned();
        let Some(known) = self.others.get_mut(&id) else {
            if self.others.len() >= NODES_MAX {
                return Moved::Nothing;
            }
            self.changes.push(Change::Joined(id.clone()));
            self.others.insert(id, Known { entry, moved: now, life });
            return Moved::News;
        };
        if entry.order(&known.entry).is_le() {
            return Moved::Nothing;
        }
        match (known.life, life) {
            (Life::Stale | Life::Offline, Life::Online) => self.changes.push(Change::Returned(id)),
            (Life::Online | Life::Stale, Life::Offline) => self.changes.push(Change::Left(id)),
            _ => {}
        }
        let same = known.life == life && entry.says_the_same(&known.entry);
        *known = Known { entry, moved: now, life };
        if same { Moved::Signs } else { Moved::News }
    }

    /// Notes who has been silent for too long. Returns when to look again.
    pub(super) fn tick(&mut self, now: Instant) -> Option<Instant> {
        let mut next = None;
        for (id, known) in self.others.iter_mut().filter(|(_, known)| known.life == Life::Online) {
            let due = known.moved + self.stale;
            if due <= now {
                known.life = Life::Stale;
                self.changes.push(Change::Stale(id.clone()));
            } else {
                next = Some(next.map_or(due, |next: Instant| next.min(due)));
            }
        }
        next
    }

    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// All entries with their lives, this node's included.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&Entry, Life, bool)> {
        let life = if self.own.status() == Status::Offline { Life::Offline } else { Life::Online };
        let others = self.others.values().map(|known| (&known.entry, known.life, false));
        std::iter::once((&self.own, life, true)).chain(others)
    }

    /// Whether a file lacks something that only a writer can give it: this node's word, or a living node.
    pub(super) fn is_missing_from(&self, file: &Contents) -> bool {
        let living = self.others.values().filter(|known| known.life == Life::Online);
        file.nodes().get(self.own.id()) != Some(&self.own)
            || living.map(|known| known.entry.id()).any(|id| !file.nodes().contains_key(id))
    }

    /// Puts what is known here into a file under the lock. Entries of dead nodes that the file has lost stay lost; those of
    /// living ones come back. True when the file has to be written.
    pub(super) fn write_into(&self, file: &mut Contents) -> bool {
        let said = file.nodes().get(self.own.id());
        // One that counts further is answered first, so that everybody who knows it takes the answer for the later one.
        let mut changed = said.is_none_or(|said| *said != self.own && said.counter() <= self.own.counter());
        if changed {
            file.put(self.own.clone());
        }
        for known in self.others.values() {
            if known.life == Life::Online || file.nodes().contains_key(known.entry.id()) {
                changed |= file.merge_entry(known.entry.clone());
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const STALE: Duration = Duration::from_secs(90);
    const HOUR_MS: u64 = 3_600_000;

    fn facts(name: &str) -> Facts {
        Facts {
            name: name.parse().expect("a name"),
            node: None,
            host: "h".to_owned(),
            port: 1,
            agents: Vec::new(),
            providers: Vec::new(),
            models: Vec::new(),
            capabilities: Vec::new(),
            version: String::new(),
        }
    }

    fn life(local: &Local, id: &str) -> Life {
        local.nodes().find(|(entry, ..)| entry.id() == id).map(|(_, life, _)| life).expect("is there")
    }

    fn own(local: &Local) -> Entry {
        local.own().clone()
    }

    #[test]
    fn an_hour_between_two_machines_clocks_is_nothing() {
        let start = Instant::now();
        for their_ms in [10 * HOUR_MS - HOUR_MS, 10 * HOUR_MS + HOUR_MS] {
            let mut here = Local::new(facts("here"), None, STALE, 10 * HOUR_MS);
            let mut there = Local::new(facts("there"), None, STALE, their_ms);
            let mut now = start;
            here.merge([own(&there)], now, 10 * HOUR_MS);
            for beat in 1..10 {
                now += Duration::from_secs(80);
                there.beat(Status::Online, their_ms + beat * 80_000);
                assert_eq!(here.merge([own(&there)], now, 10 * HOUR_MS + beat * 80_000), Moved::Signs);
                here.tick(now);
                assert_eq!(life(&here, "there"), Life::Online, "a clock of {their_ms}");
            }
            here.tick(now + STALE);
            assert_eq!(life(&here, "there"), Life::Stale);
            there.beat(Status::Online, 0);
            here.merge([own(&there)], now + STALE, 0);
            assert_eq!(life(&here, "there"), Life::Online, "also when its clock went back");
            assert_eq!(
                here.take_changes(),
                ["Joined", "Stale", "Returned"].map(|what| match what {
                    "Joined" => Change::Joined("there".into()),
                    "Stale" => Change::Stale("there".into()),
                    _ => Change::Returned("there".into()),
                })
            );
        }
    }

    #[test]
    fn what_is_only_repeated_is_no_sign_of_life() {
        let now = Instant::now();
        let mut here = Local::new(facts("here"), None, STALE, 1);
        let there = own(&Local::new(facts("there"), None, STALE, 1));
        here.merge([there.clone()], now, 1);
        assert_eq!(here.merge([there.clone()], now + STALE / 2, 1), Moved::Nothing);
        assert_eq!(here.tick(now + STALE / 2), Some(now + STALE));
        assert_eq!(here.tick(now + STALE), None);
        assert_eq!(life(&here, "there"), Life::Stale);
    }

    #[test]
    fn a_clean_stop_is_offline_at_once_and_a_restart_is_back_whatever_its_clock() {
        let now = Instant::now();
        let mut here = Local::new(facts("here"), None, STALE, 1);
        let mut there = Local::new(facts("there"), None, STALE, HOUR_MS);
        there.beat(Status::Offline, HOUR_MS);
        here.merge([own(&there)], now, 1);
        assert_eq!(life(&here, "there"), Life::Offline);
        // Its clock begins at zero, and it finds its own entry with us.
        let mut again = Local::new(facts("there"), None, STALE, 0);
        assert_eq!(again.merge([own(&there)], now, 0), Moved::News);
        assert!(again.own().counter() > there.own().counter());
        here.merge([own(&again)], now, 1);
        assert_eq!(life(&here, "there"), Life::Online);
    }

    #[test]
    fn what_others_say_of_this_node_is_answered_and_what_they_add_is_kept() {
        let now = Instant::now();
        let mut here = Local::new(facts("here"), None, STALE, 5);
        for (status, rack) in [("offline", 1), ("online", 2), ("degraded", 3)] {
            let mut said = here.own().value();
            said["status"] = status.into();
            said["metadata"] = json!({"rack": rack});
            let said = Entry::read("here", said).expect("an entry");
            assert_eq!(here.merge([said.clone()], now, 6), Moved::News);
            assert!(here.own().order(&said).is_gt());
            assert_eq!(here.own().status(), Status::Online);
            assert_eq!(here.own().value()["metadata"], json!({"rack": rack}));
            let answered = own(&here);
            let relayed = answered.clone().seen(9);
            assert_eq!(here.merge([said, answered, relayed], now, 7), Moved::Nothing, "one answer is enough");
        }
    }

    #[test]
    fn a_restart_keeps_what_others_added_and_counts_past_its_earlier_life() {
        let before = json!({"name": "here", "metadata": {"rack": 1}, "qmt": {"counter": 900}});
        let before = Entry::read("here", before).expect("an entry");
        let here = Local::new(facts("here"), Some(&before), STALE, 5);
        assert_eq!((here.own().counter(), here.own().value()["metadata"].clone()), (901, json!({"rack": 1})));
    }

    #[test]
    fn a_later_word_in_this_nodes_name_is_answered_and_not_overwritten() {
        let now = Instant::now();
        let mut here = Local::new(facts("here"), None, STALE, 5);
        let later = json!({"name": "here", "host": "elsewhere", "qmt": {"counter": 900}});
        let mut file: Contents = [Entry::read("here", later).expect("an entry")].into_iter().collect();
        assert!(here.is_missing_from(&file) && !here.write_into(&mut file));
        assert_eq!(here.merge(file.nodes().values().cloned(), now, 6), Moved::News);
        assert_eq!(here.take_changes(), [Change::Contested]);
        assert!(here.write_into(&mut file) && !here.is_missing_from(&file));
        assert_eq!(file.nodes()["here"].counter(), 901);
    }

    #[test]
    fn a_lost_file_gets_back_the_living_and_not_the_dead() {
        let now = Instant::now();
        let mut here = Local::new(facts("here"), None, STALE, 1);
        here.merge(["dead", "alive"].map(|name| own(&Local::new(facts(name), None, STALE, 1))), now, 1);
        let mut alive = Local::new(facts("alive"), None, STALE, 2);
        alive.beat(Status::Online, 2);
        here.merge([own(&alive)], now + STALE, 1);
        here.tick(now + STALE);
        let mut lost = Contents::default();
        assert!(here.is_missing_from(&lost) && here.write_into(&mut lost));
        assert_eq!(lost.nodes().keys().collect::<Vec<_>>(), ["alive", "here"]);
        assert!(!here.is_missing_from(&lost) && !here.write_into(&mut lost), "nothing is missing any more");
    }

    #[test]
    fn a_node_that_gossip_sees_stays_online_without_counting() {
        let (start, beat) = (Instant::now(), Duration::from_secs(30));
        let mut here = Local::new(facts("here"), None, STALE, 1);
        let there = own(&Local::new(facts("there"), None, STALE, 1));
        assert_eq!(here.sight(there.clone(), beat, start, 1), Moved::News);
        assert_eq!(here.sight(there.clone(), beat, start + beat / 2, 2), Moved::Nothing);
        for beats in 1..9 {
            let now = start + beat * beats;
            assert_eq!(here.sight(there.clone(), beat, now, u64::from(beats) + 2), Moved::Signs);
            here.tick(now);
            assert_eq!(life(&here, "there"), Life::Online);
        }
        here.tick(start + beat * 8 + STALE);
        assert_eq!(life(&here, "there"), Life::Stale);
    }
}
