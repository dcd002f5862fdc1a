//! A seeded network of cores under a virtual clock: latency, loss, duplication, partitions, crashes and restarts.
//!
//! Every run follows from its seed. A test that fails prints it; `SEED=<number>` replays that run alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_identity::{Domain, Expiry, NodeAddr, NodeId, NodeKey, NodeName, Role, UnixTime};

use super::rng::Rng;
use super::{Command, Input, LinkLoss, Me, Membership, Output, Refusal, Signature, Standing, Trust};
use crate::config::Config;
use crate::event::Event;
use crate::member::{Audience, State};

/// A double of the real trust: a signature is a keyed hash that names its signer, a grant is text. Fast, and anybody
/// could forge it: for simulations of honest nodes.
#[derive(Debug, Clone)]
pub struct Double {
    me: NodeId,
    revoked: BTreeSet<NodeId>,
}

impl Double {
    /// The trust of `me`.
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        Self { me, revoked: BTreeSet::new() }
    }

    /// What [`Double`] takes for a grant.
    #[must_use]
    pub fn grant(role: Role, name: &str) -> Vec<u8> {
        format!("{role} {name}").into_bytes()
    }

    /// What [`Double`] takes for a revocation.
    #[must_use]
    pub fn revocation(of: &NodeId) -> Bytes {
        Bytes::copy_from_slice(of.as_bytes())
    }
}

fn seal(subject: &NodeId, message: &[u8]) -> Signature {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(blake3::keyed_hash(subject.as_bytes(), message).as_bytes());
    Signature(bytes)
}

impl Trust for Double {
    fn sign(&self, _domain: Domain, message: &[u8]) -> Signature {
        seal(&self.me, message)
    }

    fn is_signed(&self, subject: &NodeId, _domain: Domain, message: &[u8], signature: &Signature) -> bool {
        seal(subject, message) == *signature
    }

    fn standing(&self, subject: &NodeId, grant: &[u8], _now: UnixTime) -> Result<Standing, Refusal> {
        if self.revoked.contains(subject) {
            return Err(Refusal::Revoked);
        }
        let text = std::str::from_utf8(grant).map_err(|_| Refusal::BadGrant)?;
        let (role, name) = text.split_once(' ').ok_or(Refusal::BadGrant)?;
        let role = role.parse().map_err(|_| Refusal::BadGrant)?;
        let name = NodeName::new(name).map_err(|_| Refusal::BadGrant)?;
        Ok(Standing { name, role, expires: Expiry::NEVER })
    }

    fn revoke(&mut self, revocation: &[u8], _now: UnixTime) -> Result<bool, Refusal> {
        let bytes: &[u8; 32] = revocation.try_into().map_err(|_| Refusal::BadSignature)?;
        let id = NodeId::from_bytes(bytes).map_err(|_| Refusal::BadSignature)?;
        Ok(self.revoked.insert(id))
    }

    fn revocations(&self) -> Vec<Bytes> {
        self.revoked.iter().map(Self::revocation).collect()
    }
}

/// How the simulated network behaves.
#[derive(Debug, Clone)]
pub struct Weather {
    /// Shortest and longest way of a frame.
    pub latency: (Duration, Duration),
    /// Share of frames that are lost, 0.0 to 1.0.
    pub loss: f64,
    /// Share of frames that arrive twice, 0.0 to 1.0.
    pub duplication: f64,
    /// How long a link that broke looks alive to both ends.
    pub idle_timeout: Duration,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            latency: (Duration::from_millis(1), Duration::from_millis(20)),
            loss: 0.0,
            duplication: 0.0,
            idle_timeout: Duration::from_secs(1),
        }
    }
}

/// One simulated node.
struct Host {
    key: NodeKey,
    core: Option<Membership<Double>>,
    events: Vec<Event>,
    replies: Vec<Result<(), crate::error::SetError>>,
    config: Config,
    role: Role,
    passive: bool,
    sent: u64,
}

enum Happening {
    Frame { from: NodeId, to: NodeId, session: (u64, u64), frame: Bytes },
    Dial { from: NodeId, to: NodeId },
    Break { a: NodeId, b: NodeId },
}

/// A simulated scope.
pub struct Sim {
    rng: Rng,
    /// The seed of this run.
    pub seed: u64,
    start: Instant,
    now: Instant,
    weather: Weather,
    hosts: BTreeMap<NodeId, Host>,
    /// The role that the first takes the second for, where that is not what its grant says.
    taken: BTreeMap<(NodeId, NodeId), Role>,
    /// How often a host was started: what was sent to an earlier process does not reach the next.
    sessions: BTreeMap<NodeId, u64>,
    names: Vec<NodeId>,
    links: BTreeSet<(NodeId, NodeId)>,
    cuts: BTreeSet<(NodeId, NodeId)>,
    queue: BTreeMap<(Instant, u64), Happening>,
    serial: u64,
    wall_start: u64,
}

impl Sim {
    /// `count` members, all started, nobody linked.
    #[must_use]
    pub fn new(seed: u64, count: usize, weather: Weather, config: &Config) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let start = Instant::now();
        let mut sim = Self {
            rng: Rng::new(bytes),
            seed,
            start,
            now: start,
            weather,
            hosts: BTreeMap::new(),
            taken: BTreeMap::new(),
            sessions: BTreeMap::new(),
            names: Vec::new(),
            links: BTreeSet::new(),
            cuts: BTreeSet::new(),
            queue: BTreeMap::new(),
            serial: 0,
            wall_start: 1_800_000_000,
        };
        for _ in 0..count {
            sim.add(Role::Member, config.clone());
        }
        sim
    }

    /// A further node, started. Returns its number.
    pub fn add(&mut self, role: Role, config: Config) -> usize {
        let index = self.names.len();
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&(index as u64 + 1).to_le_bytes());
        let key = NodeKey::from_seed(seed);
        let id = key.node_id();
        self.names.push(id);
        let passive = config.passive;
        let host =
            Host { key, core: None, events: Vec::new(), replies: Vec::new(), config, role, passive, sent: 0 };
        self.hosts.insert(id, host);
        self.start(index, 0);
        index
    }

    /// The id of a node by its number.
    #[must_use]
    pub fn id(&self, index: usize) -> NodeId {
        self.names[index]
    }

    /// From its next link on, one node takes another for this, whatever the other's grant says.
    pub fn take_for(&mut self, index: usize, other: usize, role: Role) {
        self.taken.insert((self.names[index], self.names[other]), role);
    }

    fn role(&self, of: NodeId, other: NodeId) -> Role {
        self.taken.get(&(of, other)).copied().unwrap_or(self.hosts[&other].role)
    }

    /// Starts a node (again), with a wall clock that is off by `skew_seconds`.
    pub fn start(&mut self, index: usize, skew_seconds: i64) {
        let id = self.names[index];
        let elapsed = self.now.duration_since(self.start).as_secs();
        let started = UnixTime((self.wall_start + elapsed).saturating_add_signed(skew_seconds));
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.rng.next().to_le_bytes());
        let host = self.hosts.get_mut(&id).expect("added");
        let me = Me {
            id: host.key.node_id(),
            grant: Double::grant(host.role, &format!("node{index}")),
            addr: NodeAddr {
                direct: vec![([10, 0, 0, 1], 1000 + u16::try_from(index).unwrap_or(0)).into()],
                relay: None,
                ..NodeAddr::default()
            },
            started,
        };
        let core = Membership::new(me, host.config.clone(), Double::new(id), seed, self.now);
        host.core = Some(core.expect("the double takes its own grants"));
        host.events.clear();
        *self.sessions.entry(id).or_default() += 1;
    }

    /// Kills a node without a word. Its peers notice after the idle timeout.
    pub fn crash(&mut self, index: usize) {
        let id = self.names[index];
        self.hosts.get_mut(&id).expect("added").core = None;
        *self.sessions.entry(id).or_default() += 1;
        for (a, b) in self.links.clone() {
            if a == id || b == id {
                self.schedule(self.weather.idle_timeout, Happening::Break { a, b });
            }
        }
    }

    /// Makes two nodes know each other, as an invite's hints do: a link is up at once.
    pub fn introduce(&mut self, a: usize, b: usize) {
        let (a, b) = (self.names[a], self.names[b]);
        self.link(a, b);
    }

    /// Cuts every way between the two groups. Links break after the idle timeout.
    pub fn cut(&mut self, left: &[usize], right: &[usize]) {
        for a in left {
            for b in right {
                let pair = ordered(self.names[*a], self.names[*b]);
                self.cuts.insert(pair);
                if self.links.contains(&pair) {
                    self.schedule(self.weather.idle_timeout, Happening::Break { a: pair.0, b: pair.1 });
                }
            }
        }
    }

    /// Mends every cut.
    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// Gives a node a command.
    pub fn command(&mut self, index: usize, command: Command) {
        let id = self.names[index];
        self.input(id, Input::Command(command));
    }

    /// Sets a value that members see.
    pub fn set(&mut self, index: usize, key: &str, value: &str) {
        let value = Some(Bytes::copy_from_slice(value.as_bytes()));
        self.command(index, Command::Set { id: 0, key: key.into(), value, audience: Audience::Members });
    }

    /// Events of a node since they were last taken.
    pub fn take_events(&mut self, index: usize) -> Vec<Event> {
        let id = self.names[index];
        std::mem::take(&mut self.hosts.get_mut(&id).expect("added").events)
    }

    /// Results of a node's `Set` commands since they were last taken.
    pub fn take_replies(&mut self, index: usize) -> Vec<Result<(), crate::error::SetError>> {
        let id = self.names[index];
        std::mem::take(&mut self.hosts.get_mut(&id).expect("added").replies)
    }

    /// Bytes that a node has sent.
    #[must_use]
    pub fn sent(&self, index: usize) -> u64 {
        self.hosts[&self.names[index]].sent
    }

    /// The core of a running node.
    pub fn core(&mut self, index: usize) -> &mut Membership<Double> {
        let id = self.names[index];
        self.hosts.get_mut(&id).and_then(|host| host.core.as_mut()).expect("the node runs")
    }

    /// What one node thinks of another.
    pub fn state(&mut self, index: usize, of: usize) -> Option<State> {
        let of = self.names[of];
        self.core(index).members().get(&of).map(|member| member.state)
    }

    /// Virtual time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.now.duration_since(self.start)
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
        let begin = self.now;
        while !done(self) {
            let spent = self.now.duration_since(begin);
            assert!(spent < limit, "not within {limit:?}: {what}. Replay with SEED={}", self.seed);
            self.run(Duration::from_millis(50));
        }
        self.now.duration_since(begin)
    }

    /// Runs for a span of virtual time.
    pub fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let next_tick =
                self.hosts.iter().filter_map(|(id, host)| Some((host.core.as_ref()?.next_deadline()?, *id)));
            let tick = next_tick.min();
            let event = self.queue.first_key_value().map(|(key, _)| *key);
            match (tick, event) {
                (Some((at, id)), event) if at <= end && event.is_none_or(|(due, _)| at < due) => {
                    self.now = self.now.max(at);
                    self.input(id, Input::Tick);
                }
                (_, Some(key)) if key.0 <= end => {
                    self.now = self.now.max(key.0);
                    let happening = self.queue.remove(&key).expect("first");
                    self.happen(happening);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Frame { from, to, session, frame } => {
                let is_linked = self.links.contains(&ordered(from, to)) && !self.is_cut(from, to);
                if is_linked && session == (self.session(from), self.session(to)) {
                    let role = self.role(to, from);
                    self.input(to, Input::Frame { from, role, frame });
                }
            }
            Happening::Dial { from, to } => {
                if self.hosts[&to].core.is_some() && !self.is_cut(from, to) && !self.hosts[&to].passive {
                    self.link(from, to);
                } else {
                    self.input(from, Input::DialFailed { peer: to });
                }
            }
            Happening::Break { a, b } => self.unlink(a, b),
        }
    }

    fn link(&mut self, a: NodeId, b: NodeId) {
        self.links.insert(ordered(a, b));
        let (role_a, role_b) = (self.role(b, a), self.role(a, b));
        self.input(a, Input::LinkUp { peer: b, role: role_b });
        self.input(b, Input::LinkUp { peer: a, role: role_a });
    }

    fn unlink(&mut self, a: NodeId, b: NodeId) {
        if self.links.remove(&ordered(a, b)) {
            self.input(a, Input::LinkDown { peer: b, why: LinkLoss::Lost });
            self.input(b, Input::LinkDown { peer: a, why: LinkLoss::Lost });
        }
    }

    fn input(&mut self, id: NodeId, input: Input) {
        let now = self.now;
        let host = self.hosts.get_mut(&id).expect("added");
        let Some(core) = &mut host.core else { return };
        let is_tick = matches!(input, Input::Tick);
        core.handle(input, now).expect("honest nodes send no faults");
        assert!(
            !is_tick || core.next_deadline().is_some_and(|at| at > now),
            "the next deadline lies in the future"
        );
        let mut outputs = Vec::new();
        while let Some(output) = core.poll_output() {
            outputs.push(output);
        }
        for output in outputs {
            self.perform(id, output);
        }
    }

    fn perform(&mut self, id: NodeId, output: Output) {
        let host = self.hosts.get_mut(&id).expect("added");
        match output {
            Output::Send { to, frame } => {
                host.sent += frame.len() as u64;
                self.transmit(id, to, &frame);
            }
            Output::Dial { to } => {
                let wait = self.latency() * 2;
                self.schedule(wait, Happening::Dial { from: id, to });
            }
            Output::Disconnect { node, .. } => {
                self.schedule(Duration::ZERO, Happening::Break { a: id, b: node })
            }
            Output::Event(event) => host.events.push(event),
            Output::Reply { result, .. } => host.replies.push(result),
            Output::Refused { .. } | Output::Address { .. } | Output::Forget { .. } => {}
        }
    }

    fn transmit(&mut self, from: NodeId, to: NodeId, frame: &Bytes) {
        if !self.links.contains(&ordered(from, to)) || self.rng.chance(self.weather.loss) {
            return;
        }
        let copies = if self.rng.chance(self.weather.duplication) { 2 } else { 1 };
        let session = (self.session(from), self.session(to));
        for _ in 0..copies {
            let wait = self.latency();
            self.schedule(wait, Happening::Frame { from, to, session, frame: frame.clone() });
        }
    }

    fn latency(&mut self) -> Duration {
        self.rng.between(self.weather.latency.0, self.weather.latency.1)
    }

    fn session(&self, id: NodeId) -> u64 {
        self.sessions.get(&id).copied().unwrap_or(0)
    }

    fn is_cut(&self, a: NodeId, b: NodeId) -> bool {
        self.cuts.contains(&ordered(a, b))
    }

    fn schedule(&mut self, wait: Duration, happening: Happening) {
        self.serial += 1;
        self.queue.insert((self.now + wait, self.serial), happening);
    }
}

fn ordered(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    if a < b { (a, b) } else { (b, a) }
}

/// Runs `run` for every seed of `seeds`, or only for the one that the environment variable `SEED` names.
///
/// # Panics
/// When `run` does, after it has printed the seed.
pub fn for_seeds(seeds: std::ops::Range<u64>, run: impl Fn(u64)) {
    let chosen = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    for seed in chosen.map_or(seeds, |seed| seed..seed + 1) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed)));
        if let Err(panic) = outcome {
            eprintln!("the run of seed {seed} failed; replay it alone with SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
