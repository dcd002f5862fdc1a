//! Records and revocations between nodes: pushed when they change, compared by hash now and then, so that who was away
//! or lost a frame converges.

use std::collections::BTreeSet;

use bytes::Bytes;
use mesh_identity::{NodeId, Role};

use super::node::{Node, Phase};
use super::record::{Part, Record, View, decode_addr};
use super::timers::Timer;
use super::trust::{Refusal, Trust};
use super::wire::{self, DigestItem, Hash, Message, NodeRecord, RawId, Summary};
use super::{Membership, Output, at_least_a_millisecond};
use crate::event::{DownWhy, Event};
use crate::limits;
use crate::member::Incarnation;

/// Revocations in one frame: even of the largest size they stay below the bound of a frame.
const REVOCATIONS_PER_FRAME: usize = 256;

impl<T: Trust> Membership<T> {
    /// The first frames on a new link: who I am, whom I hear, and (from one end, so as not to do it twice) all I know.
    pub(super) fn greet(&mut self, peer: NodeId, role: Role) {
        if let Some(own) = &self.own {
            let record = own.record.whole(self.view_of_own(role));
            self.send(peer, &Message::Records { records: vec![record] });
            self.send_reach(peer);
        }
        if self.own.is_none() || self.me < peer {
            self.send_digest(peer, self.view(role));
        }
        if !self.revocations.is_empty() {
            self.send_revocations(peer, Vec::new(), true);
        }
    }

    pub(super) fn handle_exchange(&mut self) {
        let wait = self.rng.jittered(at_least_a_millisecond(self.config.exchange_interval));
        self.timers.set(self.now + at_least_a_millisecond(wait), Timer::Exchange);
        let peers: Vec<_> = self.links.peers().collect();
        for (peer, role) in self.rng.pick(peers, self.config.exchange_fanout) {
            let records = self.root(self.view(role));
            let revocations = self.revocation_root();
            self.send(peer, &Message::Root { records, revocations });
            self.send_reach(peer);
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
        if records != self.root(view) {
            self.send_digest(from, view);
        }
        if revocations != self.revocation_root() {
            self.send_revocations(from, Vec::new(), true);
        }
    }

    pub(super) fn handle_digest(&mut self, (from, view): (NodeId, View), items: Vec<DigestItem>) {
        let pause = self.config.exchange_interval / 4;
        if !self.links.may_answer(&from, pause, self.now) {
            return;
        }
        let mut named = BTreeSet::new();
        let mut summaries = Vec::new();
        let mut records = Vec::new();
        for item in items {
            named.insert(item.id);
            let Some(record) = self.record(&item.id) else {
                summaries.push(Summary { id: item.id, incarnation: 0, card: 0, keys: Vec::new() });
                continue;
            };
            let (mine, theirs) = (record.card.incarnation, Incarnation::from_u64(item.incarnation));
            if mine.life() > theirs.life() {
                records.push(record.whole(view));
            } else if mine != theirs || item.print != record.print_of(view) {
                summaries.push(record.summary(view));
            }
        }
        let unnamed = self.offered().filter(|record| !named.contains(record.id.as_bytes()));
        records.extend(unnamed.map(|record| record.whole(view)));
        self.send_records(from, records);
        self.send_summaries(from, summaries);
    }

    pub(super) fn handle_summaries(&mut self, (from, view): (NodeId, View), summaries: Vec<Summary>) {
        let own_view = self.links.role(&from).map_or(view, |role| self.view_of_own(role));
        let (mut records, mut lacking) = (Vec::new(), Vec::new());
        for summary in summaries {
            let Some(record) = self.record(&summary.id) else { continue };
            let shown = if record.id == self.me { own_view } else { view };
            let (later, lacks) = record.compare(&summary, shown);
            records.extend(later);
            if lacks {
                lacking.push(record.summary(view));
            }
        }
        self.send_records(from, records);
        self.send_summaries(from, lacking);
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
        let held =
            self.nodes.get(&id).map(|node| (&node.record, node.phase != Phase::Down(DownWhy::Revoked)));
        let part = Part::check(id, sent, held, (&self.trust, self.wall_now()))?;
        let Some(node) = self.nodes.get_mut(&id) else { return self.take_new(from, part) };
        let change = node.record.merge(part)?;
        if change.outdated && from == id {
            let record = node.record.whole(view);
            self.send(from, &Message::Records { records: vec![record] });
        }
        if change.is_any() {
            self.note_fresh(from, id, &change.keys);
            self.follow(id, &change, false);
        }
        Ok(())
    }

    fn take_new(&mut self, from: NodeId, part: Part) -> Result<(), Refusal> {
        let (id, keys) = (part.id, part.keys());
        let record = Record::new(part)?;
        if self.nodes.len() >= self.config.nodes_max {
            let dead = self.nodes.iter().filter(|(id, node)| node.is_dead() && !self.links.contains(id));
            let oldest = dead.min_by_key(|(id, node)| (node.since, **id)).map(|(id, _)| *id);
            self.forget(&oldest.ok_or(Refusal::Full)?);
        }
        // `follow` gives it the phase that it deserves.
        let node = Node { record, phase: Phase::Unheard { until: self.now }, since: self.now };
        self.nodes.insert(id, node);
        self.index.insert(*id.as_bytes(), id);
        self.note_fresh(from, id, &keys);
        self.follow(id, &super::record::Change::default(), true);
        Ok(())
    }

    /// Somebody showed us our own record. If it is later than what this process said, an earlier process said it; or,
    /// if that happens again and again, another one that is alive.
    fn see_own(&mut self, sent: &NodeRecord) {
        let Some(own) = self.own.as_mut().filter(|own| !own.has_left()) else { return };
        if own.is_contradicted_by(sent, &self.trust) {
            own.outlive(Incarnation::from_u64(sent.card.incarnation), &self.trust);
            if own.is_contradicted_by_the_living(self.now) {
                let addr = decode_addr(&sent.card.addr).unwrap_or_default();
                self.outputs.push_back(Output::Event(Event::KeyInUseTwice { addr }));
            }
            self.push_own_soon();
        }
    }

    fn note_fresh(&mut self, from: NodeId, id: NodeId, keys: &[String]) {
        let fresh = self.fresh.entry(id).or_default();
        fresh.keys.extend(keys.iter().cloned());
        fresh.sources.insert(from);
        self.push_soon();
    }

    /// Sends what changed: our own to every linked peer, others' to a few that do not hear them themselves.
    pub(super) fn push(&mut self) {
        self.is_push_set = false;
        self.push_own();
        let fresh = std::mem::take(&mut self.fresh);
        for (id, news) in fresh {
            let Some(record) = self.nodes.get(&id).map(|node| &node.record) else { continue };
            let lacks =
                |peer: &NodeId| *peer != id && !news.sources.contains(peer) && !self.links.reaches(peer, &id);
            let peers =
                self.links.peers().filter(|(peer, role)| *role == Role::Member && lacks(peer)).collect();
            let part = |view| Message::Records { records: vec![record.only(view, &news.keys)] }.encode();
            for (to, role) in self.rng.pick(peers, self.config.exchange_fanout) {
                let frame = part(self.view(role));
                self.outputs.push_back(Output::Send { to, frame });
            }
        }
    }

    fn push_own(&mut self) {
        let Some(own) = &mut self.own else { return };
        if own.is_sent() {
            return;
        }
        let keys = own.take_unsent();
        let frame = |view| Message::Records { records: vec![own.record.only(view, &keys)] }.encode();
        let frames = (frame(View::Member), frame(View::Client));
        for (to, role) in self.links.peers() {
            let frame = match self.view_of_own(role) {
                View::Member => frames.0.clone(),
                View::Client => frames.1.clone(),
            };
            self.outputs.push_back(Output::Send { to, frame });
        }
    }

    fn send_digest(&mut self, to: NodeId, view: View) {
        let item = |record: &Record| DigestItem {
            id: *record.id.as_bytes(),
            incarnation: record.card.incarnation.as_u64(),
            print: record.print_of(view),
        };
        let items = self.offered().map(item).collect();
        self.send(to, &Message::Digest { items });
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

    fn send_reach(&mut self, to: NodeId) {
        if self.own.is_none() {
            return;
        }
        let nodes = self.reach();
        self.send(to, &Message::Reach { nodes });
    }

    pub(super) fn send_reach_to_all(&mut self) {
        self.is_reach_set = false;
        let peers: Vec<_> = self.links.peers().map(|(peer, _)| peer).collect();
        for peer in peers {
            self.send_reach(peer);
        }
    }

    fn reach(&self) -> Vec<RawId> {
        let heard = self.links.peers().map(|(peer, _)| peer).filter(|peer| self.links.hears(peer));
        heard.filter(|peer| self.nodes.contains_key(peer)).map(|peer| *peer.as_bytes()).collect()
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

    /// The records that this node passes on: its own, and others' that a peer would accept.
    fn offered(&self) -> impl Iterator<Item = &Record> {
        let is_offered = |node: &&Node| match node.phase {
            Phase::Down(DownWhy::Revoked | DownWhy::GrantExpired) => false,
            Phase::Down(_) | Phase::Left => {
                self.now.saturating_duration_since(node.since) < self.config.offer_dead
            }
            _ => true,
        };
        let others = self.nodes.values().filter(is_offered).map(|node| &node.record);
        self.own.iter().map(|own| &own.record).chain(others)
    }

    /// One number for all that this node offers: equal sets, equal sums.
    fn root(&self, view: View) -> Hash {
        sum(self.offered().map(|record| record.print_of(view)))
    }

    fn revocation_root(&self) -> Hash {
        sum(self.revocations.keys().copied())
    }

    fn record(&self, id: &RawId) -> Option<&Record> {
        if id == self.me.as_bytes() {
            return self.own.as_ref().map(|own| &own.record);
        }
        self.nodes.get(self.index.get(id)?).map(|node| &node.record)
    }

    /// The node of that key, when its record is here. Looking a key up is much cheaper than checking that it is one.
    pub(super) fn known(&self, id: &RawId) -> Option<NodeId> {
        self.index.get(id).copied()
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
