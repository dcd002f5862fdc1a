//! The handle.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_identity::{NodeKey, RevocationSet, ScopeId, SignedGrant, SignedRevocation, UnixTime};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::driver::{Driver, Request, Work};
use crate::error::{SetError, StartError};
use crate::event::Event;
use crate::exchange::{Exchange, Inbox};
use crate::member::{Audience, Members};
use crate::metrics::{Metrics, MetricsSnapshot};
use crate::proto::{self, Command, Me, Membership};
use crate::trust::GrantTrust;

/// Requests of handles that wait for the driver; a handle waits when as many do.
const REQUESTS: usize = 64;
/// Frames of all peers that wait for the driver; their streams wait when as many do.
const FRAMES: usize = 256;

/// By what a node takes part in a scope's gossip.
pub struct Credentials {
    /// The node's key: its records are signed with it.
    pub key: NodeKey,
    /// Its membership; names the scope.
    pub grant: SignedGrant,
    /// The scope's revocations known so far.
    pub revocations: RevocationSet,
}

/// One scope's gossip. Clones are handles to the same one; the last one dropped ends it without a goodbye.
#[derive(Clone)]
pub struct Gossip {
    inner: Arc<Inner>,
}

struct Inner {
    scope: ScopeId,
    requests: mpsc::Sender<Request>,
    members: watch::Receiver<Arc<Members>>,
    events: broadcast::WeakSender<Event>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    cancel: CancellationToken,
    _last_handle: DropGuard,
}

impl Gossip {
    /// Starts gossiping in the scope of the grant, over the links that exist and those to come. Whoever has an address in
    /// the transport's book is dialed until its record comes: put static peers, an invite's issuer and the peers of last
    /// time there. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`StartError::BadGrant`] when the grant does not hold, [`StartError::AlreadyRunning`] when the scope gossips over
    /// this transport already. Nothing was started.
    pub fn start(exchange: &Exchange, credentials: Credentials, config: Config) -> Result<Self, StartError> {
        let Credentials { key, grant, revocations } = credentials;
        let (scope, transport) = (grant.scope(), &exchange.transport);
        let me = Me {
            id: key.node_id(),
            grant: grant.encode(),
            addr: transport.local_addr(&scope),
            started: UnixTime::now(),
        };
        let trust = GrantTrust { key, scope, revoked: revocations };
        let now = tokio::time::Instant::now().into_std();
        let mut core =
            Membership::new(me, config.clone(), trust, rand::random(), now).map_err(StartError::BadGrant)?;

        let (requests, requests_in) = mpsc::channel(REQUESTS);
        let (frames, frames_in) = mpsc::channel(FRAMES);
        let (members, members_out) = watch::channel(core.members());
        let events = broadcast::Sender::new(config.event_backlog.max(1));
        let (metrics, cancel) = (Arc::new(Metrics::default()), CancellationToken::new());
        let inbox = Inbox { frames, metrics: Arc::clone(&metrics), cancel: cancel.clone() };
        if !exchange.register(scope, inbox) {
            return Err(StartError::AlreadyRunning);
        }
        let inner = Inner {
            scope,
            requests,
            members: members_out,
            events: events.downgrade(),
            metrics: Arc::clone(&metrics),
            tasks: TaskTracker::new(),
            cancel: cancel.clone(),
            _last_handle: cancel.clone().drop_guard(),
        };
        let driver = Driver {
            core,
            exchange: exchange.clone(),
            scope,
            config,
            metrics,
            members,
            events,
            requests: requests_in,
            frames: frames_in,
            cancel,
            work: Work::default(),
        };
        inner.tasks.spawn(driver.run());
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The scope.
    #[must_use]
    pub fn scope(&self) -> ScopeId {
        self.inner.scope
    }

    /// Sets a value of this node's record that members see. Returns once [`Gossip::members`] shows it; others hear of it
    /// within [`Config::push_delay`] and the way. Setting the same value again costs nothing.
    ///
    /// # Errors
    /// [`SetError`] says which bound it breaks. Cancel safe: the value may have been set.
    pub async fn set(&self, key: &str, value: Vec<u8>) -> Result<(), SetError> {
        self.publish(key, value, Audience::Members).await
    }

    /// Sets a value of this node's record for the given audience. Clients see only what is for [`Audience::Everyone`].
    /// A key keeps its audience until this node restarts.
    ///
    /// # Errors
    /// As [`Gossip::set`].
    pub async fn publish(&self, key: &str, value: Vec<u8>, audience: Audience) -> Result<(), SetError> {
        self.change(key, Some(Bytes::from(value)), audience).await
    }

    /// Removes a value of this node's record. Its key still counts against [`crate::limits::KEYS_MAX`].
    ///
    /// # Errors
    /// As [`Gossip::set`].
    pub async fn remove(&self, key: &str) -> Result<(), SetError> {
        self.change(key, None, Audience::Members).await
    }

    async fn change(&self, key: &str, value: Option<Bytes>, audience: Audience) -> Result<(), SetError> {
        proto::check_sizes(key, value.as_ref())?;
        let (reply, replied) = oneshot::channel();
        let command = Command::Set { id: 0, key: key.to_owned(), value, audience };
        self.inner.requests.send(Request::Set(command, reply)).await.map_err(|_| SetError::Closed)?;
        replied.await.unwrap_or(Err(SetError::Closed))
    }

    /// This node's renewed grant. Ignored when it does not hold. Cancel safe.
    pub async fn renew(&self, grant: &SignedGrant) {
        self.request(Command::Grant(grant.encode())).await;
    }

    /// Spreads a revocation. [`Event::Revoked`] follows here too when it is new and holds. Cancel safe.
    pub async fn revoke(&self, revocation: &SignedRevocation) {
        self.request(Command::Revoke(Bytes::from(revocation.encode()))).await;
    }

    async fn request(&self, command: Command) {
        // An ended scope has nobody to tell.
        drop(self.inner.requests.send(Request::Do(command)).await);
    }

    /// The members now. Costs a reference count.
    #[must_use]
    pub fn members(&self) -> Arc<Members> {
        Arc::clone(&self.inner.members.borrow())
    }

    /// The members as a value that can be waited on.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Members>> {
        self.inner.members.clone()
    }

    /// Events from now on.
    #[must_use]
    pub fn subscribe(&self) -> EventStream {
        let ended = || broadcast::channel(1).1;
        EventStream(self.inner.events.upgrade().map_or_else(ended, |events| events.subscribe()))
    }

    /// The counters since start.
    #[must_use]
    pub fn metrics(&self) -> MetricsSnapshot {
        self.inner.metrics.snapshot()
    }

    /// Leaves for good: tells linked peers that this node is no member any more, waits until that is written but not
    /// longer than [`Config::goodbye`], and ends. Others drop this incarnation at once and do not dial it again.
    /// Idempotent. Cancel safe: call it again to go on.
    pub async fn leave(&self) {
        drop(self.inner.requests.send(Request::Leave).await);
        self.ended().await;
    }

    /// Ends gossip here and waits until no task is left. The others are told, signed, that this process has ended, for not longer
    /// than [`Config::goodbye`]; they hold it for down at once and redial: a node that restarts is found again. Idempotent. Cancel safe: call it again to go on.
    pub async fn shutdown(&self) {
        self.inner.cancel.cancel();
        self.ended().await;
    }

    async fn ended(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

/// Events of one scope, for one subscriber.
pub struct EventStream(broadcast::Receiver<Event>);

impl EventStream {
    /// The next event, or `None` once gossip has ended. [`Event::Snapshot`] stands for events that were lost because
    /// this subscriber lagged. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Event::Snapshot),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }

    /// The next event that comes within `limit`.
    pub async fn next_within(&mut self, limit: Duration) -> Option<Event> {
        tokio::time::timeout(limit, self.next()).await.unwrap_or(None)
    }
}
