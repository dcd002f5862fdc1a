//! Who is here: links, pings, suspicion, death, and dialing whom we should be linked with.
//!
//! Each node judges for itself. It hears a member over its own link, or takes the word of linked members that hear it;
//! a verdict is never passed on to third parties, only to the accused, which contradicts it with a later incarnation.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_identity::{NodeId, Role};

use super::node::{Node, Phase};
use super::record::{Change, View};
use super::timers::Timer;
use super::trust::{Refusal, Trust};
use super::wire::{Message, RawId};
use super::{LinkLoss, Membership, Output, SWEEP_INTERVAL, at_least_a_millisecond};
use crate::event::{DownWhy, Event, UpWhy};
use crate::member::Incarnation;

/// Both ends learn of each other at once. The one with the lower id dials first, so that they rarely meet half-way.
const COURTESY: Duration = Duration::from_millis(500);
/// Spread of a first dial.
const FIRST_DIAL: Duration = Duration::from_millis(50);

impl<T: Trust> Membership<T> {
    pub(super) fn handle_link_up(&mut self, peer: NodeId, role: Role) {
        if peer == self.me || !self.links.up(peer, role) {
            return;
        }
        self.end_dial(&peer, true);
        self.greet(peer, role);
        self.touched_if_known(&peer);
        self.reach_soon();
        self.reconsider(&peer);
        self.accuse_if_down(&peer);
    }

    pub(super) fn handle_link_down(&mut self, peer: NodeId, why: LinkLoss) {
        let Some(reach) = self.links.down(&peer) else { return };
        self.touched_if_known(&peer);
        self.reach_soon();
        if why != LinkLoss::Lost && self.is_heard_as_alive(&peer) {
            // The peer's own word, on a link that proved its key, or its machine's: nothing to wait for.
            self.down(&peer, DownWhy::Stopped);
        } else {
            self.suspect_if_alive(&peer);
        }
        let wait = self.first_dial_wait(&peer);
        self.dial_in(peer, wait);
        self.reconsider_all(reach);
    }

    pub(super) fn handle_contacts(&mut self, contacts: Vec<NodeId>) {
        let (me, max) = (self.me, self.config.nodes_max);
        let contacts: BTreeSet<NodeId> = contacts.into_iter().filter(|id| *id != me).take(max).collect();
        let new: Vec<_> = contacts.difference(&self.contacts).copied().collect();
        self.contacts = contacts;
        for id in new.into_iter().filter(|id| !self.nodes.contains_key(id)).collect::<Vec<_>>() {
            let wait = self.first_dial_wait(&id);
            self.dial_in(id, wait);
        }
    }

    pub(super) fn handle_dial_failed(&mut self, peer: NodeId) {
        self.end_dial(&peer, false);
        if !self.is_wanted(&peer) {
            self.dials.remove(&peer);
        }
        let Some(dial) = self.dials.get_mut(&peer) else { return };
        dial.failed = dial.failed.saturating_add(1);
        let doublings = dial.failed.saturating_sub(1).min(16);
        let wait = self.config.redial_min.saturating_mul(1 << doublings).min(self.config.redial_max);
        let wait = self.rng.between(wait / 2, wait);
        self.dial_in(peer, wait);
    }

    /// Whoever waits for its next dial is dialed soon, as if none had failed.
    pub(super) fn handle_network_changed(&mut self) {
        let waiting = self.dials.iter_mut().filter(|(_, dial)| !dial.is_running && dial.at.is_some());
        let waiting: Vec<_> = waiting
            .map(|(id, dial)| {
                dial.failed = 0;
                *id
            })
            .collect();
        for id in waiting {
            let wait = self.rng.between(Duration::from_millis(1), FIRST_DIAL);
            self.dial_in(id, wait);
        }
    }

    /// A frame came from the peer itself.
    pub(super) fn heard(&mut self, peer: &NodeId) {
        if self.links.heard(peer) {
            self.reach_soon();
        }
        if self.nodes.get(peer).is_some_and(|node| matches!(node.phase, Phase::Suspect { .. })) {
            self.reconsider(peer);
        }
    }

    pub(super) fn handle_reach(&mut self, from: &NodeId, nodes: Vec<RawId>) {
        let changed = self.links.set_reach(from, nodes);
        self.reconsider_all(changed);
    }

    /// The peer holds us for dead.
    pub(super) fn handle_accused(&mut self, (from, view): (NodeId, View), incarnation: Incarnation) {
        let Some(own) = &mut self.own else { return };
        if own.refute(incarnation, self.now, &self.trust) {
            self.push_own_soon();
        } else if incarnation < own.incarnation() {
            let record = own.record.whole(view);
            self.send(from, &Message::Records { records: vec![record] });
        }
    }

    pub(super) fn handle_probe(&mut self) {
        self.timers.set(self.now + at_least_a_millisecond(self.config.probe_interval), Timer::Probe);
        let peers: Vec<_> = self.links.peers().map(|(peer, _)| peer).collect();
        for peer in peers {
            if self.nodes.get(&peer).is_none_or(|node| node.phase == Phase::Left) {
                continue;
            }
            self.accuse_if_down(&peer);
            let Some((seq, is_silent)) = self.links.probe(&peer) else { continue };
            self.send(peer, &Message::Ping { seq });
            if is_silent {
                self.reach_soon();
                self.suspect_if_alive(&peer);
            }
        }
    }

    pub(super) fn handle_suspicion_over(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let (Phase::Suspect { until } | Phase::Unheard { until }) = node.phase else { return };
        if until > self.now {
            return;
        }
        if self.links.hears(id) || self.links.has_witness(id) {
            self.up(id);
        } else {
            let why = if self.links.contains(id) { DownWhy::Silent } else { DownWhy::LinkLost };
            self.down(id, why);
        }
    }

    pub(super) fn handle_sweep(&mut self) {
        self.timers.set(self.now + SWEEP_INTERVAL, Timer::Sweep);
        let (now, wall) = (self.now, self.wall_now());
        let is_over = |node: &Node| !node.is_dead() && node.record.card.standing.expires.is_over(wall);
        let over: Vec<_> = self.nodes.iter().filter(|(_, node)| is_over(node)).map(|(id, _)| *id).collect();
        for id in over {
            self.down(&id, DownWhy::GrantExpired);
        }
        let is_old = |node: &Node| now.saturating_duration_since(node.since) >= self.config.forget_dead;
        let old: Vec<_> =
            self.nodes.iter().filter(|(_, node)| node.is_dead() && is_old(node)).map(|(id, _)| *id).collect();
        for id in old.into_iter().filter(|id| !self.links.contains(id)).collect::<Vec<_>>() {
            self.forget(&id);
        }
    }

    /// What follows from a record that is new or has changed.
    pub(super) fn follow(&mut self, id: NodeId, change: &Change, is_new: bool) {
        let Some(node) = self.nodes.get(&id) else { return };
        let (phase, incarnation) = (node.phase, node.record.card.incarnation);
        self.touched.insert(id);
        if change.addr || is_new {
            let addr = node.record.card.addr.clone();
            self.outputs.push_back(Output::Address { node: id, addr });
        }
        if node.record.card.left {
            self.left(&id, !is_new && phase != Phase::Left);
        } else if is_new || (change.incarnation && node.is_dead()) {
            self.set_phase(&id, Phase::Unheard { until: self.now + self.config.suspicion });
            if !self.links.contains(&id) {
                let wait = self.first_dial_wait(&id);
                self.dial_in(id, wait);
            }
            self.reconsider(&id);
        } else if change.incarnation && matches!(phase, Phase::Suspect { .. }) && self.links.has_witness(&id)
        {
            self.up(&id);
        } else if change.life && phase == Phase::Alive {
            self.emit(Event::MemberUp { node: id, incarnation, why: UpWhy::Restarted });
        }
        if self.links.contains(&id) {
            self.reach_soon();
        }
        self.tell_records(id, change);
    }

    fn tell_records(&mut self, id: NodeId, change: &Change) {
        let is_told = |node: &Node| !matches!(node.phase, Phase::Unheard { .. } | Phase::Left);
        if !self.nodes.get(&id).is_some_and(is_told) {
            return;
        }
        if change.addr {
            self.emit(Event::Address { node: id });
        }
        for key in &change.keys {
            self.emit(Event::Record { node: id, key: key.clone() });
        }
    }

    /// Weighs the evidence on a node anew.
    fn reconsider(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let hears = self.links.hears(id);
        match node.phase {
            Phase::Unheard { .. } if hears || self.links.has_witness(id) => self.up(id),
            Phase::Suspect { .. } if hears => self.up(id),
            Phase::Alive if !hears && !self.links.has_witness(id) => self.suspect(id),
            _ => {}
        }
    }

    fn reconsider_all(&mut self, ids: impl IntoIterator<Item = RawId>) {
        for id in ids {
            if let Some(id) = self.known(&id) {
                self.reconsider(&id);
            }
        }
    }

    fn up(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let incarnation = node.record.card.incarnation;
        let why = if matches!(node.phase, Phase::Suspect { .. }) { UpWhy::Recovered } else { UpWhy::Joined };
        self.set_phase(id, Phase::Alive);
        self.emit(Event::MemberUp { node: *id, incarnation, why });
    }

    /// Our own link to it failed: whatever others say, it may not be there.
    fn suspect_if_alive(&mut self, id: &NodeId) {
        if self.nodes.get(id).is_some_and(|node| node.phase == Phase::Alive) {
            self.suspect(id);
        }
    }

    fn is_heard_as_alive(&self, id: &NodeId) -> bool {
        self.nodes.get(id).is_some_and(|node| matches!(node.phase, Phase::Alive | Phase::Suspect { .. }))
    }

    fn suspect(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let incarnation = node.record.card.incarnation;
        self.set_phase(id, Phase::Suspect { until: self.now + self.config.suspicion });
        self.emit(Event::MemberSuspect { node: *id, incarnation });
    }

    fn down(&mut self, id: &NodeId, why: DownWhy) {
        let Some(node) = self.nodes.get(id) else { return };
        let (incarnation, was) = (node.record.card.incarnation, node.phase);
        self.set_phase(id, Phase::Down(why));
        if !matches!(was, Phase::Unheard { .. } | Phase::Down(_) | Phase::Left) {
            self.emit(Event::MemberDown { node: *id, incarnation, why, witnesses: vec![self.me] });
        }
        if self.links.contains(id) {
            self.outputs.push_back(Output::Disconnect { node: *id, why });
        }
    }

    fn left(&mut self, id: &NodeId, is_told: bool) {
        let Some(node) = self.nodes.get(id) else { return };
        let incarnation = node.record.card.incarnation;
        let was_told = is_told && !matches!(node.phase, Phase::Unheard { .. });
        if node.phase != Phase::Left {
            self.set_phase(id, Phase::Left);
        }
        if was_told {
            self.emit(Event::MemberLeft { node: *id, incarnation });
        }
    }

    /// Ends the membership of every node whose grant no longer stands.
    pub(super) fn handle_revoked(&mut self) {
        let wall = self.wall_now();
        let falls = |node: &Node| {
            let standing = self.trust.standing(&node.record.id, node.record.grant(), wall);
            node.phase != Phase::Down(DownWhy::Revoked) && standing == Err(Refusal::Revoked)
        };
        let fallen: Vec<_> = self.nodes.iter().filter(|(_, node)| falls(node)).map(|(id, _)| *id).collect();
        for id in fallen {
            self.down(&id, DownWhy::Revoked);
        }
    }

    fn set_phase(&mut self, id: &NodeId, phase: Phase) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        if let Phase::Suspect { until } | Phase::Unheard { until } = node.phase {
            self.timers.unset(until, Timer::Suspicion(*id));
        }
        if let Phase::Suspect { until } | Phase::Unheard { until } = phase {
            self.timers.set(until, Timer::Suspicion(*id));
        }
        (node.phase, node.since) = (phase, self.now);
        self.touched.insert(*id);
    }

    /// Tells a linked node that only a later incarnation of it will do.
    fn accuse_if_down(&mut self, peer: &NodeId) {
        let Some(node) = self.nodes.get(peer) else { return };
        if matches!(node.phase, Phase::Down(DownWhy::LinkLost | DownWhy::Silent | DownWhy::Stopped)) {
            let incarnation = node.record.card.incarnation.as_u64();
            self.send(*peer, &Message::Accused { incarnation });
        }
    }

    pub(super) fn handle_dial_due(&mut self, id: NodeId) {
        let is_crowded = self.links.len() + self.dials_running >= self.config.links_max;
        let is_busy = self.dials_running >= self.config.dials_max.max(1);
        let is_wanted = self.is_wanted(&id);
        let Some(dial) = self.dials.get_mut(&id) else { return };
        if dial.at.is_none_or(|at| at > self.now) {
            return;
        }
        dial.at = None;
        if self.links.contains(&id) || dial.is_running {
            return;
        }
        if !is_wanted {
            self.dials.remove(&id);
            return;
        }
        if is_crowded || is_busy {
            let wait = if is_crowded { self.config.redial_max } else { self.config.redial_min };
            let wait = self.rng.between(wait / 2, wait);
            self.dial_in(id, wait);
            return;
        }
        dial.is_running = true;
        self.dials_running += 1;
        self.outputs.push_back(Output::Dial { to: id });
    }

    fn is_wanted(&self, id: &NodeId) -> bool {
        self.nodes.get(id).map_or_else(|| self.contacts.contains(id), Node::is_wanted)
    }

    fn first_dial_wait(&mut self, peer: &NodeId) -> Duration {
        let wait = self.rng.between(Duration::from_millis(1), FIRST_DIAL);
        if self.me < *peer { wait } else { wait + COURTESY }
    }

    fn dial_in(&mut self, id: NodeId, wait: Duration) {
        if !self.is_wanted(&id) {
            return;
        }
        let at = self.now + at_least_a_millisecond(wait);
        if let Some(old) = self.dials.entry(id).or_default().at.replace(at) {
            self.timers.unset(old, Timer::Dial(id));
        }
        self.timers.set(at, Timer::Dial(id));
    }

    fn end_dial(&mut self, id: &NodeId, is_linked: bool) {
        let Some(dial) = self.dials.get_mut(id) else { return };
        if std::mem::take(&mut dial.is_running) {
            self.dials_running = self.dials_running.saturating_sub(1);
        }
        if is_linked {
            dial.failed = 0;
        }
    }

    pub(super) fn forget(&mut self, id: &NodeId) {
        self.end_dial(id, false);
        if let Some(at) = self.dials.remove(id).and_then(|dial| dial.at) {
            self.timers.unset(at, Timer::Dial(*id));
        }
        self.contacts.remove(id);
        self.nodes.remove(id);
        self.fresh.remove(id);
        self.index.remove(id.as_bytes());
        self.touched.insert(*id);
        self.outputs.push_back(Output::Forget { node: *id });
    }

    pub(super) fn reach_soon(&mut self) {
        if !self.is_reach_set && self.own.is_some() {
            self.is_reach_set = true;
            self.timers.set(self.now + at_least_a_millisecond(self.config.reach_delay), Timer::Reach);
        }
    }

    fn touched_if_known(&mut self, id: &NodeId) {
        if self.nodes.contains_key(id) {
            self.touched.insert(*id);
        }
    }
}
