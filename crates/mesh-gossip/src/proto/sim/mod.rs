//! A seeded network of cores under a virtual clock: latency, loss, duplication, partitions, crashes and restarts, slow
//! nodes, skewed clocks, liars.
//!
//! Every run follows from its seed. A test that fails prints it; `SEED=<number>` replays that run alone.

mod double;
mod liar;
#[cfg(test)]
mod lies;
pub mod network;
mod queue;
mod seeds;
mod simulated;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_identity::{NodeAddr, NodeId, NodeKey, Role, UnixTime};

pub use double::Double;
pub use liar::Lie;
pub use network::{Traffic, Weather};
pub use seeds::for_seeds;

use super::{Command, Input, Known, Me, Membership};
use crate::config::Config;
use crate::error::SetError;
use crate::event::Event;
use crate::member::{Audience, State};
use liar::Liar;
use network::{Loss, Network};
use simulated::{Directory, Simulated};

/// The wall clock at the start of every run.
const WALL_START: u64 = 1_800_000_000;

/// A simulated scope.
pub struct Sim {
    /// The seed of this run.
    pub seed: u64,
    network: Network<Simulated>,
    settings: Vec<(Role, Config)>,
}

impl Sim {
    /// `count` members, all started, nobody linked.
    #[must_use]
    pub fn new(seed: u64, count: usize, weather: Weather, config: &Config) -> Self {
        let network = Network::new(seed, weather, Directory::new());
        let mut sim = Self { seed, network, settings: Vec::new() };
        for _ in 0..count {
            sim.add(Role::Member, config.clone());
        }
        sim
    }

    /// A further node, started. Returns its number.
    pub fn add(&mut self, role: Role, config: Config) -> usize {
        let index = self.network.add();
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&(index as u64 + 1).to_le_bytes());
        self.network.world.add(NodeKey::from_seed(seed).node_id(), role);
        self.settings.push((role, config));
        self.start(index, 0);
        index
    }

    /// How many nodes were added.
    #[must_use]
    pub fn len(&self) -> usize {
        self.network.len()
    }

    /// Whether no node was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.network.is_empty()
    }

    /// The id of a node by its number.
    #[must_use]
    pub fn id(&self, index: usize) -> NodeId {
        self.network.world.id(number(index))
    }

    /// The number of a node by its id.
    #[must_use]
    pub fn number(&self, id: &NodeId) -> Option<usize> {
        self.network.world.number(id).map(|number| number as usize)
    }

    /// From its next link on, one node takes another for this, whatever the other's grant says.
    pub fn take_for(&mut self, index: usize, other: usize, role: Role) {
        self.network.world.take_for(number(index), number(other), role);
    }

    /// Starts a node (again), with a wall clock that is off by `skew_seconds`.
    ///
    /// # Panics
    /// Never: the double takes its own grants.
    pub fn start(&mut self, index: usize, skew_seconds: i64) {
        let id = self.id(index);
        let (role, config) = self.settings[index].clone();
        let wall = WALL_START + self.elapsed().as_secs();
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.network.draw().to_le_bytes());
        let me = Me {
            id,
            grant: Double::grant(role, &format!("node{index}")),
            addr: NodeAddr {
                direct: vec![([10, 0, 0, 1], 1000 + u16::try_from(index).unwrap_or(0)).into()],
                relay: None,
                ..NodeAddr::default()
            },
            started: UnixTime(wall.saturating_add_signed(skew_seconds)),
        };
        let is_passive = config.passive;
        let core = Membership::new(me, config, Double::new(id), seed, self.network.now());
        let core = core.expect("the double takes its own grants");
        let (events, replies, me) = (Vec::new(), Vec::new(), number(index));
        let node = Simulated { me, core, is_passive, events, replies, liar: None };
        self.network.start(index, node);
    }

    /// Ends a node without a word. Its peers notice after the idle timeout.
    pub fn crash(&mut self, index: usize) {
        let wait = self.network.weather_mut().idle_timeout;
        self.network.end(index, wait, Loss::Lost);
    }

    /// Kills a node's process; its machine tells the peers within the shortest latency.
    pub fn kill(&mut self, index: usize) {
        let wait = self.network.weather_mut().latency.0;
        self.network.end(index, wait, Loss::Gone);
    }

    /// Stops a node in order: it closes its links saying so.
    pub fn stop(&mut self, index: usize) {
        let wait = self.network.weather_mut().latency.1;
        self.network.end(index, wait, Loss::Shutdown);
    }

    /// Whether the node runs.
    #[must_use]
    pub fn is_running(&self, index: usize) -> bool {
        self.network.node(index).is_some()
    }

    /// Makes two nodes know each other, as an invite's hints do: a link is up at once.
    pub fn introduce(&mut self, a: usize, b: usize) {
        self.network.link(a, b);
    }

    /// Makes all running members know each other and hold each other for alive, as if they had been together for long. Links
    /// come with their next inputs.
    pub fn acquaint(&mut self) {
        let now = self.network.now();
        let nodes = (0..self.len()).filter_map(|index| self.network.node(index));
        let known = Known::new(nodes.filter_map(|node| node.core.own_record()), now);
        for index in 0..self.len() {
            self.network.call(index, |node, _, _, _| node.core.adopt(&known));
        }
    }

    /// Cuts every way between the two groups. Links break after the idle timeout.
    pub fn cut(&mut self, left: &[usize], right: &[usize]) {
        self.network.cut(left, right);
    }

    /// Nothing passes from one node to the other any more, but the other way. Links between them stand; no dial succeeds.
    pub fn cut_one_way(&mut self, from: usize, to: usize) {
        self.network.cut_one_way(from, to);
    }

    /// Mends every cut.
    pub fn heal(&mut self) {
        self.network.heal();
    }

    /// The node stands still for `span`, as a stopped process does; then it finds all that came in between.
    pub fn freeze(&mut self, index: usize, span: Duration) {
        self.network.freeze(index, span);
    }

    /// From now on everything reaches the node late by up to `lag`: frames, and its own deadlines.
    pub fn slow(&mut self, index: usize, lag: Duration) {
        self.network.slow(index, lag);
    }

    /// From now on, until it is started again, the node lies.
    pub fn lie(&mut self, index: usize, lie: Lie) {
        self.network.world.liars[index] = true;
        let id = self.id(index);
        let peers = self.network.links(index).map(number).collect();
        self.network.call(index, |node, _, now, _| node.liar = Some(Liar::new(lie, id, peers, now)));
    }

    /// Changes how the network behaves from now on.
    pub fn weather_mut(&mut self) -> &mut Weather {
        self.network.weather_mut()
    }

    /// Gives a node a command.
    pub fn command(&mut self, index: usize, command: Command) {
        self.network.call(index, |node, world, now, wishes| {
            node.input(Input::Command(command), world, now, wishes);
        });
    }

    /// Sets a value that members see.
    pub fn set(&mut self, index: usize, key: &str, value: &str) {
        let value = Some(Bytes::copy_from_slice(value.as_bytes()));
        self.command(index, Command::Set { id: 0, key: key.into(), value, audience: Audience::Members });
    }

    /// Nodes keep only these events from now on.
    pub fn keep_events(&mut self, keeps: fn(&Event) -> bool) {
        self.network.world.keeps = keeps;
    }

    /// Events of a node since they were last taken. An ended node has none.
    pub fn take_events(&mut self, index: usize) -> Vec<Event> {
        self.take_timed_events(index).into_iter().map(|(_, event)| event).collect()
    }

    /// Events of a node since they were last taken, with the virtual time of each.
    pub fn take_timed_events(&mut self, index: usize) -> Vec<(Duration, Event)> {
        let start = self.network.now() - self.elapsed();
        let node = self.network.node_mut(index);
        let events = node.map(|node| std::mem::take(&mut node.events)).unwrap_or_default();
        events.into_iter().map(|(at, event)| (at.duration_since(start), event)).collect()
    }

    /// Results of a node's `Set` commands since they were last taken.
    pub fn take_replies(&mut self, index: usize) -> Vec<Result<(), SetError>> {
        let node = self.network.node_mut(index);
        node.map(|node| std::mem::take(&mut node.replies)).unwrap_or_default()
    }

    /// Bytes that a node has sent.
    #[must_use]
    pub fn sent(&self, index: usize) -> u64 {
        self.traffic(index).bytes
    }

    /// What a node has handed to its links.
    #[must_use]
    pub fn traffic(&self, index: usize) -> Traffic {
        self.network.sent(index)
    }

    /// The nodes that a node has a link with.
    pub fn links(&self, index: usize) -> impl Iterator<Item = usize> + '_ {
        self.network.links(index)
    }

    /// The core of a running node.
    ///
    /// # Panics
    /// The node does not run.
    pub fn core(&mut self, index: usize) -> &mut Membership<Double> {
        &mut self.network.node_mut(index).expect("the node runs").core
    }

    /// What one node thinks of another.
    pub fn state(&mut self, index: usize, of: usize) -> Option<State> {
        let of = self.id(of);
        self.core(index).state_of(&of)
    }

    /// Virtual time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.network.elapsed()
    }

    /// The virtual clock.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.network.now()
    }

    /// How many inputs cores have taken so far.
    #[must_use]
    pub fn happened(&self) -> u64 {
        self.network.happened()
    }

    /// Runs until `done` holds, at most for `limit` of virtual time.
    ///
    /// # Panics
    /// It did not hold in time; the message names the seed.
    pub fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Duration {
        let begin = self.elapsed();
        while !done(self) {
            let spent = self.elapsed() - begin;
            assert!(spent < limit, "not within {limit:?}: {what}. Replay with SEED={}", self.seed);
            self.run(Duration::from_millis(50));
        }
        self.elapsed() - begin
    }

    /// Runs for a span of virtual time.
    pub fn run(&mut self, span: Duration) {
        self.network.run(span);
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2^32 nodes")
}
