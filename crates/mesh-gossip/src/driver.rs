//! The one task of a scope: feeds the core and performs what it wants. Every wait on a peer is somebody else's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mesh_identity::{NodeAddr, NodeId, Role, ScopeId, UnixTime};
use mesh_transport::{CloseCode, ClosedWhy, LinkEvent, Transport};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::SetError;
use crate::event::{DownWhy, Event};
use crate::exchange::{Exchange, Inbound};
use crate::member::Members;
use crate::metrics::Metrics;
use crate::proto::{Command, Input, LinkLoss, Membership, Output};
use crate::sender::Sender;
use crate::trust::GrantTrust;

/// Our own addresses are looked at this often: a relay is found, an interface comes up.
const ADDRESS_INTERVAL: Duration = Duration::from_secs(1);
/// The wall clock is looked at this often: a machine that slept has another one.
const WALL_INTERVAL: Duration = Duration::from_secs(30);
/// Closes the link of a member that answers no pings; a code of our own above the transport's.
const SILENT: CloseCode = CloseCode::Other(64);

/// What handles ask for.
pub(crate) enum Request {
    Do(Command),
    /// A [`Command::Set`] whose id the driver fills in.
    Set(Command, oneshot::Sender<Result<(), SetError>>),
    /// Say goodbye, write it to all, and end.
    Leave,
}

/// A scope's gossip at work.
pub(crate) struct Driver {
    pub(crate) core: Membership<GrantTrust>,
    pub(crate) exchange: Exchange,
    pub(crate) scope: ScopeId,
    pub(crate) config: Config,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) members: watch::Sender<Arc<Members>>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) requests: mpsc::Receiver<Request>,
    pub(crate) frames: mpsc::Receiver<Inbound>,
    pub(crate) cancel: CancellationToken,
    pub(crate) work: Work,
}

/// What runs for the driver, and what it remembers of it.
#[derive(Default)]
pub(crate) struct Work {
    queues: BTreeMap<NodeId, mpsc::Sender<Bytes>>,
    senders: JoinSet<()>,
    dials: JoinSet<(NodeId, Option<Role>)>,
    linked: BTreeSet<NodeId>,
    replies: BTreeMap<u64, oneshot::Sender<Result<(), SetError>>>,
    next_reply: u64,
    addr: NodeAddr,
    contacts: Vec<NodeId>,
    looked: Option<(Instant, Instant)>,
}

impl Driver {
    pub(crate) async fn run(mut self) {
        let mut links = self.transport().events();
        self.compare_links();
        self.take_contacts();
        loop {
            self.perform();
            let deadline = self.core.next_deadline().unwrap_or_else(|| now() + ADDRESS_INTERVAL);
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => { self.say_goodbye(Command::Stop).await; break }
                () = tokio::time::sleep_until(deadline.into()) => self.tick(),
                request = self.requests.recv() => match request {
                    Some(Request::Leave) => { self.say_goodbye(Command::Leave).await; break }
                    Some(request) => self.take(request),
                    None => break,
                },
                event = links.recv() => match event {
                    Ok(event) => self.take_link_event(event),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.compare_links(),
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                Some(dialed) = self.work.dials.join_next() => self.take_dialed(dialed),
                Some(ended) = self.work.senders.join_next() => report_panic(ended),
                Some(inbound) = self.frames.recv() => self.take_frame(inbound),
            }
        }
        self.end().await;
    }

    async fn end(mut self) {
        self.cancel.cancel();
        self.exchange.unregister(&self.scope, &self.cancel);
        self.work.queues.clear();
        self.work.dials.shutdown().await;
        self.work.senders.shutdown().await;
    }

    /// Writes the goodbye to all who can take it in time.
    async fn say_goodbye(&mut self, goodbye: Command) {
        self.input(Input::Command(goodbye));
        self.perform();
        self.work.queues.clear();
        let written = async { while self.work.senders.join_next().await.is_some() {} };
        drop(tokio::time::timeout(self.config.goodbye, written).await);
    }

    fn tick(&mut self) {
        self.input(Input::Tick);
        let now = now();
        let (address, wall) = self.work.looked.unwrap_or((now, now));
        let is_due = |last: Instant, interval| now.saturating_duration_since(last) >= interval;
        if is_due(address, ADDRESS_INTERVAL) {
            let addr = self.transport().local_addr(&self.scope);
            if addr != self.work.addr {
                self.work.addr = addr.clone();
                self.input(Input::Command(Command::Address(addr)));
            }
        }
        if is_due(address, ADDRESS_INTERVAL) {
            self.take_contacts();
        }
        if is_due(wall, WALL_INTERVAL) {
            self.input(Input::WallClock(UnixTime::now()));
        }
        let address = if is_due(address, ADDRESS_INTERVAL) { now } else { address };
        self.work.looked = Some((address, if is_due(wall, WALL_INTERVAL) { now } else { wall }));
    }

    /// Whoever puts an address into the book wants a link: a static peer, an invite's issuer, a peer of last time.
    fn take_contacts(&mut self) {
        let contacts = self.transport().book().nodes(&self.scope);
        if contacts != self.work.contacts {
            self.work.contacts.clone_from(&contacts);
            self.input(Input::Command(Command::Contacts(contacts)));
        }
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Do(command) => self.input(Input::Command(command)),
            Request::Set(mut command, reply) => {
                self.work.next_reply += 1;
                if let Command::Set { id, .. } = &mut command {
                    *id = self.work.next_reply;
                }
                self.work.replies.insert(self.work.next_reply, reply);
                self.input(Input::Command(command));
            }
            Request::Leave => {}
        }
    }

    fn take_frame(&mut self, Inbound { from, role, frame }: Inbound) {
        if let Err(fault) = self.core.handle(Input::Frame { from, role, frame }, now()) {
            self.metrics.fault();
            tracing::debug!(peer = %from.short(), %fault, "gossip frame refused");
        }
    }

    fn take_link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up { peer, .. } if peer.scope == self.scope => self.link_up(peer.id, peer.role),
            LinkEvent::Down { peer, why } if peer.scope == self.scope => {
                let why = match why {
                    ClosedWhy::Peer { code: CloseCode::Shutdown, .. } => LinkLoss::Shutdown,
                    ClosedWhy::Gone => LinkLoss::Gone,
                    _ => LinkLoss::Lost,
                };
                self.link_down(peer.id, why);
            }
            LinkEvent::NetworkChanged => self.input(Input::NetworkChanged),
            _ => {}
        }
    }

    fn take_dialed(&mut self, dialed: Result<(NodeId, Option<Role>), tokio::task::JoinError>) {
        match dialed {
            // The link may be gone already; its end was told before this.
            Ok((peer, Some(role))) if self.transport().linked(&self.scope, &peer).is_some() => {
                self.link_up(peer, role)
            }
            Ok((peer, _)) => self.input(Input::DialFailed { peer }),
            Err(error) => report_panic(Err(error)),
        }
    }

    fn link_up(&mut self, peer: NodeId, role: Role) {
        self.work.linked.insert(peer);
        self.input(Input::LinkUp { peer, role });
    }

    fn link_down(&mut self, peer: NodeId, why: LinkLoss) {
        self.work.linked.remove(&peer);
        self.work.queues.remove(&peer);
        self.input(Input::LinkDown { peer, why });
    }

    /// Brings the core's links in line with the transport's.
    fn compare_links(&mut self) {
        let links = self.transport().links().into_iter().filter(|link| link.peer.scope == self.scope);
        let actual: BTreeMap<_, _> = links.map(|link| (link.peer.id, link.peer.role)).collect();
        let gone: Vec<_> =
            self.work.linked.iter().filter(|peer| !actual.contains_key(peer)).copied().collect();
        for peer in gone {
            self.link_down(peer, LinkLoss::Lost);
        }
        for (peer, role) in actual {
            self.link_up(peer, role);
        }
    }

    fn input(&mut self, input: Input) {
        let taken = self.core.handle(input, now());
        debug_assert!(taken.is_ok(), "only frames can be at fault");
    }

    fn perform(&mut self) {
        let (mut events, mut replies) = (Vec::new(), Vec::new());
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send { to, frame } => self.send(to, frame),
                Output::Dial { to } => self.dial(to),
                Output::Address { node, addr } => {
                    if !addr.is_empty() {
                        self.transport().book().insert(self.scope, node, addr);
                    }
                }
                Output::Forget { node } => self.transport().book().remove(&self.scope, &node),
                Output::Disconnect { node, why } => {
                    self.transport().disconnect(&self.scope, &node, close_code(why))
                }
                Output::Event(event) => events.push(event),
                Output::Reply { id, result } => replies.push((id, result)),
                Output::Refused { from, why } => {
                    self.metrics.refused();
                    tracing::debug!(peer = %from.short(), %why, "record refused");
                }
            }
        }
        if self.core.is_changed() {
            self.members.send_replace(self.core.members());
        }
        for event in events {
            // Nobody may be listening.
            drop(self.events.send(event));
        }
        for (id, result) in replies {
            if let Some(reply) = self.work.replies.remove(&id) {
                // The caller may have gone.
                let _ = reply.send(result);
            }
        }
    }

    fn send(&mut self, to: NodeId, frame: Bytes) {
        let queue = self.work.queues.entry(to).or_insert_with(|| {
            let (queue, frames) = mpsc::channel(self.config.queue_frames.max(1));
            let (transport, metrics) = (self.exchange.transport.clone(), Arc::clone(&self.metrics));
            let sender = Sender { transport, scope: self.scope, peer: to, metrics };
            self.work.senders.spawn(sender.run(frames));
            queue
        });
        if queue.try_send(frame).is_err() {
            self.metrics.dropped();
        }
        if !self.work.linked.contains(&to) {
            // An answer to a peer whose link we have not been told of, or that is gone: not worth a standing queue.
            self.work.queues.remove(&to);
        }
    }

    fn dial(&mut self, to: NodeId) {
        let (transport, scope) = (self.transport().clone(), self.scope);
        self.work.dials.spawn(async move {
            match transport.link(&scope, &to).await {
                Ok(link) => (to, Some(link.peer().role)),
                Err(error) => {
                    tracing::debug!(peer = %to.short(), %error, "dial failed");
                    (to, None)
                }
            }
        });
    }

    fn transport(&self) -> &Transport {
        &self.exchange.transport
    }
}

fn close_code(why: DownWhy) -> CloseCode {
    match why {
        DownWhy::Revoked => CloseCode::Revoked,
        DownWhy::GrantExpired => CloseCode::Expired,
        DownWhy::LinkLost | DownWhy::Silent | DownWhy::Gone | DownWhy::Stopped => SILENT,
    }
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a gossip task panicked");
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
