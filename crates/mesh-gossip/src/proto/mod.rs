//! The membership protocol as a pure core: it reads no clock, owns no socket, spawns nothing, and draws chance only
//! from its seed. docs/protocols/gossip.md describes messages, states, timers, limits and threats.
//!
//! **Invariants:** what is known of a node changes only by that node's own signature; no node is down by one other's word; a
//! (node, incarnation) that is down or has left stays so; after a [`Input::Tick`] the next deadline lies in the future.

mod accuse;
mod case;
mod dial;
mod exchange;
#[cfg(any(test, feature = "testing"))]
mod known;
mod links;
mod node;
mod overlay;
mod own;
mod phase;
mod pieces;
mod record;
mod rings;
mod rng;
mod table;
mod timers;
mod trust;
mod verdict;
mod watch;
mod wire;

#[cfg(any(test, feature = "testing"))]
pub mod sim;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_identity::{NodeAddr, NodeId, Role, UnixTime};

#[cfg(any(test, feature = "testing"))]
pub use known::{Known, OwnRecord};
pub use trust::{Refusal, Signature, Standing, Trust};

use crate::config::Config;
use crate::error::{PeerFault, SetError};
use crate::event::{DownWhy, Event};
use crate::limits;
use crate::member::{Audience, Incarnation, Member, Members, State, Value};
use case::Cases;
use links::Links;
use node::{Dial, Node, Phase};
use overlay::Overlay;
use own::Own;
use record::View;
use rings::Places;
use rng::Rng;
use table::Table;
use timers::{Timer, Timers};
use watch::Watches;
use wire::{Course, FrameFault, Hash, Message};

/// The dead, and grants that end, are looked through this often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// In a scope of so many nodes everybody is linked with everybody; in a larger one links are opened on use.
const SMALL: usize = 16;
/// A timer that fires this much too late says that this process did not run: it was stopped, starved, or the machine slept.
const FROZEN: Duration = Duration::from_millis(300);

/// What happens to the core.
#[derive(Debug, Clone)]
pub enum Input {
    /// A deadline has come.
    Tick,
    /// What the wall clock shows now. Worth telling every minute: a machine that slept has another one.
    WallClock(UnixTime),
    /// A link to the peer stands.
    LinkUp {
        /// The key that the link proved.
        peer: NodeId,
        /// The role that its grant gives it.
        role: Role,
    },
    /// The link to the peer is gone.
    LinkDown {
        /// Which.
        peer: NodeId,
        /// What is known of how it ended.
        why: LinkLoss,
    },
    /// This machine's network is another one, or the machine slept: who was out of reach may be back.
    NetworkChanged,
    /// An [`Output::Dial`] came to nothing.
    DialFailed {
        /// Whom it was for.
        peer: NodeId,
    },
    /// A peer sent a frame.
    Frame {
        /// The key that the link proved.
        from: NodeId,
        /// The role that its grant gives it.
        role: Role,
        /// What it sent.
        frame: Bytes,
    },
    /// The application wants something.
    Command(Command),
}

/// What is known of how a link ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkLoss {
    /// The peer closed it, saying that it shuts down.
    Shutdown,
    /// The peer's machine says that its process has ended.
    Gone,
    /// Nobody knows.
    Lost,
}

/// What the application wants.
#[derive(Debug, Clone)]
pub enum Command {
    /// Set or, with `None`, remove a value. [`Output::Reply`] carries the same id.
    Set {
        /// Names the reply.
        id: u64,
        /// At most [`limits::KEY_BYTES_MAX`].
        key: String,
        /// At most [`limits::VALUE_BYTES_MAX`].
        value: Option<Bytes>,
        /// Who gets to see it.
        audience: Audience,
    },
    /// This node can be dialed there from now on.
    Address(NodeAddr),
    /// This node's grant was renewed.
    Grant(Vec<u8>),
    /// Spread a signed revocation.
    Revoke(Bytes),
    /// Nodes of the scope that may be dialed although no record of them is here: static peers, an invite's hints, who
    /// was seen before a restart. Each is dialed, again and again, until its record comes. Replaces an earlier list;
    /// [`Config::nodes_max`] of them count.
    Contacts(Vec<NodeId>),
    /// Say goodbye to all: this node is no member any more. Final for this incarnation.
    Leave,
    /// Say goodbye to all: this process ends. Final for this incarnation.
    Stop,
}

/// What the core wants done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Hand a frame to the peer's queue. It may be lost.
    Send {
        /// Whom it is for.
        to: NodeId,
        /// One frame.
        frame: Bytes,
    },
    /// Make a link to the node. Answered by [`Input::LinkUp`] or [`Input::DialFailed`].
    Dial {
        /// Whom.
        to: NodeId,
    },
    /// Put this into the address book.
    Address {
        /// Whose.
        node: NodeId,
        /// What it says.
        addr: NodeAddr,
    },
    /// Nothing is remembered of the node any more; take it out of the address book.
    Forget {
        /// Which.
        node: NodeId,
    },
    /// Close the link: the peer does not answer or has no right to it.
    Disconnect {
        /// Which.
        node: NodeId,
        /// What it is down for.
        why: DownWhy,
    },
    /// Tell subscribers, after the snapshot is in place.
    Event(Event),
    /// The answer to a command.
    Reply {
        /// The command's id.
        id: u64,
        /// How it went.
        result: Result<(), SetError>,
    },
    /// A record that a peer passed on was not accepted; count it.
    Refused {
        /// Who sent it.
        from: NodeId,
        /// Why.
        why: Refusal,
    },
}

/// Who this node is at its start.
#[derive(Debug, Clone)]
pub struct Me {
    /// Its key.
    pub id: NodeId,
    /// Its signed grant, encoded.
    pub grant: Vec<u8>,
    /// Where it can be dialed.
    pub addr: NodeAddr,
    /// The wall clock: base of the incarnation, and of what counts as ended.
    pub started: UnixTime,
}

/// The membership of one scope as one node knows it.
///
/// Call [`Membership::handle`], then [`Membership::poll_output`] until it returns `None`, then sleep until
/// [`Membership::next_deadline`] or the next input.
#[derive(Debug)]
pub struct Membership<T> {
    me: NodeId,
    role: Role,
    config: Config,
    trust: T,
    rng: Rng,
    now: Instant,
    wall: (UnixTime, Instant),
    own: Option<Own>,
    places: Places,
    nodes: Table,
    /// When a record changed last.
    changed: Instant,
    revocations: BTreeMap<Hash, Bytes>,
    links: Links,
    overlay: Overlay,
    watches: Watches,
    cases: Cases,
    dials: BTreeMap<NodeId, Dial>,
    dials_running: usize,
    /// Nodes to have a link with although nothing is known of them but a way.
    contacts: BTreeSet<NodeId>,
    timers: Timers,
    outputs: VecDeque<Output>,
    /// Others' news to forward: which keys, and who had them already.
    fresh: BTreeMap<NodeId, Fresh>,
    is_push_set: bool,
    touched: BTreeSet<NodeId>,
    /// All nodes are to be looked at for the next snapshot.
    is_adopted: bool,
    members: Arc<Members>,
}

#[derive(Debug, Default)]
struct Fresh {
    keys: BTreeSet<String>,
    sources: BTreeSet<NodeId>,
}

impl<T: Trust> Membership<T> {
    /// A node that knows nobody yet.
    ///
    /// # Errors
    /// The own grant does not hold.
    pub fn new(me: Me, config: Config, trust: T, seed: [u8; 32], now: Instant) -> Result<Self, Refusal> {
        let standing = trust.standing(&me.id, &me.grant, me.started)?;
        let role = standing.role;
        // A node that was revoked and admitted again in one second would live its revoked life on, for ever older than what
        // its peers remember: the grant was issued after the revocation, and so after that life began.
        let incarnation = Incarnation::at_start(me.started.max(standing.issued));
        let addr = record::bounded(me.addr);
        let own =
            (!config.passive).then(|| Own::new(me.id, (me.grant, standing), (incarnation, &addr), &trust));
        let mut core = Self {
            me: me.id,
            role,
            revocations: trust
                .revocations()
                .into_iter()
                .map(|whole| (wire::revocation_hash(&whole), whole))
                .collect(),
            trust,
            rng: Rng::new(seed),
            now,
            wall: (me.started, now),
            own,
            places: rings::places(&me.id),
            nodes: Table::default(),
            changed: now,
            links: Links::default(),
            overlay: Overlay::default(),
            watches: Watches::new(),
            cases: Cases::default(),
            config,
            dials: BTreeMap::new(),
            dials_running: 0,
            contacts: BTreeSet::new(),
            timers: Timers::default(),
            outputs: VecDeque::new(),
            fresh: BTreeMap::new(),
            is_push_set: false,
            touched: BTreeSet::new(),
            is_adopted: false,
            members: Arc::new(Members::default()),
        };
        core.touched.insert(core.me);
        for (timer, interval) in
            [(Timer::Exchange, core.config.exchange_interval), (Timer::Sweep, SWEEP_INTERVAL)]
        {
            let at = now + core.rng.between(Duration::from_millis(1), at_least_a_millisecond(interval));
            core.timers.set(at, timer);
        }
        Ok(core)
    }

    /// Takes one input. Drain [`Membership::poll_output`] afterwards.
    ///
    /// # Errors
    /// The peer's frame is no message. Nothing changed; the peer is at fault.
    pub fn handle(&mut self, input: Input, now: Instant) -> Result<(), PeerFault> {
        self.now = self.now.max(now);
        if self.next_deadline().is_some_and(|due| self.now.saturating_duration_since(due) >= FROZEN) {
            self.thaw();
        }
        let result = self.take(input);
        self.refresh_overlay();
        result
    }

    fn take(&mut self, input: Input) -> Result<(), PeerFault> {
        match input {
            Input::Tick => self.handle_tick(),
            Input::WallClock(time) => self.wall = (time, self.now),
            Input::LinkUp { peer, role } => self.handle_link_up(peer, role),
            Input::LinkDown { peer, why } => self.handle_link_down(peer, why),
            Input::NetworkChanged => self.handle_network_changed(),
            Input::DialFailed { peer } => self.handle_dial_failed(peer),
            Input::Frame { from, role, frame } => return self.handle_frame(from, role, &frame),
            Input::Command(command) => self.handle_command(command),
        }
        Ok(())
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Membership::handle`] with [`Input::Tick`].
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Whether [`Membership::members`] would return something new.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.is_adopted || !self.touched.is_empty()
    }

    /// The members as they are now.
    pub fn members(&mut self) -> Arc<Members> {
        if std::mem::take(&mut self.is_adopted) {
            self.touched.extend(self.nodes.iter().map(|(id, _)| *id));
        }
        let touched = std::mem::take(&mut self.touched);
        if !touched.is_empty() {
            let mut members = Arc::clone(&self.members);
            let inner = Arc::make_mut(&mut members);
            for id in touched {
                if id == self.me {
                    inner.me = self.own_member().map(Arc::new);
                } else if let Some(member) = self.member(&id) {
                    inner.others.insert(id, Arc::new(member));
                } else {
                    inner.others.remove(&id);
                }
            }
            self.members = members;
        }
        Arc::clone(&self.members)
    }

    fn handle_tick(&mut self) {
        while let Some(timer) = self.timers.pop_due(self.now) {
            match timer {
                Timer::Exchange => self.handle_exchange(),
                Timer::Push => self.push(),
                Timer::Sweep => self.handle_sweep(),
                Timer::Watch(id) => self.handle_watch_due(id),
                Timer::Refute => self.handle_refute_due(),
                Timer::Case(id) => self.handle_case_due(&id),
                Timer::Dial(id) => self.handle_dial_due(id),
                Timer::Close(id) => self.handle_close_due(&id),
            }
        }
        debug_assert!(
            self.next_deadline().is_some_and(|at| at > self.now),
            "the next deadline lies in the future"
        );
    }

    fn handle_frame(&mut self, from: NodeId, role: Role, frame: &[u8]) -> Result<(), PeerFault> {
        let message = Message::decode(frame).map_err(|fault| match fault {
            FrameFault::TooLong => PeerFault::TooLong,
            FrameFault::Malformed => PeerFault::Malformed,
        })?;
        if let Some(Message::Pong { seq }) = message {
            self.handle_pong(&from, seq);
        }
        self.heard(&from);
        let Some(message) = message else { return Ok(()) };
        let view = self.view(role);
        match message {
            Message::Ping { seq } => {
                self.send(from, &Message::Pong { seq });
                self.accuse_if_down(&from);
            }
            Message::Pong { .. } => {}
            Message::Root { records, revocations } => self.handle_root((from, view), records, revocations),
            Message::Buckets { sums } => self.handle_buckets((from, view), sums),
            Message::Digest { buckets, items } => self.handle_digest((from, view), buckets, items),
            Message::Summaries { summaries } => self.handle_summaries((from, view), summaries),
            Message::Records { records } => self.handle_records((from, view), records),
            Message::Accused { incarnation } => {
                self.handle_accused((from, view), Incarnation::from_u64(incarnation))
            }
            Message::Revocations { have, whole, answer } => {
                self.handle_revocations(from, (have, whole), answer)
            }
            Message::Ask { subject, nonce } => self.handle_ask(from, subject, nonce),
            Message::Heard { subject, nonce, signature } => {
                self.handle_heard(subject, nonce, signature.into())
            }
            Message::Accusations { accusations } => self.handle_accusations(from, accusations),
        }
        Ok(())
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Set { id, key, value, audience } => {
                let result = self.set(&key, value, audience);
                self.outputs.push_back(Output::Reply { id, result });
            }
            Command::Address(addr) => {
                let addr = record::bounded(addr);
                if self.own.as_mut().is_some_and(|own| own.set_addr(&addr, &self.trust)) {
                    self.push_own_soon();
                }
            }
            Command::Grant(grant) => {
                let Ok(standing) = self.trust.standing(&self.me, &grant, self.wall_now()) else { return };
                self.role = standing.role;
                if let Some(own) = &mut self.own {
                    own.set_grant(grant, standing, &self.trust);
                    self.push_own_soon();
                }
            }
            Command::Contacts(contacts) => self.handle_contacts(contacts),
            Command::Revoke(revocation) => self.take_revocation(self.me, &revocation),
            Command::Leave => self.end(Course::Left),
            Command::Stop => self.end(Course::Stopped),
        }
    }

    fn set(&mut self, key: &str, value: Option<Bytes>, audience: Audience) -> Result<(), SetError> {
        check_sizes(key, value.as_ref())?;
        let own = self.own.as_mut().ok_or(SetError::Passive)?;
        if own.has_ended() {
            return Err(SetError::Closed);
        }
        if own.set(key, (value, audience), &self.trust)? {
            self.push_own_soon();
        }
        Ok(())
    }

    fn end(&mut self, course: Course) {
        let Some(own) = self.own.as_mut().filter(|own| !own.has_ended()) else { return };
        own.end(course, &self.trust);
        self.touched.insert(self.me);
        self.push();
    }

    fn push_own_soon(&mut self) {
        self.touched.insert(self.me);
        self.push_soon();
    }

    fn push_soon(&mut self) {
        if !self.is_push_set {
            self.is_push_set = true;
            self.timers.set(self.now + at_least_a_millisecond(self.config.push_delay), Timer::Push);
        }
    }

    /// What travels on a link to a peer in this role, whoever's it is.
    fn view(&self, role: Role) -> View {
        if self.config.uninvited { View::Client } else { View::between(self.role, role) }
    }

    /// What a peer in this role sees of this node's own record.
    fn view_of_own(&self, role: Role) -> View {
        View::between(self.role, role)
    }

    fn send(&mut self, to: NodeId, message: &Message) {
        self.outputs.push_back(Output::Send { to, frame: message.encode() });
    }

    fn emit(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn wall_now(&self) -> UnixTime {
        self.wall.0.plus(self.now.saturating_duration_since(self.wall.1))
    }

    fn own_member(&self) -> Option<Member> {
        let record = &self.own.as_ref().filter(|own| !own.has_ended())?.record;
        Some(member_of(record, State::Alive, false))
    }

    fn member(&self, id: &NodeId) -> Option<Member> {
        let node = self.nodes.get(id)?;
        let state = state_of(node.phase)?;
        Some(member_of(&node.record, state, self.links.contains(id)))
    }
}

/// What the application is told of a node in this phase; it is not told of every node.
fn state_of(phase: Phase) -> Option<State> {
    match phase {
        Phase::Alive => Some(State::Alive),
        Phase::Suspect => Some(State::Suspect),
        Phase::Down(_) => Some(State::Down),
        Phase::Unheard | Phase::Left => None,
    }
}

/// Checks what does not depend on the record.
pub(crate) fn check_sizes(key: &str, value: Option<&Bytes>) -> Result<(), SetError> {
    if key.is_empty() || key.len() > limits::KEY_BYTES_MAX {
        return Err(SetError::BadKey);
    }
    if value.is_some_and(|value| value.len() > limits::VALUE_BYTES_MAX) {
        return Err(SetError::ValueTooLarge);
    }
    Ok(())
}

/// A timer that fires at once would fire for ever.
fn at_least_a_millisecond(duration: Duration) -> Duration {
    duration.max(Duration::from_millis(1))
}

fn member_of(record: &record::Record, state: State, linked: bool) -> Member {
    let shown = record.entries.iter().filter_map(|(key, entry)| {
        let bytes = entry.value.clone()?;
        Some((key.clone(), Value { version: entry.version, audience: entry.audience, bytes }))
    });
    Member {
        id: record.id,
        name: record.card.standing.name.clone(),
        role: record.card.standing.role,
        state,
        incarnation: record.card.incarnation,
        addr: record.card.addr.clone(),
        grant: Bytes::copy_from_slice(record.card.grant()),
        values: shown.collect(),
        linked,
    }
}
