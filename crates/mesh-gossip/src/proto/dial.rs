//! Dialing whom this node should be linked with: for ever, with growing waits, a few at a time.

use std::collections::BTreeSet;
use std::time::Duration;

use mesh_identity::NodeId;

use super::timers::Timer;
use super::trust::Trust;
use super::{Membership, Output, SMALL, at_least_a_millisecond};

/// Both ends learn of each other at once. The one with the lower id dials first, so that they rarely meet half-way.
const COURTESY: Duration = Duration::from_millis(500);
/// Spread of a first dial.
const FIRST_DIAL: Duration = Duration::from_millis(50);

impl<T: Trust> Membership<T> {
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
        let is_first = dial.failed == 0;
        dial.failed = dial.failed.saturating_add(1);
        let doublings = dial.failed.saturating_sub(1).min(16);
        let wait = self.config.redial_min.saturating_mul(1 << doublings).min(self.config.redial_max);
        let wait = self.rng.between(wait / 2, wait) * self.crowd(&peer);
        if self.overlay.peers.contains(&peer) {
            self.overlay.is_stale = true;
            if is_first {
                self.watch_closely(&peer, false);
            }
        }
        self.dial_in(peer, wait);
    }

    /// After a partition of a large scope each node looks for some of the lost ones, and all together for all.
    fn crowd(&self, peer: &NodeId) -> u32 {
        let is_lost = self.nodes.get(peer).is_some_and(super::Node::is_dead);
        let lost = if is_lost { self.dials.len() / SMALL } else { 0 };
        u32::try_from(lost.max(1)).unwrap_or(u32::MAX)
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

    pub(super) fn handle_dial_due(&mut self, id: NodeId) {
        let is_crowded = self.links.len() + self.dials_running >= self.config.links_max;
        // Those who may have come back wait for the neighbours.
        let is_first = self.overlay.peers.is_empty() || self.overlay.peers.contains(&id);
        let dials_max = if is_first { self.config.dials_max } else { self.config.dials_max.div_ceil(2) };
        let is_busy = self.dials_running >= dials_max.max(1);
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

    pub(super) fn first_dial_wait(&mut self, peer: &NodeId) -> Duration {
        let wait = self.rng.between(Duration::from_millis(1), FIRST_DIAL);
        if self.me < *peer { wait } else { wait + COURTESY }
    }

    pub(super) fn dial_in(&mut self, id: NodeId, wait: Duration) {
        if !self.is_wanted(&id) {
            return;
        }
        let at = self.now + at_least_a_millisecond(wait);
        if let Some(old) = self.dials.entry(id).or_default().at.replace(at) {
            self.timers.unset(old, Timer::Dial(id));
        }
        self.timers.set(at, Timer::Dial(id));
    }

    pub(super) fn end_dial(&mut self, id: &NodeId, is_linked: bool) {
        let Some(dial) = self.dials.get_mut(id) else { return };
        if std::mem::take(&mut dial.is_running) {
            self.dials_running = self.dials_running.saturating_sub(1);
        }
        if is_linked {
            dial.failed = 0;
        }
    }

    pub(super) fn forget_dial(&mut self, id: &NodeId) {
        self.end_dial(id, false);
        if let Some(at) = self.dials.remove(id).and_then(|dial| dial.at) {
            self.timers.unset(at, Timer::Dial(*id));
        }
        self.contacts.remove(id);
    }
}
