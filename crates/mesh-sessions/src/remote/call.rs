//! The caller's side of `session/1`.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mesh_identity::{NodeId, ScopeId};
use mesh_transport::{ResetCode, SendStream, StreamFault, Transport};
use tokio::io::AsyncWrite;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;
use uuid::Uuid;

use super::follow::RemoteFollowing;
use super::frame::{Broken, Reader, write, write_content};
use super::{Config, PROTOCOL};
use crate::chain::SignedChain;
use crate::ids::{AgentId, BlobId, EventNumber, PromptId, SessionId, SessionName, TurnNumber};
use crate::model::Shown;
use crate::proto::wire::{AgentFacts, Ask, Code, Deed, HitFacts, PartHead, SessionFacts, Tell};

/// Between the first two tries to reach a host; doubled each time, up to the other.
pub(super) const RETRY_FIRST: Duration = Duration::from_millis(200);
pub(super) const RETRY_MAX: Duration = Duration::from_secs(5);

/// Hosts that are asked in a row for one that has the session by now.
const MOVES_MAX: usize = 8;

/// A call to a host was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The host refused; nothing has changed.
    #[error("{text}")]
    Refused {
        /// Why, for programs.
        code: Code,
        /// Why, in the host's words.
        text: String,
    },
    /// Another node is the session's host by now. A [`RemoteSession`] goes there by itself, unless it is this node.
    #[error("the session was handed to node {}", to.short())]
    Moved {
        /// Which.
        to: NodeId,
    },
    /// The host was not reached within [`Config::grace`], or its answer was lost and the call may not be repeated: it may have
    /// been done.
    #[error("node {} was not reached: {why}", node.short())]
    Lost {
        /// The host.
        node: NodeId,
        /// What failed last.
        why: String,
    },
    /// The node serves no sessions.
    #[error("node {} serves no sessions", node.short())]
    NotServed {
        /// The node.
        node: NodeId,
    },
    /// No node is called so.
    #[error("there is no node {node} in the mesh")]
    NoSuchNode {
        /// As it was written.
        node: String,
    },
    /// No node hosts such an agent.
    #[error("no node of the mesh has an agent {agent} with what is wanted")]
    NoSuchAgent {
        /// As it was written.
        agent: String,
    },
    /// Too many prompts of this session wait for the link already.
    #[error("too many prompts wait for the link")]
    TooManyWaiting,
}

/// A node that hosts sessions, as a peer sees it.
#[derive(Clone, Debug)]
pub struct RemoteHost {
    pub(super) transport: Transport,
    pub(super) scope: ScopeId,
    pub(super) node: NodeId,
    pub(super) config: Arc<Config>,
}

/// A session of another node. Clones are the same session: their prompts arrive in the order in which they were made.
#[derive(Clone, Debug)]
pub struct RemoteSession {
    /// Where it is, as far as is known.
    host: Arc<std::sync::Mutex<RemoteHost>>,
    id: SessionId,
    order: Arc<Mutex<()>>,
    waiting: Arc<Semaphore>,
}

impl RemoteHost {
    /// The sessions of a node in a scope.
    pub fn new(transport: Transport, scope: ScopeId, node: NodeId, config: Config) -> Self {
        Self { transport, scope, node, config: Arc::new(config) }
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The agents with which sessions can be begun there.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn agents(&self) -> Result<Vec<AgentFacts>, RemoteError> {
        match self.ask(&Ask::Agents, &[]).await? {
            Tell::Agents { agents } => Ok(agents),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Begins a session there. Dropped, it may have been begun.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn create(
        &self,
        agent: AgentId,
        name: Option<SessionName>,
        labels: BTreeMap<String, String>,
    ) -> Result<RemoteSession, RemoteError> {
        self.create_as(SessionId::from_uuid(Uuid::now_v7()), agent, name, labels).await
    }

    /// [`RemoteHost::create`] with an id of the caller's choice: the same call again is the same session.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn create_as(
        &self,
        id: SessionId,
        agent: AgentId,
        name: Option<SessionName>,
        labels: BTreeMap<String, String>,
    ) -> Result<RemoteSession, RemoteError> {
        self.done(&Ask::Create { id, agent, name, labels, chain: None }, &[]).await?;
        Ok(self.session(id))
    }

    /// Begins a session for a turn of this node that waits for what comes of it; the last delegation of the chain is to the
    /// agent there. The same call again is the same session.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn delegate(
        &self,
        id: SessionId,
        agent: AgentId,
        labels: BTreeMap<String, String>,
        chain: SignedChain,
    ) -> Result<RemoteSession, RemoteError> {
        self.done(&Ask::Create { id, agent, name: None, labels, chain: Some(chain) }, &[]).await?;
        Ok(self.session(id))
    }

    /// Begins a session there that is another one up to an event; none: its last.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn fork(
        &self,
        parent: SessionId,
        at: Option<EventNumber>,
    ) -> Result<RemoteSession, RemoteError> {
        self.fork_as(SessionId::from_uuid(Uuid::now_v7()), parent, at).await
    }

    /// [`RemoteHost::fork`] with an id of the caller's choice: the same call again is the same fork.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn fork_as(
        &self,
        id: SessionId,
        parent: SessionId,
        at: Option<EventNumber>,
    ) -> Result<RemoteSession, RemoteError> {
        self.done(&Ask::Fork { parent, at, id }, &[]).await?;
        Ok(self.session(id))
    }

    /// The session of this id, whether it is there or not.
    pub fn session(&self, id: SessionId) -> RemoteSession {
        let waiting = Arc::new(Semaphore::new(self.config.waiting_max));
        let host = Arc::new(std::sync::Mutex::new(self.clone()));
        RemoteSession { host, id, order: Arc::default(), waiting }
    }

    fn is_me(&self, node: NodeId) -> bool {
        node == self.transport.node_id()
    }

    /// Another node of the same scope.
    pub(super) fn at(&self, node: NodeId) -> Self {
        Self { node, ..self.clone() }
    }

    /// The session of this id, name or beginning of an id.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn resolve(&self, text: &str) -> Result<RemoteSession, RemoteError> {
        self.resolve_of(text, false).await
    }

    /// The board of this id, name or beginning of an id.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn resolve_board(&self, text: &str) -> Result<RemoteSession, RemoteError> {
        self.resolve_of(text, true).await
    }

    async fn resolve_of(&self, text: &str, boards: bool) -> Result<RemoteSession, RemoteError> {
        match self.ask(&Ask::Resolve { text: text.to_owned(), boards }, &[]).await? {
            Tell::Session { id } => Ok(self.session(id)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// A page of the sessions there that we may watch, the newest first, and where the next one goes on.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn list(
        &self,
        agent: Option<AgentId>,
        before: Option<SessionId>,
        limit: u32,
    ) -> Result<(Vec<SessionFacts>, Option<SessionId>), RemoteError> {
        self.list_of(Ask::List { agent, before, limit, boards: false }).await
    }

    /// [`RemoteHost::list`] of boards.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn list_boards(
        &self,
        before: Option<SessionId>,
        limit: u32,
    ) -> Result<(Vec<SessionFacts>, Option<SessionId>), RemoteError> {
        self.list_of(Ask::List { agent: None, before, limit, boards: true }).await
    }

    async fn list_of(&self, ask: Ask) -> Result<(Vec<SessionFacts>, Option<SessionId>), RemoteError> {
        match self.ask(&ask, &[]).await? {
            Tell::Sessions { sessions, next } => Ok((sessions, next)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Where all these words were said, in the sessions there that we may watch.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn search(&self, words: &str, limit: u32) -> Result<Vec<HitFacts>, RemoteError> {
        match self.ask(&Ask::Search { words: words.to_owned(), limit }, &[]).await? {
            Tell::Hits { hits } => Ok(hits),
            other => Err(self.unexpected(&other)),
        }
    }

    async fn done(&self, ask: &Ask, contents: &[Shown]) -> Result<EventNumber, RemoteError> {
        match self.ask(ask, contents).await? {
            Tell::Done { number } => Ok(number),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Asks, again and again while the host is out of reach and repeating is safe.
    async fn ask(&self, ask: &Ask, contents: &[Shown]) -> Result<Tell, RemoteError> {
        let until = Instant::now() + self.config.grace;
        let mut wait = RETRY_FIRST;
        loop {
            let failed = match self.ask_once(ask, contents, until).await {
                Ok(Tell::Refused { to: Some(to), code: Code::Moved, .. }) => {
                    return Err(RemoteError::Moved { to });
                }
                Ok(Tell::Refused { code, text, .. }) if code.is_transient() => {
                    RemoteError::Refused { code, text }
                }
                Ok(Tell::Refused { code, text, .. }) => return Err(RemoteError::Refused { code, text }),
                Ok(tell) => return Ok(tell),
                Err(Failed { error, was_sent }) if was_sent && !is_repeatable(ask) => return Err(error),
                Err(Failed { error: error @ RemoteError::NotServed { .. }, .. }) => return Err(error),
                Err(Failed { error, .. }) => error,
            };
            if Instant::now() + wait >= until {
                return Err(failed);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn ask_once(&self, ask: &Ask, contents: &[Shown], until: Instant) -> Result<Tell, Failed> {
        let opened = self.open(until).await;
        let (mut send, mut frames) = opened.map_err(|error| Failed { error, was_sent: false })?;
        let idle = self.config.idle;
        let written = async {
            write(&mut send, ask, idle).await?;
            for part in contents {
                write_content(&mut send, bytes_of(part), idle).await?;
            }
            Ok::<_, Broken>(())
        };
        let told = self.told(&mut frames, written).await;
        told.map_err(|broken| Failed { error: self.broken(&broken), was_sent: true })
    }

    /// Writes a call and reads its answer.
    pub(super) async fn told(
        &self,
        frames: &mut Reader,
        written: impl Future<Output = Result<(), Broken>>,
    ) -> Result<Tell, Broken> {
        let (first, idle) = (self.config.first_event, self.config.idle);
        let read = async {
            let mut within = first;
            loop {
                match frames.message(within).await? {
                    Tell::Beat => within = idle,
                    tell => return Ok::<_, Broken>(tell),
                }
            }
        };
        tokio::pin!(read, written);
        // The host may refuse before it has read everything.
        tokio::select! {
            biased;
            told = &mut read => told,
            written = &mut written => match written {
                Ok(()) => read.await,
                Err(broken) => read.await.map_err(|_| broken),
            },
        }
    }

    pub(super) async fn open(&self, until: Instant) -> Result<(SendStream, Reader), RemoteError> {
        let lost = |why| RemoteError::Lost { node: self.node, why };
        let opening = self.transport.open(&self.scope, &self.node, PROTOCOL);
        let opened = tokio::time::timeout_at(until, opening).await;
        let stream = opened.map_err(|_| lost("it did not answer in time".to_owned()))?;
        let stream = stream.map_err(|error| lost(chain(&error)))?;
        let (send, recv) = stream.split();
        Ok((send, Reader::new(recv)))
    }

    pub(super) fn broken(&self, broken: &Broken) -> RemoteError {
        let node = self.node;
        if let Broken::Frame(mesh_transport::FrameError::Io(error)) = broken {
            let unknown = ResetCode::UNKNOWN_PROTOCOL;
            let fault = StreamFault::of(error);
            if matches!(fault, Some(StreamFault::Reset(code) | StreamFault::Stopped(code)) if *code == unknown)
            {
                return RemoteError::NotServed { node };
            }
        }
        RemoteError::Lost { node, why: chain(broken) }
    }

    pub(super) fn unexpected(&self, tell: &Tell) -> RemoteError {
        let kind =
            serde_json::to_value(tell).ok().and_then(|tell| Some(tell.get("tell")?.as_str()?.to_owned()));
        let why = format!("it answered with {}", kind.unwrap_or_default());
        RemoteError::Lost { node: self.node, why }
    }
}

impl RemoteSession {
    /// Its id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Its host, as far as is known: after a hand-over the next call finds the new one.
    pub fn host(&self) -> RemoteHost {
        self.host.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_at(&self, host: RemoteHost) {
        *self.host.lock().unwrap_or_else(PoisonError::into_inner) = host;
    }

    /// Asks its host, and after a hand-over the next one. Between the two nobody has it for a moment, or the new one has refused
    /// it and the old one has it back: then they are asked in turn, for [`Config::grace`].
    async fn done(&self, ask: &Ask, contents: &[Shown]) -> Result<EventNumber, RemoteError> {
        let (mut left, mut wait) = (None, RETRY_FIRST);
        let until = Instant::now() + self.host().config.grace;
        loop {
            let host = self.host();
            match host.done(ask, contents).await {
                Err(RemoteError::Moved { to })
                    if to != host.node && !host.is_me(to) && Instant::now() + wait < until =>
                {
                    // Each says that the other has it: it is on its way to one that had it before.
                    if left.is_some() {
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(RETRY_MAX);
                    }
                    self.is_at(host.at(to));
                    left = Some(host);
                }
                Err(RemoteError::Refused { code: Code::NoSuchSession, .. })
                    if left.is_some() && Instant::now() + wait < until =>
                {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                    left.take().into_iter().for_each(|host| self.is_at(host));
                }
                done => return done,
            }
        }
    }

    /// Prompts the agent; returns when the prompt stands in the log of its host, with its number. While the host is out of
    /// reach the prompt waits, for [`Config::grace`], and it runs exactly once. Called again with the same id after an error or
    /// a dropped future it is the same prompt.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn prompt(&self, prompt: PromptId, parts: Vec<Shown>) -> Result<EventNumber, RemoteError> {
        let _waits = self.waiting.try_acquire().map_err(|_| RemoteError::TooManyWaiting)?;
        let _turn = self.order.lock().await;
        let ask = Ask::Prompt { session: self.id, prompt, parts: heads(&parts) };
        self.done(&ask, &parts).await
    }

    /// Posts on it, when it is a board; as [`RemoteSession::prompt`] in everything.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn post(
        &self,
        post: PromptId,
        agent: Option<AgentId>,
        parts: Vec<Shown>,
    ) -> Result<EventNumber, RemoteError> {
        let _waits = self.waiting.try_acquire().map_err(|_| RemoteError::TooManyWaiting)?;
        let _turn = self.order.lock().await;
        let ask = Ask::Post { session: self.id, post, agent, parts: heads(&parts) };
        self.done(&ask, &parts).await
    }

    /// Says something in the middle of a turn; none: the one under way.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn steer(
        &self,
        turn: Option<TurnNumber>,
        parts: Vec<Shown>,
    ) -> Result<EventNumber, RemoteError> {
        self.done(&Ask::Steer { session: self.id, turn, parts: heads(&parts) }, &parts).await
    }

    /// Does anything else to it.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn act(&self, what: Deed) -> Result<EventNumber, RemoteError> {
        self.done(&Ask::Do { session: self.id, what }, &[]).await
    }

    /// How it stands at its host; at the one before, with [`SessionFacts::moved_to`], while the new one does not have it, and
    /// when that one is this node.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn show(&self) -> Result<SessionFacts, RemoteError> {
        let mut host = self.host();
        let mut facts = self.show_at(&host).await?;
        for _ in 0..MOVES_MAX {
            let Some(to) = facts.moved_to.filter(|to| *to != host.node && !host.is_me(*to)) else { break };
            let next = host.at(to);
            match self.show_at(&next).await {
                Ok(there) => (host, facts) = (next, there),
                Err(RemoteError::Refused { .. }) => break,
                Err(error) => return Err(error),
            }
            self.is_at(host.clone());
        }
        Ok(facts)
    }

    async fn show_at(&self, host: &RemoteHost) -> Result<SessionFacts, RemoteError> {
        match host.ask(&Ask::Show { session: self.id }, &[]).await? {
            Tell::Sessions { mut sessions, .. } if sessions.len() == 1 => Ok(sessions.remove(0)),
            other => Err(host.unexpected(&other)),
        }
    }

    /// Reads it: the events after `after`, then those to come, over as many links as it takes. Must be called within a tokio
    /// runtime.
    pub fn follow(&self, after: EventNumber) -> RemoteFollowing {
        RemoteFollowing::new(self.host(), self.id, after)
    }

    /// Writes its whole log, as [`Store::export`](crate::store::Store::export) does. What ends early lacks its last line.
    ///
    /// # Errors
    /// [`RemoteError`], also when it cannot be written.
    pub async fn export<W: AsyncWrite + Unpin>(&self, to: &mut W) -> Result<(), RemoteError> {
        self.show().await?;
        let host = self.host();
        let (mut send, mut frames) = host.open(Instant::now() + host.config.grace).await?;
        let idle = host.config.idle;
        let written = async { write(&mut send, &Ask::Export { session: self.id }, idle).await };
        match host.told(&mut frames, written).await.map_err(|broken| host.broken(&broken))? {
            Tell::Log => {}
            Tell::Refused { code, text, .. } => return Err(RemoteError::Refused { code, text }),
            other => return Err(host.unexpected(&other)),
        }
        let pieces = frames.pieces(idle);
        tokio::pin!(pieces);
        let copied = tokio::io::copy_buf(&mut pieces, to).await;
        copied.map(drop).map_err(|error| RemoteError::Lost { node: host.node, why: error.to_string() })
    }

    /// The bytes of a content that an event of it names.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn content(&self, blob: BlobId) -> Result<Bytes, RemoteError> {
        let host = self.host();
        match self.content_at(&host, blob).await {
            // It may be in what was said at a host after that one.
            Err(RemoteError::Refused { code: Code::NoSuchContent | Code::NoSuchSession, text }) => {
                self.show().await?;
                let now = self.host();
                if now.node == host.node {
                    return Err(RemoteError::Refused { code: Code::NoSuchContent, text });
                }
                self.content_at(&now, blob).await
            }
            other => other,
        }
    }

    async fn content_at(&self, host: &RemoteHost, blob: BlobId) -> Result<Bytes, RemoteError> {
        let Config { first_event, idle, grace, .. } = *host.config;
        let (mut send, mut frames) = host.open(Instant::now() + grace).await?;
        let read = async {
            write(&mut send, &Ask::Content { session: self.id, blob }, idle).await?;
            match frames.message(first_event).await? {
                Tell::Content { bytes } if bytes <= crate::store::BLOB_BYTES_MAX as u64 => {
                    Ok(Ok(frames.content(bytes, idle).await?))
                }
                Tell::Refused { code, text, .. } => Ok(Err(RemoteError::Refused { code, text })),
                _ => Err(Broken::Malformed),
            }
        };
        let content = read.await.map_err(|broken| host.broken(&broken))??;
        let is_it = BlobId::of(&content) == blob;
        is_it.then_some(content).ok_or_else(|| host.broken(&Broken::Malformed))
    }
}

struct Failed {
    error: RemoteError,
    /// The host may have heard it.
    was_sent: bool,
}

/// Whether the call, made twice, does what it does once.
fn is_repeatable(ask: &Ask) -> bool {
    match ask {
        Ask::Steer { .. } => false,
        Ask::Do { what, .. } => !matches!(what, Deed::Cancel { turn: None } | Deed::Decide { .. }),
        _ => true,
    }
}

fn heads(parts: &[Shown]) -> Vec<PartHead> {
    let head = |part: &Shown| {
        let bytes = bytes_of(part).len() as u64;
        match part {
            Shown::Text(_) => PartHead::Text { bytes },
            Shown::Image { media_type, .. } => PartHead::Image { media_type: media_type.clone(), bytes },
        }
    };
    parts.iter().map(head).collect()
}

fn bytes_of(part: &Shown) -> &[u8] {
    match part {
        Shown::Text(text) => text.as_bytes(),
        Shown::Image { bytes, .. } => bytes,
    }
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
