//! Records and revocations between nodes: pushed when they change, compared by hash now and then, so that who was away
//! or lost a frame converges.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_identity::{NodeId, Role};

use super::node::{Node, Phase};
use super::record::{Change, Part, Record, View, decode_addr};
use super::timers::Timer;
use super::trust::{Refusal, Trust};
use super::wire::{self, BUCKETS, BucketSet, DigestItem, Hash, Message, NodeRecord, RawId, Summary, bucket};
use super::{Membership, Output, at_least_a_millisecond};
use crate::event::{DownWhy, Event};
use crate::limits;
use crate::member::Incarnation;

/// Revocations in one frame: even of the largest size they stay below the bound of a frame.
const REVOCATIONS_PER_FRAME: usize = 256;
/// Up to so many nodes a digest names all; above, the parties first find out in which buckets they differ.
const WHOLE_DIGEST: usize = 64;
/// All buckets.
const ALL: BucketSet = BucketSet::These(u64::MAX);
/// News this young may still be on its way to the other one, too: a difference says nothing yet.
const IN_FLIGHT: Duration = Duration::from_millis(400);
/// After news the exchanges come faster for so long: whoever missed a push is found.
const HOT: Duration = Duration::from_secs(5);
/// How much slower they are in a quiet scope.
const QUIET: u32 = 5;

impl<T: Trust> Membership<T> {
    /// The first frames on a new link: who I am and (from one end, so as not to do it twice) all I know.
    pub(super) fn greet(&mut self, peer: NodeId, role: Role) {
        if let Some(own) = &self.own {
            let record = own.record.whole(self.view_of_own(role), !own.has_ended());
            self.send(peer, &Message::Records { records: vec![record] });
        }
        if self.own.is_none() || self.me < peer {
            self.compare(peer, self.view(role));
        }
        if !self.revocations.is_empty() {
            self.send_revocations(peer, Vec::new(), true);
        }
    }

    pub(super) fn handle_exchange(&mut self) {
        let interval = at_least_a_millisecond(self.config.exchange_interval);
        let is_hot = self.now.saturating_duration_since(self.changed) < HOT;
        // A client hears news by asking alone.
        let is_asking = self.own.is_none() || self.role == Role::Client || self.config.uninvited;
        let interval = if is_hot || is_asking { interval } else { interval * QUIET };
        let wait = self.rng.jittered(interval);
        self.timers.set(self.now + at_least_a_millisecond(wait), Timer::Exchange);
        let peers: Vec<_> = self.links.peers().collect();
        for (peer, role) in self.rng.pick(peers, self.config.exchange_fanout) {
            let records = self.root(self.view(role));
            let revocations = self.revocation_root();
            self.send(peer, &Message::Root { records, revocations });
            self.mend_own(peer, role);
        }
    }

    /// Roots are equal although the peer lacks what this node alone shows to it: a frame was lost. The peer compares.
    fn mend_own(&mut self, peer: NodeId, role: Role) {
        let shown = self.view_of_own(role);
        if let Some(own) = self.own.as_ref().filter(|_| shown != self.view(role)) {
            let summaries = vec![own.record.summary(shown)];
            self.send(peer, &Message::Summaries { summaries });
        }
    }

    pub(super) fn handle_root(&mut self, (from, view): (NodeId, View), records: Hash, revocations: Hash) {
        let is_young = self.now.saturating_duration_since(self.changed) < IN_FLIGHT;
        if records != self.root(view) && !is_young {
            self.compare(from, view);
        }
        if revocations != self.revocation_root() {
            self.send_revocations(from, Vec::new(), true);
        }
    }

    /// Begins to find out where the peer and this node differ.
    fn compare(&mut self, peer: NodeId, view: View) {
        if self.nodes.len() <= WHOLE_DIGEST {
            self.send_digest(peer, view, ALL);
        } else {
            let sums = self.bucket_sums(view).map(u128::to_le_bytes).to_vec();
            self.send(peer, &Message::Buckets { sums });
        }
    }

    pub(super) fn handle_buckets(&mut self, (from, view): (NodeId, View), sums: Vec<Hash>) {
        let pause = self.config.exchange_interval / 4;
        if sums.len() != BUCKETS || !self.links.may_answer(&from, pause, self.now) {
            return;
        }
        let mut differing = 0;
        for (number, (mine, theirs)) in self.bucket_sums(view).into_iter().zip(sums).enumerate() {
            if mine.to_le_bytes() != theirs {
                differing |= 1 << number;
            }
        }
        if differing != 0 {
            self.send_digest(from, view, BucketSet::These(differing));
        }
    }

    pub(super) fn handle_digest(
        &mut self,
        (from, view): (NodeId, View),
        buckets: BucketSet,
        items: Vec<DigestItem>,
    ) {
        let pause = self.config.exchange_interval / 4;
        if buckets != BucketSet::Named && !self.links.may_answer(&from, pause, self.now) {
            return;
        }
        let mut named = BTreeSet::new();
        let (mut summaries, mut records) = (Vec::new(), Vec::new());
        let (mut verdicts, mut questions) = (Vec::new(), Vec::new());
        for item in items {
            named.insert(item.id);
            let Some((record, is_alive, is_convicted)) = self.held(&item.id) else {
                if !item.dead {
                    summaries.push(Summary { id: item.id, incarnation: 0, card: 0, keys: Vec::new() });
                }
                continue;
            };
            let (mine, theirs) = (record.card.incarnation, Incarnation::from_u64(item.incarnation));
            if mine.life() > theirs.life() {
                records.push(record.whole(view, is_alive));
            } else if mine == theirs && is_convicted != item.dead {
                if is_convicted {
                    verdicts.push(record.id)
                } else {
                    questions.push(self.digest_item(record, false, view))
                }
            } else if mine != theirs || (!item.dead && item.print != record.print_of(view)) {
                summaries.push(record.summary(view));
            }
        }
        if let BucketSet::These(bits) = buckets {
            let is_asked = |id: &RawId| bits & (1 << bucket(id)) != 0 && !named.contains(id);
            let unnamed = self.offered().filter(|(record, ..)| is_asked(record.id.as_bytes()));
            for (record, is_alive, is_convicted) in unnamed {
                if is_convicted {
                    verdicts.push(record.id);
                }
                records.push(record.whole(view, is_alive));
            }
        }
        self.send_records(from, records);
        self.send_summaries(from, summaries);
        self.tell_verdict(from, &verdicts);
        if !questions.is_empty() && buckets != BucketSet::Named {
            self.send(from, &Message::Digest { buckets: BucketSet::Named, items: questions });
        }
    }

    pub(super) fn handle_summaries(&mut self, (from, view): (NodeId, View), summaries: Vec<Summary>) {
        let own_view = self.links.role(&from).map_or(view, |role| self.view_of_own(role));
        let (mut records, mut lacking) = (Vec::new(), Vec::new());
        for summary in summaries {
            let Some((record, is_alive, _)) = self.held(&summary.id) else { continue };
            let shown = if record.id == self.me { own_view } else { view };
            let (later, lacks) = record.compare(&summary, (shown, is_alive));
            records.extend(later);
            if lacks {
                lacking.push(record.summary(view));
            }
        }
        self.send_records(from, records);
        self.send_summaries(from, lacking);
    }

    /// Sends what is known of one node.
    pub(super) fn tell_of(&mut self, to: NodeId, id: &NodeId) {
        let Some(role) = self.links.role(&to) else { return };
        self.tell_whole(to, id, self.view(role));
    }

    pub(super) fn handle_records(&mut self, (from, view): (NodeId, View), records: Vec<NodeRecord>) {
        for sent in records {
            if sent.id == *self.me.as_bytes() {
                self.see_own(&sent);
            } else if let Err(why) = self.take_record((from, view), sent) {
                self.outputs.push_back(Output::Refused { from, why });
            }
        }
    }

    fn take_record(&mut self, (from, view): (NodeId, View), sent: NodeRecord) -> Result<(), Refusal> {
        let id = match self.known(&sent.id) {
            Some(id) => id,
            None => NodeId::from_bytes(&sent.id).map_err(|_| Refusal::BadSignature)?,
        };
        let is_vouched = sent.alive && !self.config.uninvited && self.links.role(&from) == Some(Role::Member);
        let held =
            self.nodes.get(&id).map(|node| (&*node.record, node.phase != Phase::Down(DownWhy::Revoked)));
        let is_known_word = held.is_some_and(|(held, _)| held.is_all_of(&sent));
        if is_known_word {
            self.follow_vouching((from, id), is_vouched);
            return Ok(());
        }
        let part = Part::check(id, sent, held, (&self.trust, self.wall_now()))?;
        if !self.nodes.contains_key(&id) {
            return self.take_new(from, part, is_vouched);
        }
        let merged = self.nodes.update(&id, |node| Arc::make_mut(&mut node.record).merge(part));
        let change = merged.unwrap_or_else(|| Ok(Change::default()))?;
        if change.outdated && from == id {
            self.tell_whole(from, &id, view);
        }
        if change.is_any() {
            self.changed = self.now;
            self.note_fresh(from, id, &change.keys);
            self.follow(id, &change, (false, is_vouched));
        } else {
            self.follow_vouching((from, id), is_vouched);
        }
        Ok(())
    }

    fn tell_whole(&mut self, to: NodeId, id: &NodeId, view: View) {
        if let Some((record, is_alive, _)) = self.held(id.as_bytes()) {
            let record = record.whole(view, is_alive);
            self.send(to, &Message::Records { records: vec![record] });
        }
    }

    /// The record is known; the peer's opinion of its node may be worth something.
    fn follow_vouching(&mut self, (from, id): (NodeId, NodeId), is_vouched: bool) {
        let Some(node) = self.nodes.get(&id) else { return };
        if is_vouched && node.phase == Phase::Unheard {
            self.follow(id, &Change::default(), (false, true));
        } else if is_vouched && node.is_convicted() && from != id {
            self.tell_verdict(from, &[id]);
        }
    }

    fn take_new(&mut self, from: NodeId, part: Part, is_vouched: bool) -> Result<(), Refusal> {
        let (id, keys) = (part.id, part.keys());
        let record = Record::new(part)?;
        if self.nodes.len() >= self.config.nodes_max {
            let is_spare = |node: &Node| node.is_dead() || node.phase == Phase::Unheard;
            let spare = self.nodes.iter().filter(|(id, node)| is_spare(node) && !self.links.contains(id));
            // Those of whom nobody says that they live go first, then the oldest dead.
            let oldest = spare.min_by_key(|(id, node)| (node.is_dead(), node.since, **id)).map(|(id, _)| *id);
            self.forget(&oldest.ok_or(Refusal::Full)?);
        }
        // `follow` gives it the phase that it deserves.
        self.nodes.insert(id, Node::new(record, self.now));
        self.changed = self.now;
        self.note_fresh(from, id, &keys);
        self.follow(id, &Change::default(), (true, is_vouched));
        Ok(())
    }

    /// Somebody showed us our own record. If it is later than what this process said, an earlier process said it; or,
    /// if that happens again and again, another one that is alive.
    fn see_own(&mut self, sent: &NodeRecord) {
        let Some(own) = self.own.as_mut().filter(|own| !own.has_ended()) else { return };
        if own.is_contradicted_by(sent, &self.trust) {
            own.outlive(Incarnation::from_u64(sent.card.incarnation), &self.trust);
            if own.is_contradicted_by_the_living(self.now) {
                let addr = decode_addr(&sent.card.addr).unwrap_or_default();
                self.outputs.push_back(Output::Event(Event::KeyInUseTwice { addr }));
            }
            self.push_own_soon();
        }
    }

    pub(super) fn note_fresh(&mut self, from: NodeId, id: NodeId, keys: &[String]) {
        let fresh = self.fresh.entry(id).or_default();
        fresh.keys.extend(keys.iter().cloned());
        fresh.sources.insert(from);
        self.push_soon();
    }

    /// Sends what changed: our own to every linked peer, others' to the neighbours that did not tell us.
    pub(super) fn push(&mut self) {
        self.is_push_set = false;
        self.push_own();
        let fresh = std::mem::take(&mut self.fresh);
        let mut queues: BTreeMap<NodeId, Vec<NodeRecord>> = BTreeMap::new();
        let peers: Vec<NodeId> = self.flood_peers().collect();
        for (id, news) in fresh {
            let Some(node) = self.nodes.get(&id) else { continue };
            let lacks = |peer: &&NodeId| **peer != id && !news.sources.contains(*peer);
            for peer in peers.iter().filter(lacks) {
                let view = self.view(Role::Member);
                queues.entry(*peer).or_default().push(node.record.only(view, node.is_up(), &news.keys));
            }
        }
        for (peer, records) in queues {
            self.send_records(peer, records);
        }
    }

    fn push_own(&mut self) {
        let Some(own) = &mut self.own else { return };
        if own.is_sent() {
            return;
        }
        let keys = own.take_unsent();
        let alive = !own.has_ended();
        let frame = |view| Message::Records { records: vec![own.record.only(view, alive, &keys)] }.encode();
        let frames = (frame(View::Member), frame(View::Client));
        // A large scope's members hear it from each other.
        let is_direct = |peer: &NodeId, role: Role| {
            role == Role::Client || self.overlay.peers.contains(peer) || self.overlay.peers.is_empty()
        };
        for (to, role) in self.links.peers().filter(|(peer, role)| is_direct(peer, *role)) {
            let frame = match self.view_of_own(role) {
                View::Member => frames.0.clone(),
                View::Client => frames.1.clone(),
            };
            self.outputs.push_back(Output::Send { to, frame });
        }
    }

    fn send_digest(&mut self, to: NodeId, view: View, buckets: BucketSet) {
        let is_in = |record: &Record| match buckets {
            BucketSet::These(bits) => bits & (1 << bucket(record.id.as_bytes())) != 0,
            BucketSet::Named => false,
        };
        let offered = self.offered().filter(|(record, ..)| is_in(record));
        let items = offered.map(|(record, _, dead)| self.digest_item(record, dead, view)).collect();
        self.send(to, &Message::Digest { buckets, items });
    }

    fn digest_item(&self, record: &Record, dead: bool, view: View) -> DigestItem {
        DigestItem {
            id: *record.id.as_bytes(),
            incarnation: record.card.incarnation.as_u64(),
            dead,
            print: record.print_of(view),
        }
    }

    fn send_records(&mut self, to: NodeId, records: Vec<NodeRecord>) {
        let (mut batch, mut bytes, mut total) = (Vec::new(), 0, 0);
        for record in records {
            let size = record.size();
            if total + size > limits::ANSWER_BYTES_MAX {
                break;
            }
            if bytes + size > limits::BATCH_BYTES && !batch.is_empty() {
                self.send(to, &Message::Records { records: std::mem::take(&mut batch) });
                bytes = 0;
            }
            (bytes, total) = (bytes + size, total + size);
            batch.push(record);
        }
        if !batch.is_empty() {
            self.send(to, &Message::Records { records: batch });
        }
    }

    fn send_summaries(&mut self, to: NodeId, summaries: Vec<Summary>) {
        let (mut batch, mut bytes, mut total) = (Vec::new(), 0, 0);
        for summary in summaries {
            let size = summary.size();
            if total + size > limits::ANSWER_BYTES_MAX {
                break;
            }
            if bytes + size > limits::BATCH_BYTES && !batch.is_empty() {
                self.send(to, &Message::Summaries { summaries: std::mem::take(&mut batch) });
                bytes = 0;
            }
            (bytes, total) = (bytes + size, total + size);
            batch.push(summary);
        }
        if !batch.is_empty() {
            self.send(to, &Message::Summaries { summaries: batch });
        }
    }

    pub(super) fn handle_revocations(
        &mut self,
        from: NodeId,
        (have, whole): (Vec<Hash>, Vec<Vec<u8>>),
        answer: bool,
    ) {
        for revocation in whole {
            self.take_revocation(from, &Bytes::from(revocation));
        }
        if answer {
            let have: BTreeSet<Hash> = have.into_iter().collect();
            let lacking = self.revocations.iter().filter(|(hash, _)| !have.contains(*hash));
            let lacking: Vec<_> =
                lacking.take(REVOCATIONS_PER_FRAME).map(|(_, whole)| whole.to_vec()).collect();
            let has_all = have.iter().all(|hash| self.revocations.contains_key(hash));
            if !lacking.is_empty() || !has_all {
                self.send_revocations(from, lacking, !has_all);
            }
        }
    }

    fn send_revocations(&mut self, to: NodeId, whole: Vec<Vec<u8>>, answer: bool) {
        let have = if answer { self.revocations.keys().copied().collect() } else { Vec::new() };
        self.send(to, &Message::Revocations { have, whole, answer });
    }

    /// The records that this node passes on, its own and others' that a peer would accept, and for each whether this node holds
    /// it for alive, and whether for dead by the word of witnesses.
    fn offered(&self) -> impl Iterator<Item = (&Record, bool, bool)> {
        let others = self.nodes.values().filter(|node| node.is_offered);
        let others = others.map(|node| (&*node.record, node.is_up(), node.is_convicted()));
        self.own.iter().map(|own| (&own.record, !own.has_ended(), false)).chain(others)
    }

    /// One number for all that this node offers: equal sets, equal sums.
    fn root(&self, view: View) -> Hash {
        self.nodes.sum(view).wrapping_add(self.own_print(view)).to_le_bytes()
    }

    fn bucket_sums(&self, view: View) -> [u128; BUCKETS] {
        let mut sums = self.nodes.bucket_sums(view);
        let own = &mut sums[bucket(self.me.as_bytes())];
        *own = own.wrapping_add(self.own_print(view));
        sums
    }

    fn own_print(&self, view: View) -> u128 {
        self.own.as_ref().map_or(0, |own| u128::from_le_bytes(own.record.print_of(view)))
    }

    fn revocation_root(&self) -> Hash {
        sum(self.revocations.keys().copied())
    }

    /// The record of that key when it is here, and what this node thinks of it: alive, dead by the word of witnesses.
    fn held(&self, id: &RawId) -> Option<(&Record, bool, bool)> {
        if id == self.me.as_bytes() {
            return self.own.as_ref().map(|own| (&own.record, !own.has_ended(), false));
        }
        let (_, node) = self.nodes.find(id)?;
        Some((&node.record, node.is_up(), node.is_convicted()))
    }

    /// The node of that key, when its record is here. Looking a key up is much cheaper than checking that it is one.
    pub(super) fn known(&self, id: &RawId) -> Option<NodeId> {
        self.nodes.find(id).map(|(id, _)| *id)
    }

    pub(super) fn take_revocation(&mut self, from: NodeId, revocation: &Bytes) {
        if revocation.len() > limits::REVOCATION_BYTES_MAX {
            self.outputs.push_back(Output::Refused { from, why: Refusal::TooLarge });
            return;
        }
        if self.config.uninvited {
            self.outputs.push_back(Output::Refused { from, why: Refusal::BadSignature });
            return;
        }
        match self.trust.revoke(revocation, self.wall_now()) {
            Ok(true) => {
                self.revocations.insert(wire::revocation_hash(revocation), revocation.clone());
                self.emit(Event::Revoked { revocation: revocation.clone() });
                self.handle_revoked();
                let peers: Vec<_> =
                    self.links.peers().map(|(peer, _)| peer).filter(|peer| *peer != from).collect();
                for peer in peers {
                    self.send_revocations(peer, vec![revocation.to_vec()], false);
                }
            }
            Ok(false) => {}
            Err(why) => self.outputs.push_back(Output::Refused { from, why }),
        }
    }
}

fn sum(hashes: impl Iterator<Item = Hash>) -> Hash {
    hashes.map(u128::from_le_bytes).fold(0, u128::wrapping_add).to_le_bytes()
}
