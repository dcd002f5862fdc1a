//! The one task of a live session: feeds its core and performs what that wants.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use mesh_identity::UnixTime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::ask::Question;
use super::error::CommandError;
use super::run::Running;
use super::{Inner, content, load, lock, now, now_ms};
use crate::agent::Agent;
use crate::content::ToolCall;
use crate::event::{Body, Party};
use crate::ids::{EventNumber, SessionId, ToolCallId};
use crate::proto::{Asking, Command, Core, Input, Output, Refusal, Said};
use crate::store::{Append, StorageError};

/// Requests that wait for a session; whoever has another is told that it is busy.
pub(super) const REQUESTS_MAX: usize = 256;
/// What models and tools have said and the session has not taken in: beyond it they wait.
const HEARD_MAX: usize = 256;
/// What is taken in between two appends, at most, so that nobody waits long for the first of it.
const TAKEN_MAX: usize = 1024;
/// Before a session whose log could not be written is opened again; doubled each time, up to the other.
const REOPEN_FIRST: Duration = Duration::from_secs(1);
const REOPEN_MAX: Duration = Duration::from_secs(60);

/// What is asked of a live session.
pub(super) enum Request {
    /// A command. `None` is answered when it is done.
    Command { by: Party, command: Command, reply: oneshot::Sender<Result<EventNumber, CommandError>> },
    /// Read the log again: another has written to it.
    Reload,
    /// End in order.
    Shutdown,
}

pub(super) struct Live {
    inner: Arc<Inner>,
    id: SessionId,
    requests: mpsc::Receiver<Request>,
}

/// How a session's loop ended.
enum Ended {
    /// Nothing is left to do.
    Quiet,
    /// The core is of no use any more.
    Failed(CommandError),
    /// The log says more than the core knows.
    Outdated,
}

struct Session<'a> {
    inner: &'a Arc<Inner>,
    id: SessionId,
    agent: Option<Arc<Agent>>,
    core: Core,
    hear: mpsc::Sender<Input>,
    heard: mpsc::Receiver<Input>,
    /// Everything that runs for it; dropped, all of that ends.
    tasks: JoinSet<()>,
    model: Option<AbortHandle>,
    tools: BTreeMap<ToolCallId, CancellationToken>,
    replies: HashMap<u64, oneshot::Sender<Result<EventNumber, CommandError>>>,
    next_reply: u64,
    /// The last event that is on the disk; the core may be ahead of it.
    written: EventNumber,
    /// The epoch of the log up to there.
    epoch: u64,
    snapshot_at: EventNumber,
    /// The next request to be taken in.
    requested: Option<Request>,
    shutdown: Option<u64>,
    is_shut_down: bool,
    is_outdated: bool,
}

impl Live {
    pub(super) fn new(inner: Arc<Inner>, id: SessionId, requests: mpsc::Receiver<Request>) -> Self {
        Self { inner, id, requests }
    }

    /// Lives until the session is quiet for a while, or the node ends.
    pub(super) async fn run(mut self) {
        let mut wait = REOPEN_FIRST;
        loop {
            let error = match self.live(&mut wait).await {
                Ok(Ended::Quiet) => return,
                Ok(Ended::Outdated) => continue,
                Ok(Ended::Failed(error)) | Err(error) => error,
            };
            match error {
                CommandError::Refused(Refusal::NoSuchSession)
                | CommandError::Storage(StorageError::Closed) => {
                    return self.refuse(&error);
                }
                _ => {
                    tracing::warn!(session = %self.id, error = &error as &dyn std::error::Error, "session interrupted");
                }
            }
            if !self.rest(&error, wait).await {
                return;
            }
            wait = (wait * 2).min(REOPEN_MAX);
        }
    }

    async fn live(&mut self, wait: &mut Duration) -> Result<Ended, CommandError> {
        let loaded = load(&self.inner.store, self.id).await?;
        let (written, epoch) = (loaded.session.last(), loaded.session.epoch());
        let agent = loaded.session.agent().and_then(|agent| self.inner.agent(agent));
        let mut playbook = agent.as_ref().map(Agent::playbook);
        if let Some(chain) = loaded.session.chain() {
            if let Some(playbook) = &mut playbook {
                let limits = std::mem::take(&mut playbook.limits);
                playbook.limits = limits.within(chain.budget(), UnixTime::now());
            }
            lock(&self.inner.chains).insert(self.id, chain);
        }
        let core = Core::open(self.id, self.inner.me, loaded.session, playbook, now());
        let (hear, heard) = mpsc::channel(HEARD_MAX);
        let session = Session {
            inner: &self.inner,
            id: self.id,
            agent,
            core,
            hear,
            heard,
            tasks: JoinSet::new(),
            model: None,
            tools: BTreeMap::new(),
            replies: HashMap::new(),
            next_reply: 0,
            written,
            epoch,
            snapshot_at: loaded.snapshot_at,
            requested: None,
            shutdown: None,
            is_shut_down: false,
            is_outdated: false,
        };
        Box::pin(session.run(&mut self.requests, wait)).await
    }

    /// Answers everybody with the error for so long. False: the node ends.
    async fn rest(&mut self, error: &CommandError, wait: Duration) -> bool {
        let over = tokio::time::sleep(wait);
        tokio::pin!(over);
        loop {
            tokio::select! {
                biased;
                () = self.inner.cancel.cancelled() => return false,
                request = self.requests.recv() => match request {
                    Some(Request::Shutdown) | None => return false,
                    Some(request) => request.refuse(error),
                },
                () = &mut over => return true,
            }
        }
    }

    /// Answers everybody with the error, and is gone.
    fn refuse(mut self, error: &CommandError) {
        loop {
            while let Ok(request) = self.requests.try_recv() {
                request.refuse(error);
            }
            if self.inner.retire(self.id, &self.requests) {
                return;
            }
        }
    }
}

impl Request {
    fn refuse(self, error: &CommandError) {
        // Whoever asked may have gone.
        let _ = match self {
            Self::Command { reply, .. } => reply.send(Err(error.clone())).is_ok(),
            Self::Reload | Self::Shutdown => false,
        };
    }
}

impl Session<'_> {
    async fn run(
        mut self,
        requests: &mut mpsc::Receiver<Request>,
        wait: &mut Duration,
    ) -> Result<Ended, CommandError> {
        loop {
            let done = match self.take_more(requests).await {
                Ok(()) => self.perform().await,
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                for (_, reply) in self.replies.drain() {
                    let _ = reply.send(Err(error.clone()));
                }
                return Ok(Ended::Failed(error));
            }
            *wait = REOPEN_FIRST;
            if self.is_outdated {
                for (_, reply) in self.replies.drain() {
                    let _ = reply.send(Err(CommandError::Busy));
                }
                return Ok(Ended::Outdated);
            }
            if self.is_shut_down {
                return Ok(Ended::Quiet);
            }
            let deadline = self.core.next_deadline();
            let is_idle = self.core.is_idle() && self.tasks.is_empty();
            tokio::select! {
                biased;
                () = self.inner.cancel.cancelled() => return Ok(Ended::Quiet),
                () = sleep_until(deadline) => self.input(Input::Tick),
                // Who shuts down says so and goes.
                request = requests.recv(), if self.shutdown.is_none() => match request {
                    Some(request) => self.requested = Some(request),
                    None => return Ok(Ended::Quiet),
                },
                Some(input) = self.heard.recv() => self.input(input),
                Some(ended) = self.tasks.join_next() => report(ended),
                () = tokio::time::sleep(self.inner.config.idle), if is_idle => {
                    self.snapshot(self.inner.config.snapshot_events / 8).await;
                    if self.inner.retire(self.id, requests) {
                        return Ok(Ended::Quiet);
                    }
                }
            }
        }
    }

    /// What has come meanwhile goes into the same append.
    async fn take_more(&mut self, requests: &mut mpsc::Receiver<Request>) -> Result<(), CommandError> {
        if let Some(request) = self.requested.take() {
            self.take(request).await?;
        }
        for _ in 0..TAKEN_MAX {
            if let Ok(input) = self.heard.try_recv() {
                self.input(input);
            } else if let Ok(request) = requests.try_recv() {
                self.take(request).await?;
            } else {
                break;
            }
        }
        Ok(())
    }

    fn input(&mut self, input: Input) {
        if let Input::ToolEnded { call, .. } = &input {
            self.tools.remove(call);
        }
        self.core.handle(input, now());
    }

    async fn take(&mut self, request: Request) -> Result<(), CommandError> {
        match request {
            Request::Reload => self.is_outdated = true,
            Request::Shutdown => {
                self.next_reply += 1;
                self.shutdown = Some(self.next_reply);
                self.input(Input::Shutdown { id: self.next_reply });
            }
            Request::Command { by, command, reply } => match self.seen(&by, &command).await {
                Ok(Some(at)) => drop(reply.send(Ok(at))),
                Ok(None) => {
                    self.next_reply += 1;
                    self.replies.insert(self.next_reply, reply);
                    self.input(Input::Command { id: self.next_reply, by, command });
                }
                Err(error) => {
                    let _ = reply.send(Err(error.clone()));
                    return Err(error);
                }
            },
        }
        Ok(())
    }

    /// Where a prompt or post stands in the log already.
    async fn seen(&mut self, by: &Party, command: &Command) -> Result<Option<EventNumber>, CommandError> {
        let (Command::Prompt { prompt, .. } | Command::Post { post: prompt, .. }) = command else {
            return Ok(None);
        };
        if self.core.session().right_of(by) < Some(command.needs()) {
            return Ok(None);
        }
        // One that came in this very moment is to be on the disk before it is said to be.
        self.perform().await?;
        Ok(self.inner.store.prompt_seen(self.id, prompt, by.node).await?)
    }

    async fn perform(&mut self) -> Result<(), CommandError> {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Append(bodies) => self.append(bodies).await?,
                Output::CallModel { call, asking } => self.call_model(call, asking),
                Output::AbortModel => {
                    if let Some(model) = self.model.take() {
                        model.abort();
                    }
                }
                Output::RunTool { call, by } => self.run_tool(call, by),
                Output::CancelTool { call } => {
                    if let Some(cancel) = self.tools.get(&call) {
                        cancel.cancel();
                    }
                }
                Output::Reply { id, result } => {
                    self.is_shut_down |= self.shutdown == Some(id);
                    if let Some(reply) = self.replies.remove(&id) {
                        let _ = reply.send(result.map_err(Into::into));
                    }
                }
            }
        }
        let every = self.inner.config.snapshot_events;
        self.snapshot(if self.is_shut_down { every / 8 } else { every }).await;
        Ok(())
    }

    /// Writes what the core takes for written already: it must get the numbers that the core has given it.
    async fn append(&mut self, bodies: Vec<Body>) -> Result<(), CommandError> {
        let mut spilled = Vec::with_capacity(bodies.len());
        for body in bodies {
            spilled.push(content::spill(&self.inner.store, body).await?);
        }
        let is_handed_over = spilled.iter().any(|body| matches!(body, Body::HandedOver { .. }));
        let append = Append {
            session: self.id,
            epoch: self.epoch,
            after: Some(self.written),
            at_ms: now_ms(),
            bodies: spilled,
        };
        let written = self.inner.store.append(append).await?;
        self.written = written.last().map_or(self.written, |event| event.number);
        written.iter().for_each(|event| self.inner.counters.note(&event.body));
        if is_handed_over {
            self.epoch = self.core.session().epoch();
            self.inner.handing_over.notify_one();
        }
        Ok(())
    }

    fn call_model(&mut self, call: u64, asking: Asking) {
        let (Some(agent), Some(turn)) = (self.agent.clone(), self.core.session().turn()) else { return };
        let Some(on_behalf_of) = turn.speakers.first().cloned() else { return };
        let through = match asking {
            Asking::Answer => EventNumber(u64::MAX),
            Asking::Summary { through } => through,
        };
        let entries = self.core.session().context().entries();
        let context: Vec<Said> =
            entries.take_while(|entry| entry.number <= through).map(|entry| entry.said.clone()).collect();
        let tools = match asking {
            Asking::Answer => agent.offered(&turn.speakers),
            Asking::Summary { .. } => Vec::new(),
        };
        let (store, client) = (self.inner.store.clone(), self.inner.client.clone());
        let question = Question { store, client, agent, call, asking, context, tools, on_behalf_of };
        self.model = Some(self.tasks.spawn(question.ask(self.hear.clone())));
    }

    fn run_tool(&mut self, call: ToolCall, by: Party) {
        let cancel = CancellationToken::new();
        self.tools.insert(call.id.clone(), cancel.clone());
        let tool = self.agent.as_ref().and_then(|agent| agent.tool(&call.name)).cloned();
        let (store, grace) = (self.inner.store.clone(), self.inner.config.tool_grace);
        let running = Running { store, session: self.id, tool, call, by, cancel, grace };
        self.tasks.spawn(running.run(self.hear.clone()));
    }

    /// Stores how the session stands when enough events have come since it was stored last.
    async fn snapshot(&mut self, every: u64) {
        let last = self.core.session().last();
        if self.written != last || last.0.saturating_sub(self.snapshot_at.0) < every.max(1) {
            return;
        }
        let Some(bytes) = super::snapshot::encode(self.core.session()) else { return };
        self.snapshot_at = last;
        if let Err(error) = self.inner.store.put_snapshot(self.id, last, bytes).await {
            // Only the next opening takes longer.
            tracing::debug!(session = %self.id, error = &error as &dyn std::error::Error, "no snapshot");
        }
    }
}

async fn sleep_until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a task of a session panicked");
    }
}
