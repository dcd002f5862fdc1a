//! The sessions of a node at work: a task for each that is alive, over the store, the models and the tools.
//!
//! [`Sessions`] is the handle. A session comes alive when somebody asks something of it, or when it has work left from before;
//! it goes on when nobody watches, and sleeps in the store when nothing is left to do.

mod ask;
mod content;
mod error;
mod follow;
mod hand_over;
mod live;
mod run;
mod snapshot;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use mesh_identity::NodeId;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use self::error::CommandError;
pub use self::follow::Following;
pub(crate) use self::hand_over::moved_to;
use self::live::{Live, REQUESTS_MAX, Request};
use self::snapshot::load;
use crate::agent::Agent;
use crate::chain::Chain;
use crate::event::{Body, Party, Right, Share};
use crate::ids::{AgentId, EventNumber, PromptId, SessionId, SessionName, TurnNumber};
use crate::metrics::{Counters, Stats};
use crate::model::{ModelClient, Shown};
use crate::proto::{Command, Now, Refusal, Session};
use crate::store::{Filter, Hit, Kind, Listed, StorageError, Store};

/// How sessions are kept. `Default` suits a node on a workstation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A session that nobody asks anything of, and that has nothing to do, leaves the memory after so long (60 s).
    pub idle: Duration,
    /// How a session stands is stored every so many events (1000): an opening reads at most as many and some.
    pub snapshot_events: u64,
    /// How long a tool may take to end when it is told to, before it is dropped (10 s).
    pub tool_grace: Duration,
    /// How long [`Sessions::shutdown`] waits for sessions to rest (15 s).
    pub shutdown_grace: Duration,
    /// Sessions alive at a time (4096); more are told that the node is busy.
    pub live_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(60),
            snapshot_events: 1000,
            tool_grace: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(15),
            live_max: 4096,
        }
    }
}

/// A new session.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSession {
    /// With which agent.
    pub agent: AgentId,
    /// What people call it.
    pub name: Option<SessionName>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The delegations that lead to it, verified; none when a person begins it. Its turns spend no more than they allow.
    pub chain: Option<Chain>,
}

/// The sessions of a node. Clones are handles to the same ones; when the last is dropped everything ends at once, as in a
/// crash, so call [`Sessions::shutdown`].
#[derive(Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
    /// None in those that do not count.
    _last_handle: Option<Arc<DropGuard>>,
}

/// A handle that keeps nothing alive.
#[derive(Clone)]
pub(crate) struct WeakSessions(Weak<Inner>);

impl WeakSessions {
    /// The sessions, unless they have ended. They end with the last handle of somebody else, however long this one is held.
    pub(crate) fn upgrade(&self) -> Option<Sessions> {
        let inner = self.0.upgrade().filter(|inner| !inner.cancel.is_cancelled())?;
        Some(Sessions { inner, _last_handle: None })
    }
}

struct Inner {
    me: NodeId,
    store: Store,
    client: Arc<dyn ModelClient>,
    agents: Mutex<BTreeMap<AgentId, Arc<Agent>>>,
    config: Config,
    live: Mutex<Alive>,
    /// Of those sessions that are alive and were delegated.
    chains: Mutex<HashMap<SessionId, Chain>>,
    /// Told of every session that is handed over.
    handing_over: Notify,
    /// Those that are being taken over from other nodes.
    taking: Mutex<HashSet<SessionId>>,
    /// Told of every one that has arrived, or has come back.
    delivered: Notify,
    counters: Counters,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

#[derive(Default)]
struct Alive {
    sessions: HashMap<SessionId, mpsc::Sender<Request>>,
    is_closing: bool,
}

impl Sessions {
    /// Starts on a store. Sessions that have work left from before go on at once, except those that somebody told to rest.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`StorageError`] when the store cannot be read; then nothing runs.
    pub async fn start(
        me: NodeId,
        store: Store,
        client: Arc<dyn ModelClient>,
        agents: Vec<Agent>,
        config: Config,
    ) -> Result<Self, StorageError> {
        let cancel = CancellationToken::new();
        let inner = Arc::new(Inner {
            me,
            store,
            client,
            agents: Mutex::default(),
            config,
            live: Mutex::default(),
            chains: Mutex::default(),
            handing_over: Notify::new(),
            taking: Mutex::default(),
            delivered: Notify::new(),
            counters: Counters::default(),
            tasks: TaskTracker::new(),
            cancel: cancel.clone(),
        });
        let sessions = Self { inner, _last_handle: Some(Arc::new(cancel.drop_guard())) };
        sessions.set_agents(agents);
        sessions.go_on().await?;
        Ok(sessions)
    }

    /// These are the agents from now on. A session that is alive keeps the agent that it came alive with.
    pub fn set_agents(&self, agents: Vec<Agent>) {
        let agents = agents.into_iter().map(|agent| (agent.id.clone(), Arc::new(agent)));
        *lock(&self.inner.agents) = agents.collect();
    }

    /// The agents that the party may begin sessions with.
    pub fn agents(&self, by: &Party) -> Vec<Arc<Agent>> {
        lock(&self.inner.agents).values().filter(|agent| agent.is_open_to(by)).cloned().collect()
    }

    /// The delegations that led to a session that is alive; none when a person began it.
    pub fn chain(&self, session: &SessionId) -> Option<Chain> {
        lock(&self.inner.chains).get(session).cloned()
    }

    /// What was counted since the start.
    pub fn stats(&self) -> Stats {
        let store = self.inner.store.counts();
        let live = lock(&self.inner.live).sessions.len() as u64;
        let watchers = self.inner.store.followers() as u64;
        Stats { live, watchers, events: store.events, commits: store.commits, ..self.inner.counters.stats() }
    }

    /// The store below.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Begins a session, owned by the party. `id` is chosen by the caller, once for each session: the same call again is the
    /// same session. Cancel safe in that sense.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn create(&self, id: SessionId, by: &Party, new: NewSession) -> Result<(), CommandError> {
        let is_open = |agent: &Arc<Agent>| agent.is_open_to(by) && !agent.id.is_board();
        let agent = self.inner.agent(&new.agent).filter(is_open);
        let agent = agent.ok_or(CommandError::NoSuchAgent(new.agent))?;
        Command::Label { labels: new.labels.clone() }.check()?;
        let mut bodies = vec![Body::Created { agent: agent.id.clone(), owner: by.clone() }];
        bodies.extend(new.chain.as_ref().map(|chain| {
            let (scope, signed) = chain.signed();
            Body::Delegated { scope: *scope, chain: signed.clone() }
        }));
        bodies.extend(new.name.map(|name| Body::Named { name: Some(name) }));
        if !new.labels.is_empty() {
            bodies.push(Body::Labelled { labels: new.labels });
        }
        match self.inner.store.create(id, now_ms(), bodies).await {
            Ok(_) => Ok(()),
            Err(crate::store::CreateError::Exists(_)) => self.is_own(id, by).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Begins a board: a log without an agent, on which all with the right to prompt post. `id` as in [`Sessions::create`].
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn create_board(
        &self,
        id: SessionId,
        by: &Party,
        name: SessionName,
        shares: Vec<Share>,
    ) -> Result<(), CommandError> {
        Command::Share { shares: shares.clone() }.check()?;
        let created = Body::Created { agent: AgentId::board(), owner: by.clone() };
        let mut bodies = vec![created, Body::Named { name: Some(name) }];
        if !shares.is_empty() {
            bodies.push(Body::Shared { shares });
        }
        match self.inner.store.create(id, now_ms(), bodies).await {
            Ok(_) => Ok(()),
            Err(crate::store::CreateError::Exists(_)) => self.is_own(id, by).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Begins a session that is the other one up to event `at` (none: its last), owned by the party. `id` as in
    /// [`Sessions::create`].
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn fork(
        &self,
        parent: SessionId,
        at: Option<EventNumber>,
        id: SessionId,
        by: &Party,
    ) -> Result<(), CommandError> {
        self.needs(parent, by, Right::Watch).await?;
        let cut = match at {
            Some(at) => at,
            None => self.inner.store.last(parent).await?,
        };
        let bodies = vec![Body::Forked { parent, cut, owner: by.clone() }];
        match self.inner.store.fork(parent, cut, id, now_ms(), bodies).await {
            // Comes alive to end the turn that was cut.
            Ok(_) => self.command(id, by, Command::Watch).await.map(drop),
            Err(crate::store::ForkError::Exists(_)) => self.is_own(id, by).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Prompts the agent. Returns when the prompt stands in the log, with its number: from there it is answered whatever
    /// happens. The same prompt id again is the same prompt. Cancel safe in that sense.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn prompt(
        &self,
        session: SessionId,
        by: &Party,
        prompt: PromptId,
        parts: Vec<Shown>,
    ) -> Result<EventNumber, CommandError> {
        self.needs(session, by, Right::Prompt).await?;
        let parts = content::parts(&self.inner.store, parts).await?;
        self.command(session, by, Command::Prompt { prompt, parts }).await
    }

    /// Posts on a board, in the name of an agent of the party's node or of the party itself. Returns when it stands in the
    /// log, with its number. The same post id again is the same post. Cancel safe in that sense.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn post(
        &self,
        board: SessionId,
        by: &Party,
        post: PromptId,
        agent: Option<AgentId>,
        parts: Vec<Shown>,
    ) -> Result<EventNumber, CommandError> {
        self.needs(board, by, Right::Prompt).await?;
        let parts = content::parts(&self.inner.store, parts).await?;
        self.command(board, by, Command::Post { post, agent, parts }).await
    }

    /// Says something in the middle of a turn (none: the one under way), for the agent to hear before its next model call.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn steer(
        &self,
        session: SessionId,
        by: &Party,
        turn: Option<TurnNumber>,
        parts: Vec<Shown>,
    ) -> Result<EventNumber, CommandError> {
        self.needs(session, by, Right::Prompt).await?;
        let parts = content::parts(&self.inner.store, parts).await?;
        self.command(session, by, Command::Steer { turn, parts }).await
    }

    /// Asks anything of a session. Returns the last event that it wrote for it, or its last.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn command(
        &self,
        session: SessionId,
        by: &Party,
        command: Command,
    ) -> Result<EventNumber, CommandError> {
        // Those who may not know of a session do not wake it either.
        self.needs(session, by, Right::Watch).await?;
        let (reply, answer) = oneshot::channel();
        self.inner.send(session, Request::Command { by: by.clone(), command, reply })?;
        answer.await.map_err(|_| CommandError::Closed)?
    }

    /// What the party may do with a session; none when it is not to know of it.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn right(&self, session: SessionId, by: &Party) -> Result<Option<Right>, CommandError> {
        Ok(self.inner.store.right_of(session, by).await?)
    }

    /// How a session stands, in the words of lists and as its log leaves it.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn show(&self, session: SessionId, by: &Party) -> Result<(Listed, Session), CommandError> {
        self.command(session, by, Command::Watch).await?;
        let listed = self.inner.store.session(session).await?;
        Ok((listed, load(&self.inner.store, session).await?.session))
    }

    /// Follows a session: the events after `after`, then those to come, for as long as the party may watch.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn follow(
        &self,
        session: SessionId,
        by: &Party,
        after: EventNumber,
    ) -> Result<Following, CommandError> {
        self.needs(session, by, Right::Watch).await?;
        let follower = self.inner.store.follow(session, after).await.map_err(|error| match error {
            crate::store::ReadError::NoSuchEvent { .. } => CommandError::Refused(Refusal::NoSuchEvent),
            error => error.into(),
        })?;
        Ok(Following::new(self.clone(), follower, session, by.clone()))
    }

    /// The sessions that the filter lets through and the party may watch, the newest first, and [`Filter::before`] of the next
    /// page; none when this one is empty.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn list(
        &self,
        by: &Party,
        filter: Filter,
    ) -> Result<(Vec<Listed>, Option<SessionId>), CommandError> {
        let seen_by = Some(by.clone());
        let listed = self.inner.store.list(Filter { seen_by, ..filter }).await?;
        let next = listed.last().map(|last| last.session);
        Ok((listed, next))
    }

    /// Where all these words were said, in sessions that the party may watch.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn search(&self, by: &Party, words: &str, limit: u32) -> Result<Vec<Hit>, CommandError> {
        Ok(self.inner.store.search(words, Some(by), limit).await?)
    }

    /// The session of this id, name or beginning of an id, of those of a kind that the party may watch.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn resolve(
        &self,
        by: &Party,
        text: &str,
        kind: Option<Kind>,
    ) -> Result<SessionId, CommandError> {
        Ok(self.inner.store.resolve(by, text, kind).await?)
    }

    /// Has every session rest in order (models are let go, tools told to end) and waits for it, at most for
    /// [`Config::shutdown_grace`]; then ends what is left. They go on when the node starts again. The store stays open.
    /// Idempotent.
    pub async fn shutdown(&self) {
        let sessions: Vec<_> = {
            let mut live = lock(&self.inner.live);
            live.is_closing = true;
            live.sessions.drain().map(|(_, requests)| requests).collect()
        };
        let work = async {
            for requests in sessions {
                let _ = requests.send(Request::Shutdown).await;
            }
            self.inner.tasks.close();
            self.inner.tasks.wait().await;
        };
        if tokio::time::timeout(self.inner.config.shutdown_grace, work).await.is_err() {
            tracing::warn!("sessions did not rest in time and are ended");
        }
        self.inner.cancel.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// The node whose sessions they are.
    pub(crate) fn me(&self) -> NodeId {
        self.inner.me
    }

    /// A handle that keeps nothing alive.
    pub(crate) fn downgrade(&self) -> WeakSessions {
        WeakSessions(Arc::downgrade(&self.inner))
    }

    /// Resolves when they have ended.
    pub(crate) fn ended(&self) -> tokio_util::sync::WaitForCancellationFutureOwned {
        self.inner.cancel.clone().cancelled_owned()
    }

    async fn needs(&self, session: SessionId, by: &Party, needs: Right) -> Result<(), CommandError> {
        match self.right(session, by).await? {
            None => Err(Refusal::NoSuchSession.into()),
            Some(right) if right < needs => Err(Refusal::NotAllowed { needs }.into()),
            Some(_) => Ok(()),
        }
    }

    /// A session that is there already is the caller's own, from a call whose answer was lost.
    async fn is_own(&self, id: SessionId, by: &Party) -> Result<(), CommandError> {
        let listed = self.inner.store.session(id).await?;
        if listed.owner.is(by) { Ok(()) } else { Err(Refusal::NoSuchSession.into()) }
    }

    /// Wakes every session that has work left.
    async fn go_on(&self) -> Result<(), StorageError> {
        let mut filter = Filter { unfinished: true, ..Filter::default() };
        loop {
            let page = self.inner.store.list(filter.clone()).await?;
            let Some(last) = page.last() else { return Ok(()) };
            filter.before = Some(last.session);
            for session in page {
                if session.host.is_some_and(|host| host != self.inner.me) {
                    continue;
                }
                // The one that tells them that they are alive needs no answer.
                let (reply, _) = oneshot::channel();
                let (by, command) = (Party::local(self.inner.me), Command::Watch);
                let request = Request::Command { by, command, reply };
                if let Err(error) = self.inner.send(session.session, request) {
                    tracing::warn!(session = %session.session, %error, "unfinished session not resumed");
                }
            }
        }
    }
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("me", &self.inner.me).finish_non_exhaustive()
    }
}

impl Inner {
    fn agent(&self, id: &AgentId) -> Option<Arc<Agent>> {
        lock(&self.agents).get(id).cloned()
    }

    /// Hands a request to the task of a session, which is started when there is none.
    fn send(self: &Arc<Self>, session: SessionId, request: Request) -> Result<(), CommandError> {
        let mut live = lock(&self.live);
        if live.is_closing {
            return Err(CommandError::Closed);
        }
        let request = match live.sessions.get(&session) {
            None => request,
            Some(requests) => match requests.try_send(request) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Full(_)) => return Err(CommandError::Busy),
                // Its task panicked; a new one reads the log.
                Err(mpsc::error::TrySendError::Closed(request)) => request,
            },
        };
        self.wake(&mut live, session, request)
    }

    fn wake(
        self: &Arc<Self>,
        live: &mut Alive,
        session: SessionId,
        request: Request,
    ) -> Result<(), CommandError> {
        if live.sessions.len() >= self.config.live_max {
            return Err(CommandError::Busy);
        }
        let (requests, queue) = mpsc::channel(REQUESTS_MAX);
        requests.try_send(request).map_err(|_| CommandError::Busy)?;
        live.sessions.insert(session, requests);
        self.tasks.spawn(Live::new(self.clone(), session, queue).run());
        Ok(())
    }

    /// Takes a session off the list of those alive, unless a request has just come.
    fn retire(&self, session: SessionId, requests: &mpsc::Receiver<Request>) -> bool {
        let mut live = lock(&self.live);
        let may_go = requests.is_empty();
        if may_go {
            live.sessions.remove(&session);
            lock(&self.chains).remove(&session);
        }
        may_go
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> Now {
    Now { instant: tokio::time::Instant::now().into_std(), unix_ms: now_ms() }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
