//! Who is here: what becomes of a node as records, links, silence and verdicts come in.

use std::time::Duration;

use mesh_identity::{NodeId, Role};

use super::node::{Node, Phase};
use super::record::Change;
use super::timers::Timer;
use super::trust::{Refusal, Trust};
use super::wire::{Course, Evidence};
use super::{LinkLoss, Membership, Output, SWEEP_INTERVAL};
use crate::event::{DownWhy, Event, UpWhy};

/// A convicted node's link is closed when it has stayed silent for so long after the verdict: until then a path that comes back
/// finds it, and what is in flight on it, as it was.
const CLOSE_SILENT: Duration = Duration::from_secs(4);

impl<T: Trust> Membership<T> {
    pub(super) fn handle_link_up(&mut self, peer: NodeId, role: Role) {
        if peer == self.me || !self.links.up(peer, role, self.now) {
            return;
        }
        self.end_dial(&peer, true);
        self.greet(peer, role);
        self.touched_if_known(&peer);
        self.heard(&peer);
        self.reconsider(&peer);
        self.accuse_if_down(&peer);
    }

    pub(super) fn handle_link_down(&mut self, peer: NodeId, why: LinkLoss) {
        if !self.links.down(&peer) {
            return;
        }
        self.touched_if_known(&peer);
        match why {
            LinkLoss::Gone => self.testify(&peer, Evidence::Gone),
            LinkLoss::Shutdown => self.testify(&peer, Evidence::Shutdown),
            LinkLoss::Lost if self.watches.contains(&peer) => {
                self.suspect_if_alive(&peer);
                self.watch_closely(&peer, true);
            }
            LinkLoss::Lost => {}
        }
        let wait = self.first_dial_wait(&peer);
        self.dial_in(peer, wait);
    }

    pub(super) fn handle_close_due(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let Phase::Down(why) = node.phase else { return };
        let is_silent = self.links.heard_at(id).is_some_and(|heard| heard <= node.since);
        if is_silent {
            self.outputs.push_back(Output::Disconnect { node: *id, why });
        }
    }

    pub(super) fn handle_sweep(&mut self) {
        self.timers.set(self.now + SWEEP_INTERVAL, Timer::Sweep);
        let (now, wall) = (self.now, self.wall_now());
        let age = |node: &Node| now.saturating_duration_since(node.since);
        let is_over = |node: &Node| !node.is_dead() && node.record.card.standing.expires.is_over(wall);
        for id in self.ids_where(is_over) {
            self.down(&id, DownWhy::GrantExpired, vec![self.me]);
        }
        for id in
            self.ids_where(|node| node.is_offered && node.is_dead() && age(node) >= self.config.offer_dead)
        {
            self.nodes.update(&id, |node| node.is_offered = false);
        }
        let is_old = |node: &Node| match node.phase {
            Phase::Down(_) | Phase::Left => age(node) >= self.config.forget_dead,
            Phase::Unheard => age(node) >= self.config.offer_dead,
            Phase::Alive | Phase::Suspect => false,
        };
        for id in self.ids_where(is_old) {
            if !self.links.contains(&id) {
                self.forget(&id);
            }
        }
    }

    fn ids_where(&self, holds: impl Fn(&Node) -> bool) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| holds(node)).map(|(id, _)| *id).collect()
    }

    /// What follows from a record that is new or has changed. `is_vouched`: a linked peer holds the node for alive.
    pub(super) fn follow(&mut self, id: NodeId, change: &Change, (is_new, is_vouched): (bool, bool)) {
        let Some(node) = self.nodes.get(&id) else { return };
        let (phase, course) = (node.phase, node.record.card.course);
        let incarnation = node.record.card.incarnation;
        if is_new || change.is_any() {
            self.touched.insert(id);
        }
        if change.addr || is_new {
            let addr = node.record.card.addr.clone();
            self.outputs.push_back(Output::Address { node: id, addr });
        }
        if change.incarnation {
            self.close_case(&id, !change.life && course == Course::Running);
        }
        match course {
            Course::Left => self.left(&id, !is_new && phase != Phase::Left),
            Course::Stopped
                if is_new || !matches!(phase, Phase::Down(_) | Phase::Left) || change.incarnation =>
            {
                self.down(&id, DownWhy::Stopped, vec![id]);
            }
            Course::Stopped => {}
            Course::Running => self.follow_running(&id, change, (is_new, is_vouched)),
        }
        if change.life && phase == Phase::Alive && course == Course::Running {
            self.emit(Event::MemberUp { node: id, incarnation, why: UpWhy::Restarted });
        }
        self.tell_records(id, change);
    }

    fn follow_running(&mut self, id: &NodeId, change: &Change, (is_new, is_vouched): (bool, bool)) {
        let Some(node) = self.nodes.get(id) else { return };
        let is_back = change.incarnation && node.is_dead();
        if is_new || is_back {
            if is_back {
                self.set_phase(id, Phase::Unheard);
            }
            self.dial_soon(id);
        } else if change.incarnation && node.phase == Phase::Suspect {
            // Its own word, later than every accusation.
            self.heard_again(id);
        }
        if is_vouched && self.nodes.get(id).is_some_and(|node| node.phase == Phase::Unheard) {
            self.up(id);
        } else {
            self.reconsider(id);
        }
    }

    fn tell_records(&mut self, id: NodeId, change: &Change) {
        let is_told = |node: &Node| !matches!(node.phase, Phase::Unheard | Phase::Left);
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
    pub(super) fn reconsider(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let is_linked = self.links.contains(id);
        let is_doubted = self.cases.is_open(id) || !self.watches.is_quiet(id);
        match node.phase {
            Phase::Unheard if is_linked => self.up(id),
            Phase::Suspect if self.hears(id) || !is_doubted => self.up(id),
            _ => {}
        }
    }

    fn heard_again(&mut self, id: &NodeId) {
        self.heard(id);
        if self.nodes.get(id).is_some_and(|node| node.phase == Phase::Suspect) {
            self.up(id);
        }
    }

    fn up(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let incarnation = node.record.card.incarnation;
        let was_suspect = node.phase == Phase::Suspect;
        let why = if was_suspect { UpWhy::Recovered } else { UpWhy::Joined };
        self.set_phase(id, Phase::Alive);
        self.emit(Event::MemberUp { node: *id, incarnation, why });
        if !was_suspect {
            // Who had it from us before we knew that it lives hears so now.
            self.note_fresh(*id, *id, &[]);
            self.dial_soon(id);
        }
    }

    /// It does not answer: whatever others say, it may not be there.
    pub(super) fn suspect_if_alive(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id).filter(|node| node.phase == Phase::Alive) else { return };
        let incarnation = node.record.card.incarnation;
        self.set_phase(id, Phase::Suspect);
        self.emit(Event::MemberSuspect { node: *id, incarnation });
    }

    pub(super) fn down(&mut self, id: &NodeId, why: DownWhy, witnesses: Vec<NodeId>) {
        let Some(node) = self.nodes.get(id) else { return };
        let (incarnation, was) = (node.record.card.incarnation, node.phase);
        self.close_case(id, false);
        let loses_right = matches!(why, DownWhy::Revoked | DownWhy::GrantExpired);
        self.set_phase(id, Phase::Down(why));
        if loses_right {
            self.nodes.update(id, |node| node.is_offered = false);
        }
        if was.is_up() {
            self.emit(Event::MemberDown { node: *id, incarnation, why, witnesses });
        }
        if self.links.contains(id) {
            if loses_right {
                self.outputs.push_back(Output::Disconnect { node: *id, why });
            } else {
                self.timers.set(self.now + CLOSE_SILENT, Timer::Close(*id));
            }
        } else if !loses_right {
            self.dial_soon(id);
        }
    }

    fn left(&mut self, id: &NodeId, is_told: bool) {
        let Some(node) = self.nodes.get(id) else { return };
        let incarnation = node.record.card.incarnation;
        let was_told = is_told && node.phase != Phase::Unheard;
        if node.phase != Phase::Left {
            self.close_case(id, false);
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
        for id in self.ids_where(falls) {
            self.down(&id, DownWhy::Revoked, vec![self.me]);
        }
    }

    fn set_phase(&mut self, id: &NodeId, phase: Phase) {
        let now = self.now;
        let was = self.nodes.update(id, |node| {
            let was = node.phase;
            (node.phase, node.since, node.is_offered) = (phase, now, true);
            was
        });
        // Somebody stands in for a neighbour that is doubted, too.
        if self.overlay.peers.contains(id) {
            self.overlay.is_stale = true;
        }
        if was.is_some_and(|was| was.is_up() != phase.is_up()) {
            self.overlay.is_stale = true;
            // Who missed the news is found sooner.
            self.changed = now;
        }
        self.touched.insert(*id);
    }

    pub(super) fn forget(&mut self, id: &NodeId) {
        self.close_case(id, false);
        self.forget_dial(id);
        self.cases.forget(id);
        self.nodes.remove(id);
        self.fresh.remove(id);
        self.overlay.is_stale = true;
        self.touched.insert(*id);
        self.outputs.push_back(Output::Forget { node: *id });
    }

    fn touched_if_known(&mut self, id: &NodeId) {
        if self.nodes.contains_key(id) {
            self.touched.insert(*id);
        }
    }
}
