//! The world around the cores: a gossip that delays and reorders, links that break, and workers that lend.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_identity::NodeId;

use super::Rng;
use crate::election::tests::{MODEL, id, member, needs};
use crate::election::{Claim, Config, Election, Input, Member, Output, Presence, StopWhy};
use crate::plan::Needs;

pub(super) const QUIET: Duration = Duration::from_secs(40);

/// What a host has of its launch.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) epoch: u64,
    pub(super) workers: BTreeSet<usize>,
    pub(super) granted: BTreeSet<usize>,
}

pub(super) struct Node {
    core: Option<Election>,
    pub(super) facts: Member,
    version: u64,
    seen: BTreeMap<usize, u64>,
    claim: Option<Claim>,
    pub(super) runs_alone: bool,
    pub(super) launch: Option<Launch>,
    /// As a worker: to whom, and by which epoch.
    pub(super) lent: Option<(usize, u64)>,
    /// The workers of the last launch, and whether there was a reason for another one.
    last: Option<BTreeSet<NodeId>>,
    has_cause: bool,
    epochs: u64,
    pub(super) starts: u32,
}

#[derive(Debug, Clone)]
enum Event {
    /// A record, as it was at this version.
    Record {
        to: usize,
        from: usize,
        version: u64,
        facts: Box<Member>,
    },
    /// The link has been silent for long enough.
    Silence {
        at: usize,
        of: usize,
    },
    Ask {
        worker: usize,
        host: usize,
        epoch: u64,
    },
    Granted {
        host: usize,
        worker: usize,
        epoch: u64,
    },
    Gone {
        host: usize,
        worker: usize,
        epoch: u64,
        held_by: Option<u64>,
    },
    Released {
        worker: usize,
        host: usize,
        epoch: u64,
    },
}

pub(super) struct World {
    rng: Rng,
    pub(super) now: Instant,
    start: Instant,
    sequence: u64,
    queue: BTreeMap<(Instant, u64), Event>,
    pub(super) nodes: Vec<Node>,
    /// Nodes of one side reach each other.
    sides: Vec<u64>,
    needs: Arc<Needs>,
    pub(super) trace: Vec<String>,
}

fn config() -> Config {
    Config {
        debounce: Duration::from_millis(500),
        left_out_for: Duration::from_secs(5),
        patience: Duration::from_secs(3),
        better_after: Duration::from_secs(8),
        ..Config::default()
    }
}

impl World {
    /// Nodes that are all up, reach each other, and know nobody yet.
    pub(super) fn new(seed: u64, facts: Vec<Member>) -> Self {
        let now = Instant::now();
        let nodes = facts.into_iter().map(|facts| Node {
            core: None,
            facts,
            version: 0,
            seen: BTreeMap::new(),
            claim: None,
            runs_alone: false,
            launch: None,
            lent: None,
            last: None,
            has_cause: true,
            epochs: 0,
            starts: 0,
        });
        let nodes: Vec<Node> = nodes.collect();
        let sides = vec![0; nodes.len()];
        let (queue, trace) = (BTreeMap::new(), Vec::new());
        let needs = needs();
        let mut world =
            Self { rng: Rng(seed), now, start: now, sequence: 0, queue, nodes, sides, needs, trace };
        for node in 0..world.nodes.len() {
            world.start(node);
        }
        world
    }

    /// A member with this number and memory, in MiB.
    pub(super) fn member(number: usize, mib: u64) -> Member {
        member(u8::try_from(number).unwrap(), mib << 20)
    }

    pub(super) fn is_up(&self, node: usize) -> bool {
        self.nodes[node].core.is_some()
    }

    pub(super) fn reaches(&self, a: usize, b: usize) -> bool {
        self.is_up(a) && self.is_up(b) && self.sides[a] == self.sides[b]
    }

    pub(super) fn start(&mut self, node: usize) {
        let now = self.now;
        let known = &mut self.nodes[node];
        known.core = Some(Election::new(known.facts.clone(), config(), now));
        (known.claim, known.launch, known.lent) = (None, None, None);
        (known.runs_alone, known.has_cause, known.epochs) = (false, true, 0);
        known.seen.clear();
        known.version += 1000;
        self.note(format!("start {node}"));
        let needs = Some(self.needs.clone());
        self.tell(node, Input::Needs { model: MODEL.into(), needs });
        self.meet(node);
    }

    pub(super) fn kill(&mut self, node: usize) {
        self.note(format!("kill {node}"));
        self.part(&[node]);
        // What broke stays broken when the node is back before anybody has missed it.
        for other in 0..self.nodes.len() {
            let launch = self.nodes[other].launch.as_ref().filter(|launch| launch.workers.contains(&node));
            if let Some(epoch) = launch.map(|launch| launch.epoch).filter(|_| other != node) {
                self.later(5, 1500, Event::Gone { host: other, worker: node, epoch, held_by: None });
            }
            if let Some((_, epoch)) = self.nodes[other].lent.filter(|(host, _)| *host == node) {
                self.later(5, 1500, Event::Released { worker: other, host: node, epoch });
            }
        }
        let dead = &mut self.nodes[node];
        (dead.core, dead.launch, dead.lent, dead.runs_alone) = (None, None, None, false);
    }

    /// Puts each node on a side; those whose links break notice it after a while, those whose links come back at once.
    pub(super) fn partition(&mut self, sides: Vec<u64>) {
        self.note(format!("sides {sides:?}"));
        let count = self.nodes.len();
        let pairs = || (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| a != b);
        let before: Vec<bool> = pairs().map(|(a, b)| self.reaches(a, b)).collect();
        let old = std::mem::replace(&mut self.sides, sides);
        let mut changed = Vec::new();
        for ((a, b), was) in pairs().zip(before) {
            if self.reaches(a, b) != was {
                changed.push((a, b, was));
            }
        }
        drop(old);
        for (a, b, was) in changed {
            if was { self.silence(a, b) } else { self.show(b, a) }
        }
    }

    /// The owner changes what a node says of itself.
    pub(super) fn change(&mut self, node: usize, change: impl FnOnce(&mut Member)) {
        change(&mut self.nodes[node].facts);
        self.nodes[node].has_cause = true;
        self.note(format!("change {node}"));
        self.refresh(node);
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let event = self.queue.keys().next().map(|(at, _)| *at);
            let deadline = self.deadlines().min();
            let next = event.into_iter().chain(deadline.map(|(at, _)| at)).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            if let Some((_, node)) = deadline.filter(|(at, _)| event.is_none_or(|event| *at <= event)) {
                self.tell(node, Input::Tick);
                let next = self.nodes[node].core.as_ref().and_then(Election::next_deadline);
                assert!(next.is_none_or(|next| next > self.now), "the next deadline lies in the future");
            } else if let Some((_, event)) = self.queue.pop_first() {
                self.happen(event);
            }
        }
        self.now = end;
    }

    fn deadlines(&self) -> impl Iterator<Item = (Instant, usize)> {
        let deadline = |(node, known): (usize, &Node)| Some((known.core.as_ref()?.next_deadline()?, node));
        self.nodes.iter().enumerate().filter_map(deadline)
    }

    fn note(&mut self, text: String) {
        self.trace.push(format!("{:>8.3} {text}", self.now.duration_since(self.start).as_secs_f64()));
    }

    fn later(&mut self, from_ms: u64, spread_ms: u64, event: Event) {
        let at = self.now + Duration::from_millis(from_ms + self.rng.below(spread_ms + 1));
        self.sequence += 1;
        self.queue.insert((at, self.sequence), event);
    }

    /// Links of these to all others break.
    fn part(&mut self, nodes: &[usize]) {
        for node in nodes.iter().copied() {
            for other in (0..self.nodes.len()).filter(|other| *other != node) {
                if self.reaches(node, other) {
                    self.silence(other, node);
                    self.silence(node, other);
                }
            }
        }
    }

    fn silence(&mut self, at: usize, of: usize) {
        self.later(800, 1200, Event::Silence { at, of });
    }

    fn meet(&mut self, node: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            if self.reaches(node, other) {
                self.show(node, other);
                self.show(other, node);
            }
        }
    }

    /// Sends the record of `from` as it is now.
    fn show(&mut self, from: usize, to: usize) {
        let (version, facts) = (self.nodes[from].version, Box::new(self.public(from)));
        self.later(5, 300, Event::Record { to, from, version, facts });
    }

    fn public(&self, node: usize) -> Member {
        let known = &self.nodes[node];
        let mut facts = known.facts.clone();
        let model = facts.models.entry(MODEL.into()).or_default();
        model.claim.clone_from(&known.claim);
        model.runs_alone = known.runs_alone;
        // What the model holds is not free for others.
        if known.runs_alone || known.launch.is_some() || known.lent.is_some() {
            model.held = facts.machine.memory / 2;
            facts.machine.memory -= model.held;
        }
        facts
    }

    /// Tells all of a change of the own record.
    fn refresh(&mut self, node: usize) {
        if !self.is_up(node) {
            return;
        }
        self.nodes[node].version += 1;
        self.tell(node, Input::Me(Box::new(self.public(node))));
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            if self.reaches(node, other) {
                self.show(node, other);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Record { to, from, version, facts } => {
                let is_new = self.nodes[to].seen.get(&from).is_none_or(|seen| *seen <= version);
                if self.reaches(to, from) && is_new {
                    self.nodes[to].seen.insert(from, version);
                    self.tell(to, Input::Member(facts));
                }
            }
            Event::Silence { at, of } => self.fall_silent(at, of),
            Event::Ask { worker, host, epoch } => self.ask(worker, host, epoch),
            Event::Granted { host, worker, epoch } => {
                if let Some(launch) = self.nodes[host].launch.as_mut().filter(|launch| launch.epoch == epoch)
                {
                    launch.granted.insert(worker);
                }
            }
            Event::Gone { host, worker, epoch, held_by } => {
                self.nodes[host].has_cause = true;
                let share = Input::Share {
                    model: MODEL.into(),
                    epoch,
                    worker: id_of(worker),
                    held_by_epoch: held_by,
                };
                self.tell(host, share);
            }
            Event::Released { worker, host, epoch } => {
                if self.nodes[worker].lent == Some((host, epoch)) {
                    self.nodes[worker].lent = None;
                    self.refresh(worker);
                }
            }
        }
    }

    fn fall_silent(&mut self, at: usize, of: usize) {
        if self.reaches(at, of) || !self.is_up(at) {
            return;
        }
        if let Some((host, epoch)) = self.nodes[at].lent.filter(|(host, _)| *host == of) {
            self.nodes[at].lent = None;
            self.refresh(at);
            // The other end of the stream learns of it too, also when the link is back before it has missed anything.
            self.later(5, 1500, Event::Gone { host, worker: at, epoch, held_by: None });
        }
        let launch = self.nodes[at].launch.as_ref().filter(|launch| launch.workers.contains(&of));
        if let Some(epoch) = launch.map(|launch| launch.epoch) {
            self.later(0, 50, Event::Gone { host: at, worker: of, epoch, held_by: None });
        }
        self.nodes[at].has_cause = true;
        let facts = Member { presence: Presence::Down, ..self.nodes[of].facts.clone() };
        self.tell(at, Input::Member(Box::new(facts)));
    }

    /// The rule of `lease/1`: of two hosts the one with the higher epoch.
    fn ask(&mut self, worker: usize, host: usize, epoch: u64) {
        let is_current = self.nodes[host].launch.as_ref().is_some_and(|launch| launch.epoch == epoch);
        if !is_current {
            return;
        }
        let lent = self.nodes[worker].lent;
        let held_by = lent.filter(|(holder, held)| *holder != host && *held >= epoch).map(|(_, held)| held);
        if !self.reaches(host, worker) || held_by.is_some() || self.nodes[worker].runs_alone {
            return self.later(5, 500, Event::Gone { host, worker, epoch, held_by });
        }
        if let Some((before, held)) = lent.filter(|(before, _)| *before != host) {
            self.later(5, 100, Event::Gone { host: before, worker, epoch: held, held_by: Some(epoch) });
        }
        self.nodes[worker].lent = Some((host, epoch));
        self.refresh(worker);
        self.later(5, 100, Event::Granted { host, worker, epoch });
    }

    fn tell(&mut self, node: usize, input: Input) {
        let now = self.now;
        let Some(core) = self.nodes[node].core.as_mut() else { return };
        core.handle(input, now);
        let outputs: Vec<Output> = std::iter::from_fn(|| core.poll_output()).collect();
        let is_change = !outputs.is_empty();
        for output in outputs {
            self.perform(node, output);
        }
        if is_change {
            self.refresh(node);
        }
    }

    fn perform(&mut self, node: usize, output: Output) {
        match &output {
            Output::Host { epoch, plan, .. } => {
                let workers: Vec<NodeId> = plan.split().unwrap().workers.clone();
                self.note(format!(
                    "{node} hosts {epoch} {:?}",
                    workers.iter().map(number_of).collect::<Vec<_>>()
                ));
                self.launch(node, *epoch, workers);
            }
            Output::Stop { why, .. } => {
                self.note(format!("{node} stops: {why}"));
                self.nodes[node].has_cause |= !matches!(why, StopWhy::Better);
                self.give_back(node);
                self.nodes[node].runs_alone = false;
            }
            Output::Serve { .. } => {
                self.note(format!("{node} serves"));
                assert!(self.nodes[node].launch.is_none() && !self.nodes[node].runs_alone);
                self.nodes[node].runs_alone = true;
            }
            Output::Publish { claim, .. } => self.nodes[node].claim.clone_from(claim),
            other => self.note(format!("{node} {other:?}")),
        }
    }

    fn launch(&mut self, node: usize, epoch: u64, workers: Vec<NodeId>) {
        let set: BTreeSet<NodeId> = workers.iter().copied().collect();
        let host = &mut self.nodes[node];
        assert!(host.launch.is_none() && !host.runs_alone, "one llama-server at a time");
        assert!(
            host.has_cause || host.last.as_ref() != Some(&set),
            "a restart for an unchanged set of workers"
        );
        assert!(epoch > host.epochs, "epochs of a node grow");
        let claimed = host.claim.as_ref().unwrap();
        assert_eq!((claimed.epoch, claimed.workers.clone()), (epoch, set.iter().copied().collect()));
        (host.last, host.has_cause, host.epochs) = (Some(set), false, epoch);
        host.starts += 1;
        let workers: BTreeSet<usize> = workers.iter().map(number_of).collect();
        for worker in workers.iter().copied().filter(|worker| *worker != node) {
            self.later(5, 100, Event::Ask { worker, host: node, epoch });
        }
        let granted = workers.iter().copied().filter(|worker| *worker == node).collect();
        self.nodes[node].launch = Some(Launch { epoch, workers, granted });
    }

    fn give_back(&mut self, node: usize) {
        let Some(launch) = self.nodes[node].launch.take() else { return };
        for worker in launch.workers.into_iter().filter(|worker| *worker != node) {
            self.later(5, 100, Event::Released { worker, host: node, epoch: launch.epoch });
        }
    }
}

fn id_of(node: usize) -> NodeId {
    id(u8::try_from(node).unwrap())
}

fn number_of(node: &NodeId) -> usize {
    (0..16).find(|number| id(*number) == *node).map(usize::from).unwrap()
}
