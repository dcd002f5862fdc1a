//! One core as a node of the simulated network.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Instant;

use mesh_identity::{NodeId, Role};

use super::super::{Input, LinkLoss, Membership, Output};
use super::double::Double;
use super::liar::Liar;
use super::network::{Happening, Loss, Node, Wish};
use crate::error::SetError;
use crate::event::Event;

/// Whom numbers stand for.
pub(super) struct Directory {
    ids: Vec<NodeId>,
    roles: Vec<Role>,
    numbers: HashMap<NodeId, u32, BuildHasherDefault<KeyHasher>>,
    /// The role that the first takes the second for, where that is not what its grant says.
    taken: BTreeMap<(u32, u32), Role>,
    pub(super) liars: Vec<bool>,
    /// Which events nodes keep for [`super::Sim::take_events`].
    pub(super) keeps: fn(&Event) -> bool,
}

/// Keys are random already: the last eight bytes that are written are the hash.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk::<8>() {
            self.0 = u64::from_le_bytes(*last);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Directory {
    pub(super) fn new() -> Self {
        Self {
            ids: Vec::new(),
            roles: Vec::new(),
            numbers: HashMap::default(),
            taken: BTreeMap::new(),
            liars: Vec::new(),
            keeps: |_| true,
        }
    }

    pub(super) fn add(&mut self, id: NodeId, role: Role) {
        self.numbers.insert(id, u32::try_from(self.ids.len()).expect("fewer than 2^32 nodes"));
        self.ids.push(id);
        self.roles.push(role);
        self.liars.push(false);
    }

    pub(super) fn ids(&self) -> &[NodeId] {
        &self.ids
    }

    pub(super) fn id(&self, number: u32) -> NodeId {
        self.ids[number as usize]
    }

    /// None for a key that is no node's.
    pub(super) fn number(&self, id: &NodeId) -> Option<u32> {
        self.numbers.get(id).copied()
    }

    pub(super) fn take_for(&mut self, of: u32, other: u32, role: Role) {
        self.taken.insert((of, other), role);
    }

    fn role(&self, of: u32, other: u32) -> Role {
        let granted = self.roles[other as usize];
        if self.taken.is_empty() { granted } else { *self.taken.get(&(of, other)).unwrap_or(&granted) }
    }
}

/// A core, what it told its application, and perhaps what it does against the rules.
pub(super) struct Simulated {
    pub(super) me: u32,
    pub(super) core: Membership<Double>,
    pub(super) is_passive: bool,
    pub(super) events: Vec<(Instant, Event)>,
    pub(super) replies: Vec<Result<(), SetError>>,
    pub(super) liar: Option<Liar>,
}

impl Node for Simulated {
    type World = Directory;

    fn handle(&mut self, what: Happening, world: &Directory, now: Instant, wishes: &mut Vec<Wish>) {
        if let Some(liar) = &mut self.liar {
            liar.notice(&what, wishes);
        }
        let role = |peer| world.role(self.me, peer);
        match what {
            Happening::Tick => {
                if self.core.next_deadline().is_some_and(|at| at <= now) {
                    self.input(Input::Tick, world, now, wishes);
                    let next = self.core.next_deadline();
                    assert!(next.is_some_and(|at| at > now), "the next deadline lies in the future");
                }
                if let Some(liar) = &mut self.liar {
                    liar.tick((world, &self.core), now, wishes);
                }
            }
            Happening::Frame { from, frame } => {
                let input = Input::Frame { from: world.id(from), role: role(from), frame };
                let done = self.core.handle(input, now);
                assert!(done.is_ok() || world.liars[from as usize], "an honest node sent a fault: {done:?}");
                self.drain(world, now, wishes);
            }
            Happening::LinkUp { peer } => {
                let input = Input::LinkUp { peer: world.id(peer), role: role(peer) };
                self.input(input, world, now, wishes);
            }
            Happening::LinkDown { peer, why } => {
                let why = match why {
                    Loss::Shutdown => LinkLoss::Shutdown,
                    Loss::Gone => LinkLoss::Gone,
                    Loss::Lost => LinkLoss::Lost,
                };
                self.input(Input::LinkDown { peer: world.id(peer), why }, world, now, wishes);
            }
            Happening::DialFailed { peer } => {
                self.input(Input::DialFailed { peer: world.id(peer) }, world, now, wishes);
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let core = self.core.next_deadline();
        match &self.liar {
            Some(liar) => core.map_or(Some(liar.next), |at| Some(at.min(liar.next))),
            None => core,
        }
    }

    fn is_dialable(&self) -> bool {
        !self.is_passive
    }
}

impl Simulated {
    pub(super) fn input(&mut self, input: Input, world: &Directory, now: Instant, wishes: &mut Vec<Wish>) {
        self.core.handle(input, now).expect("only frames are faults");
        self.drain(world, now, wishes);
    }

    fn drain(&mut self, world: &Directory, now: Instant, wishes: &mut Vec<Wish>) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send { to, frame } => {
                    let Some(to) = world.number(&to) else { continue };
                    let frame = match &self.liar {
                        Some(liar) => liar.twist(to, frame),
                        None => Some(frame),
                    };
                    wishes.extend(frame.map(|frame| Wish::Send { to, frame }));
                }
                Output::Dial { to } => {
                    wishes.extend(world.number(&to).map(|to| Wish::Dial { to }));
                }
                Output::Disconnect { node, .. } => {
                    wishes.extend(world.number(&node).map(|peer| Wish::Disconnect { peer }));
                }
                Output::Event(event) if (world.keeps)(&event) => self.events.push((now, event)),
                Output::Reply { result, .. } => self.replies.push(result),
                Output::Event(_)
                | Output::Refused { .. }
                | Output::Address { .. }
                | Output::Forget { .. } => {}
            }
        }
    }
}
