//! A seeded network under a virtual clock, for any kind of node: latency that reorders, loss, duplication, cuts, ways that
//! lead in one direction only, crashes, restarts, nodes that are slow or stand still.
//!
//! It knows nodes by their number. Frames are lost one by one, as datagrams are; a link never breaks by loss.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::rng::Rng;
use super::queue::Queue;

/// A node of the network: it gets told what happens and says what it wants done.
pub trait Node {
    /// What all nodes of the network may read.
    type World;
    /// Whether frames go to anybody, without a link.
    const DATAGRAMS: bool = false;

    /// Something happens to it.
    fn handle(&mut self, what: Happening, world: &Self::World, now: Instant, wishes: &mut Vec<Wish>);

    /// When it wants a [`Happening::Tick`].
    fn next_deadline(&self) -> Option<Instant>;

    /// Whether others can dial it.
    fn is_dialable(&self) -> bool {
        true
    }
}

/// What happens to a node.
#[derive(Debug)]
pub enum Happening {
    /// Its deadline has come.
    Tick,
    /// A frame arrived.
    Frame {
        /// From whom.
        from: u32,
        /// What.
        frame: Bytes,
    },
    /// A link stands.
    LinkUp {
        /// To whom.
        peer: u32,
    },
    /// A link is gone.
    LinkDown {
        /// To whom.
        peer: u32,
        /// What is known of it.
        why: Loss,
    },
    /// A [`Wish::Dial`] came to nothing.
    DialFailed {
        /// For whom it was.
        peer: u32,
    },
}

/// How a link ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The peer said that it stops.
    Shutdown,
    /// The peer's machine says that the process is no more.
    Gone,
    /// Nobody knows.
    Lost,
}

/// What a node wants done.
#[derive(Debug)]
pub enum Wish {
    /// Send a frame.
    Send {
        /// To whom.
        to: u32,
        /// What.
        frame: Bytes,
    },
    /// Make a link.
    Dial {
        /// To whom.
        to: u32,
    },
    /// Close the link.
    Disconnect {
        /// To whom.
        peer: u32,
    },
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
    /// How long a dial that nobody answers takes to fail.
    pub dial_timeout: Duration,
}

impl Default for Weather {
    fn default() -> Self {
        Self {
            latency: (Duration::from_millis(1), Duration::from_millis(20)),
            loss: 0.0,
            duplication: 0.0,
            idle_timeout: Duration::from_secs(1),
            dial_timeout: Duration::from_secs(1),
        }
    }
}

/// What a node has handed to its links.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames.
    pub frames: u64,
    /// Bytes of them, without any header of a link's.
    pub bytes: u64,
}

/// No tick is on its way.
const UNARMED: (u64, u64) = (u64::MAX, u64::MAX);

struct Host<N> {
    node: Option<N>,
    /// Peer and session, by peer. Each end has its own view.
    links: Vec<(u32, u32)>,
    /// When its next tick comes, and the deadline that it is for.
    armed: (u64, u64),
    sent: Traffic,
    frozen_until: u64,
    /// What a standing-still node finds when it goes on.
    deferred: Vec<Happening>,
    /// By how much at most everything reaches the node late.
    lag: Duration,
}

enum Event {
    Tick { host: u32 },
    Frame { from: u32, to: u32, session: u32, frame: Bytes },
    Dial { from: u32, to: u32 },
    DialFailed { from: u32, to: u32 },
    Break { host: u32, peer: u32, session: u32, cause: Cause },
    Thaw { host: u32 },
}

#[derive(Clone, Copy)]
enum Cause {
    /// The other end is no more.
    Ended(Loss),
    /// A cut, if it still is one by then.
    Cut,
    /// One end stands still, if it still does by then.
    Frozen(u32),
}

/// No frame passes from one group to the other.
struct Cut {
    from: Vec<bool>,
    to: Vec<bool>,
}

impl Cut {
    fn new(from: &[usize], to: &[usize]) -> Self {
        Self { from: flags(from), to: flags(to) }
    }

    fn holds(&self, from: u32, to: u32) -> bool {
        let has = |flags: &[bool], host: u32| flags.get(host as usize).copied().unwrap_or(false);
        has(&self.from, from) && has(&self.to, to)
    }
}

fn flags(hosts: &[usize]) -> Vec<bool> {
    let mut flags = vec![false; hosts.iter().max().map_or(0, |last| last + 1)];
    for host in hosts {
        flags[*host] = true;
    }
    flags
}

/// Nodes, what is between them, and their clock.
pub struct Network<N: Node> {
    /// What all nodes may read.
    pub world: N::World,
    /// Chance of this network.
    rng: Rng,
    start: Instant,
    now: u64,
    weather: Weather,
    hosts: Vec<Host<N>>,
    cuts: Vec<Cut>,
    queue: Queue<Event>,
    sessions: u32,
    wishes: Vec<Wish>,
    happened: u64,
}

impl<N: Node> Network<N> {
    /// A network without nodes. Everything follows from the seed.
    #[must_use]
    pub fn new(seed: u64, weather: Weather, world: N::World) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self {
            world,
            rng: Rng::new(bytes),
            start: Instant::now(),
            now: 0,
            weather,
            hosts: Vec::new(),
            cuts: Vec::new(),
            queue: Queue::new(),
            sessions: 0,
            wishes: Vec::new(),
            happened: 0,
        }
    }

    /// Room for a further node, which does not run yet. Returns its number.
    pub fn add(&mut self) -> usize {
        self.hosts.push(Host {
            node: None,
            links: Vec::new(),
            armed: UNARMED,
            sent: Traffic::default(),
            frozen_until: 0,
            deferred: Vec::new(),
            lag: Duration::ZERO,
        });
        self.hosts.len() - 1
    }

    /// How many nodes there are, running or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether there are no nodes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// A number drawn from the network's chance.
    pub fn draw(&mut self) -> u64 {
        self.rng.next()
    }

    /// Virtual time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// The virtual clock.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.start + self.elapsed()
    }

    /// How many things happened to nodes so far.
    #[must_use]
    pub fn happened(&self) -> u64 {
        self.happened
    }

    /// Changes how the network behaves from now on.
    pub fn weather_mut(&mut self) -> &mut Weather {
        &mut self.weather
    }

    /// Starts a node. What ran in its place is gone without a word.
    pub fn start(&mut self, host: usize, node: N) {
        self.end(host, self.weather.idle_timeout, Loss::Lost);
        self.hosts[host].node = Some(node);
        self.arm(number(host));
    }

    /// Ends a node. Its peers are told `why` after `wait`.
    pub fn end(&mut self, host: usize, wait: Duration, why: Loss) {
        let id = number(host);
        let entry = &mut self.hosts[host];
        entry.node = None;
        entry.armed = UNARMED;
        entry.frozen_until = 0;
        entry.deferred.clear();
        for (peer, session) in std::mem::take(&mut entry.links) {
            self.schedule(wait, Event::Break { host: peer, peer: id, session, cause: Cause::Ended(why) });
        }
    }

    /// A running node.
    #[must_use]
    pub fn node(&self, host: usize) -> Option<&N> {
        self.hosts[host].node.as_ref()
    }

    /// A running node. Not for anything that makes it want something: see [`Network::call`].
    pub fn node_mut(&mut self, host: usize) -> Option<&mut N> {
        self.hosts[host].node.as_mut()
    }

    /// Does something with a running node, and then what it wants.
    pub fn call<R>(
        &mut self,
        host: usize,
        act: impl FnOnce(&mut N, &N::World, Instant, &mut Vec<Wish>) -> R,
    ) -> Option<R> {
        let now = self.now();
        let mut wishes = std::mem::take(&mut self.wishes);
        let node = self.hosts[host].node.as_mut();
        let result = node.map(|node| act(node, &self.world, now, &mut wishes));
        self.fulfil(number(host), wishes);
        self.arm(number(host));
        result
    }

    /// What a node has sent.
    #[must_use]
    pub fn sent(&self, host: usize) -> Traffic {
        self.hosts[host].sent
    }

    /// The nodes that a node has a link with.
    pub fn links(&self, host: usize) -> impl Iterator<Item = usize> + '_ {
        self.hosts[host].links.iter().map(|(peer, _)| *peer as usize)
    }

    /// Makes a link between two running nodes.
    pub fn link(&mut self, a: usize, b: usize) {
        let (a, b) = (number(a), number(b));
        self.sessions += 1;
        for (host, peer) in [(a, b), (b, a)] {
            let links = &mut self.hosts[host as usize].links;
            match links.binary_search_by_key(&peer, |link| link.0) {
                Ok(at) => links[at].1 = self.sessions,
                Err(at) => links.insert(at, (peer, self.sessions)),
            }
        }
        self.deliver(a, Happening::LinkUp { peer: b });
        self.deliver(b, Happening::LinkUp { peer: a });
    }

    /// Cuts every way between the two groups. Links break after the idle timeout.
    pub fn cut(&mut self, left: &[usize], right: &[usize]) {
        self.cuts.push(Cut::new(left, right));
        self.cuts.push(Cut::new(right, left));
        let cut = self.cuts.len() - 2..self.cuts.len();
        for host in 0..number(self.hosts.len()) {
            for at in 0..self.hosts[host as usize].links.len() {
                let (peer, session) = self.hosts[host as usize].links[at];
                if self.cuts[cut.clone()].iter().any(|cut| cut.holds(host, peer)) {
                    let wait = self.weather.idle_timeout;
                    self.schedule(wait, Event::Break { host, peer, session, cause: Cause::Cut });
                }
            }
        }
    }

    /// Nothing passes from one node to the other any more, but the other way. Links between them stand; no dial succeeds.
    pub fn cut_one_way(&mut self, from: usize, to: usize) {
        self.cuts.push(Cut::new(&[from], &[to]));
    }

    /// Mends every cut.
    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    /// The node stands still, as a stopped process does: what reaches it waits, and its links break after the idle timeout.
    pub fn freeze(&mut self, host: usize, span: Duration) {
        let id = number(host);
        self.hosts[host].frozen_until = self.now + nanos(span);
        self.schedule(span, Event::Thaw { host: id });
        for (peer, session) in self.hosts[host].links.clone() {
            for (host, peer) in [(peer, id), (id, peer)] {
                let event = Event::Break { host, peer, session, cause: Cause::Frozen(id) };
                self.schedule(self.weather.idle_timeout, event);
            }
        }
    }

    /// From now on everything reaches the node late by up to `lag`: frames, and its own ticks.
    pub fn slow(&mut self, host: usize, lag: Duration) {
        self.hosts[host].lag = lag;
    }

    /// Runs for a span of virtual time.
    pub fn run(&mut self, span: Duration) {
        let end = self.now + nanos(span);
        while let Some((at, event)) = self.queue.pop_until(end) {
            self.now = at;
            self.happen(event);
        }
        self.now = end;
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick { host } => self.tick(host),
            Event::Frame { from, to, session, frame } => {
                let arrives = N::DATAGRAMS || self.session(to, from) == Some(session);
                if arrives && !self.is_cut(from, to) {
                    self.deliver(to, Happening::Frame { from, frame });
                }
            }
            Event::Dial { from, to } => {
                if self.answers_dials(to) && !self.is_cut(from, to) && !self.is_cut(to, from) {
                    self.link(from as usize, to as usize);
                } else {
                    self.schedule(self.weather.dial_timeout, Event::DialFailed { from, to });
                }
            }
            Event::DialFailed { from, to } => self.deliver(from, Happening::DialFailed { peer: to }),
            Event::Break { host, peer, session, cause } => {
                let why = match cause {
                    Cause::Ended(why) => why,
                    Cause::Cut if self.is_cut(host, peer) || self.is_cut(peer, host) => Loss::Lost,
                    Cause::Frozen(still) if self.is_frozen(still) => Loss::Lost,
                    Cause::Cut | Cause::Frozen(_) => return,
                };
                if self.session(host, peer) == Some(session) {
                    self.hosts[host as usize].links.retain(|link| link.0 != peer);
                    self.deliver(host, Happening::LinkDown { peer, why });
                }
            }
            Event::Thaw { host } => self.thaw(host),
        }
    }

    fn tick(&mut self, host: u32) {
        let entry = &mut self.hosts[host as usize];
        if entry.armed.0 != self.now {
            return; // An earlier deadline took its place.
        }
        entry.armed = UNARMED;
        let Some(deadline) = entry.node.as_ref().and_then(N::next_deadline) else { return };
        if deadline <= self.now() && !self.is_frozen(host) {
            self.deliver(host, Happening::Tick);
        } else {
            self.arm(host);
        }
    }

    fn thaw(&mut self, host: u32) {
        if self.is_frozen(host) {
            return; // It was frozen again in between.
        }
        let now = self.now();
        let entry = &mut self.hosts[host as usize];
        let deferred = std::mem::take(&mut entry.deferred);
        // A driver looks at its clock before it looks at its peers.
        if entry.node.as_ref().and_then(N::next_deadline).is_some_and(|at| at <= now) {
            self.deliver(host, Happening::Tick);
        }
        for happening in deferred {
            self.deliver(host, happening);
        }
        self.arm(host);
    }

    fn deliver(&mut self, host: u32, what: Happening) {
        let now = self.now();
        let is_frozen = self.is_frozen(host);
        let entry = &mut self.hosts[host as usize];
        let Some(node) = &mut entry.node else { return };
        if is_frozen {
            entry.deferred.push(what);
            return;
        }
        self.happened += 1;
        let mut wishes = std::mem::take(&mut self.wishes);
        node.handle(what, &self.world, now, &mut wishes);
        self.fulfil(host, wishes);
        self.arm(host);
    }

    fn fulfil(&mut self, host: u32, mut wishes: Vec<Wish>) {
        for wish in wishes.drain(..) {
            match wish {
                Wish::Send { to, frame } => self.transmit(host, to, frame),
                Wish::Dial { to } => {
                    let wait = self.latency() * 2;
                    self.schedule(wait, Event::Dial { from: host, to });
                }
                Wish::Disconnect { peer } => {
                    if let Some(session) = self.session(host, peer) {
                        let lost = Cause::Ended(Loss::Lost);
                        let wait = self.latency();
                        self.schedule(Duration::ZERO, Event::Break { host, peer, session, cause: lost });
                        self.schedule(wait, Event::Break { host: peer, peer: host, session, cause: lost });
                    }
                }
            }
        }
        self.wishes = wishes;
    }

    fn transmit(&mut self, from: u32, to: u32, frame: Bytes) {
        let session = self.session(from, to);
        if session.is_none() && !N::DATAGRAMS {
            return;
        }
        let sent = &mut self.hosts[from as usize].sent;
        sent.frames += 1;
        sent.bytes += frame.len() as u64;
        if self.is_cut(from, to) || self.rng.chance(self.weather.loss) {
            return;
        }
        let session = session.unwrap_or(0);
        if self.weather.duplication > 0.0 && self.rng.chance(self.weather.duplication) {
            let wait = self.latency() + self.lag(to);
            self.schedule(wait, Event::Frame { from, to, session, frame: frame.clone() });
        }
        let wait = self.latency() + self.lag(to);
        self.schedule(wait, Event::Frame { from, to, session, frame });
    }

    /// Sees to it that the node gets a tick at its deadline. A tick that is on its way for an earlier time stays.
    fn arm(&mut self, host: u32) {
        let entry = &self.hosts[host as usize];
        let Some(deadline) = entry.node.as_ref().and_then(N::next_deadline) else { return };
        let deadline = nanos(deadline.saturating_duration_since(self.start)).max(self.now);
        if deadline < entry.armed.1 {
            let frozen_until = entry.frozen_until;
            let at = (deadline + nanos(self.lag(host))).max(frozen_until);
            self.hosts[host as usize].armed = (at, deadline);
            self.queue.push(at, Event::Tick { host });
        }
    }

    fn latency(&mut self) -> Duration {
        self.rng.between(self.weather.latency.0, self.weather.latency.1)
    }

    fn lag(&mut self, host: u32) -> Duration {
        let lag = self.hosts[host as usize].lag;
        if lag.is_zero() { lag } else { self.rng.between(Duration::ZERO, lag) }
    }

    fn session(&self, host: u32, peer: u32) -> Option<u32> {
        let links = &self.hosts[host as usize].links;
        links.binary_search_by_key(&peer, |link| link.0).ok().map(|at| links[at].1)
    }

    fn answers_dials(&self, host: u32) -> bool {
        !self.is_frozen(host) && self.hosts[host as usize].node.as_ref().is_some_and(N::is_dialable)
    }

    fn is_frozen(&self, host: u32) -> bool {
        self.hosts[host as usize].frozen_until > self.now
    }

    fn is_cut(&self, from: u32, to: u32) -> bool {
        self.cuts.iter().any(|cut| cut.holds(from, to))
    }

    fn schedule(&mut self, wait: Duration, event: Event) {
        self.queue.push(self.now + nanos(wait), event);
    }
}

fn number(host: usize) -> u32 {
    u32::try_from(host).expect("fewer than 2^32 nodes")
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX / 4)
}
