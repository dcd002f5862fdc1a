//! A session by what people call it, wherever it is.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mesh_control::{Address, ApiError, ErrorCode};
use mesh_identity::{NodeId, ScopeId};
use mesh_sessions::event::Party;
use mesh_sessions::host::{CommandError, Sessions};
use mesh_sessions::ids::{AgentId, EventNumber, PromptId, SessionId, TurnNumber};
use mesh_sessions::model::Shown;
use mesh_sessions::proto::wire::{Code, Deed};
use mesh_sessions::proto::{Command, Refusal};
use mesh_sessions::remote::{Config as RemoteConfig, RemoteError, RemoteHost, RemoteSession};
use mesh_sessions::store::Kind;

use super::super::Node;
use super::super::scopes::Scope;

/// Sessions of other nodes that are remembered by their ids; beyond it all are forgotten and found again by their hosts' names.
const KNOWN_MAX: usize = 10_000;

/// Sessions of other nodes that this one has used.
#[derive(Default)]
pub(super) struct Known(Mutex<HashMap<SessionId, RemoteSession>>);

impl Known {
    /// The one handle of a session: prompts keep their order by it.
    fn keep(&self, session: RemoteSession) -> RemoteSession {
        let mut known = self.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.entry(session.id()).or_insert(session).clone()
    }

    /// Those whose id begins so.
    fn beginning(&self, text: &str) -> Vec<RemoteSession> {
        let begins = |session: &&RemoteSession| session.id().to_string().starts_with(text);
        self.lock().values().filter(begins).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, RemoteSession>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session at hand.
pub(crate) enum Held {
    /// One of this node.
    Here { sessions: Sessions, by: Party, id: SessionId },
    /// One of another node.
    There(RemoteSession),
}

/// Fewest characters of an id that count as its beginning.
const PREFIX_MIN: usize = 4;

impl Node {
    /// The session that an address names.
    pub(crate) async fn hold(&self, text: &str) -> Result<Held, ApiError> {
        let Address { what, node } = Address::of(text);
        let Some(node) = node else { return self.hold_anywhere(text).await };
        match self.host_of(node) {
            Ok(None) => self.hold_here(what, Kind::Session).await,
            Ok(Some(host)) => {
                let session = match what.parse() {
                    // An id needs nobody to say which it is: what is asked of it waits for its host.
                    Ok(id) => host.session(id),
                    Err(_) => host.resolve(what).await.map_err(|error| refused_there(&error))?,
                };
                Ok(self.hold_remote(session).await)
            }
            // A name may have an @ in it.
            Err(error) => self.hold_here(text, Kind::Session).await.map_err(|_| error),
        }
    }

    pub(super) async fn hold_here(&self, text: &str, kind: Kind) -> Result<Held, ApiError> {
        let (sessions, by) = (self.sessions().await?, self.owner());
        let id = sessions.resolve(&by, text, Some(kind)).await.map_err(|error| refused(&error))?;
        let moved = sessions.host_of(id).await.map_err(|error| refused(&error))?;
        // Until the new host has it, and when that one is not in the mesh any more, it is read here.
        if let Some(to) = moved
            && let Ok(Some(host)) = self.host_of(&to.to_string())
            && sessions.is_delivered(id).await.map_err(|error| refused(&error))?
        {
            return Ok(Held::There(self.keep_remote(host.session(id))));
        }
        Ok(Held::Here { sessions, by, id })
    }

    /// A session that was another node's, and may be this one's by now.
    async fn hold_remote(&self, session: RemoteSession) -> Held {
        let (session, by) = (self.keep_remote(session), self.owner());
        match self.running_sessions() {
            Some(sessions) if self.has_taken(&sessions, session.id()).await => {
                Held::Here { sessions, by, id: session.id() }
            }
            _ => Held::There(session),
        }
    }

    /// Whether a session was handed to this node, and is here: a copy that was imported is not.
    pub(super) async fn has_taken(&self, sessions: &Sessions, session: SessionId) -> bool {
        let listed = sessions.store().session(session).await;
        listed.is_ok_and(|listed| listed.host == Some(self.id()))
    }

    async fn hold_anywhere(&self, text: &str) -> Result<Held, ApiError> {
        let unknown = match self.hold_here(text, Kind::Session).await {
            Err(error) if error.code == ErrorCode::UnknownSession => error,
            other => return other,
        };
        let known =
            if text.len() >= PREFIX_MIN { self.inner.agents.known.beginning(text) } else { Vec::new() };
        match known.as_slice() {
            [one] => Ok(self.hold_remote(one.clone()).await),
            [] => Err(unknown
                .with_mend("`qmt-cli session list --all` lists them; one of another node is NAME@NODE")),
            many => Err(ApiError::new(ErrorCode::Ambiguous, format!("{} sessions fit {text:?}", many.len()))
                .with_mend("give more characters of the id")),
        }
    }

    /// The sessions of a node, by its name, its id or a prefix of it; none for this node.
    pub(crate) fn host_of(&self, node: &str) -> Result<Option<RemoteHost>, ApiError> {
        if self.id().to_string() == node || self.name().as_str() == node {
            return Ok(None);
        }
        let resolved = self.resolve_node(node, None);
        let (scope, id) = resolved.map_err(|error| self.not_heard_of_yet(node, error))?;
        Ok((id != self.id()).then(|| self.remote_host(scope, id)))
    }

    /// A program that goes on with a session names its host by the whole id. After a start the others are not known for a
    /// while, and it is to ask again instead of giving the session up.
    fn not_heard_of_yet(&self, node: &str, error: ApiError) -> ApiError {
        let has_just_started = self.started().elapsed() < self.config().mesh.stream_grace;
        if error.code != ErrorCode::UnknownNode || node.parse::<NodeId>().is_err() || !has_just_started {
            return error;
        }
        let what = format!("nothing is heard of node {node} yet: this node has just started");
        ApiError::new(ErrorCode::Unavailable, what).with_mend("ask again")
    }

    /// The sessions of a peer.
    pub(crate) fn remote_host(&self, scope: ScopeId, node: NodeId) -> RemoteHost {
        RemoteHost::new(self.transport().clone(), scope, node, self.remote_config())
    }

    pub(super) fn remote_config(&self) -> RemoteConfig {
        RemoteConfig { grace: self.config().mesh.stream_grace, ..RemoteConfig::default() }
    }

    /// A session of a peer, remembered. One that is called by its id alone may not be there at all.
    pub(super) fn keep_remote(&self, session: RemoteSession) -> RemoteSession {
        self.inner.agents.known.keep(session)
    }

    /// What people call a node, never what a stranger calls itself; empty when it is not known.
    pub(crate) fn name_of(&self, node: &NodeId) -> String {
        if *node == self.id() {
            return self.name().to_string();
        }
        let name = |scope: &Scope| {
            let members = self.gossip(&scope.id())?.members();
            Some(self.routed_name(&scope.id(), members.get(node)?).to_string())
        };
        self.scopes().list().iter().find_map(name).unwrap_or_default()
    }
}

impl Held {
    pub(crate) fn id(&self) -> SessionId {
        match self {
            Self::Here { id, .. } => *id,
            Self::There(session) => session.id(),
        }
    }

    pub(crate) async fn prompt(&self, prompt: PromptId, parts: Vec<Shown>) -> Result<EventNumber, ApiError> {
        match self {
            Self::Here { sessions, by, id } => {
                sessions.prompt(*id, by, prompt, parts).await.map_err(|error| refused(&error))
            }
            Self::There(session) => {
                session.prompt(prompt, parts).await.map_err(|error| refused_there(&error))
            }
        }
    }

    pub(crate) async fn post(
        &self,
        post: PromptId,
        agent: Option<AgentId>,
        parts: Vec<Shown>,
    ) -> Result<EventNumber, ApiError> {
        match self {
            Self::Here { sessions, by, id } => {
                sessions.post(*id, by, post, agent, parts).await.map_err(|error| refused(&error))
            }
            Self::There(session) => {
                session.post(post, agent, parts).await.map_err(|error| refused_there(&error))
            }
        }
    }

    pub(crate) async fn steer(
        &self,
        turn: Option<TurnNumber>,
        parts: Vec<Shown>,
    ) -> Result<EventNumber, ApiError> {
        match self {
            Self::Here { sessions, by, id } => {
                sessions.steer(*id, by, turn, parts).await.map_err(|error| refused(&error))
            }
            Self::There(session) => session.steer(turn, parts).await.map_err(|error| refused_there(&error)),
        }
    }

    pub(crate) async fn act(&self, what: Deed) -> Result<EventNumber, ApiError> {
        match self {
            Self::Here { sessions, by, id } => {
                let command = match what {
                    Deed::Cancel { turn } => Command::Cancel { turn },
                    Deed::Decide { turn, tool_call, allowed } => {
                        Command::Decide { turn, call: tool_call, allowed }
                    }
                    Deed::Name { name } => Command::Name { name },
                    Deed::Label { labels } => Command::Label { labels },
                    Deed::Share { shares } => Command::Share { shares },
                    Deed::Suspend { why } => Command::Suspend { why },
                    Deed::Resume => Command::Resume,
                    Deed::Archive => Command::Archive,
                    Deed::HandOver { to } => Command::HandOver { to },
                };
                sessions.command(*id, by, command).await.map_err(|error| refused(&error))
            }
            Self::There(session) => session.act(what).await.map_err(|error| refused_there(&error)),
        }
    }
}

/// A refusal of this node's sessions as the control API says it.
pub(crate) fn refused(error: &CommandError) -> ApiError {
    let code = match error {
        CommandError::Refused(refusal) => match refusal {
            Refusal::NoSuchSession => ErrorCode::UnknownSession,
            Refusal::NotAllowed { .. } => ErrorCode::NotAllowed,
            Refusal::Archived => ErrorCode::Archived,
            // It is on its way, and the same call goes to its new host a little later.
            Refusal::Moved { .. } => ErrorCode::Unavailable,
            Refusal::NoAgent => ErrorCode::UnknownAgent,
            Refusal::WrongKind { .. } => ErrorCode::BadRequest,
            Refusal::NoSuchTurn => ErrorCode::UnknownTurn,
            Refusal::NoSuchCall => ErrorCode::UnknownCall,
            Refusal::NoSuchEvent => ErrorCode::UnknownEvent,
            Refusal::TooMuch { .. } => ErrorCode::TooLarge,
            _ => ErrorCode::Unavailable,
        },
        CommandError::NoSuchAgent(_) => ErrorCode::UnknownAgent,
        CommandError::TooLong { .. } => ErrorCode::TooLarge,
        CommandError::Ambiguous(_) => ErrorCode::Ambiguous,
        CommandError::Storage(_) => ErrorCode::Storage,
        _ => ErrorCode::Unavailable,
    };
    ApiError::new(code, super::super::chain(error))
}

/// The same of another node's.
pub(crate) fn refused_there(error: &RemoteError) -> ApiError {
    let code = match error {
        RemoteError::Refused { code, .. } => match code {
            Code::NoSuchSession => ErrorCode::UnknownSession,
            Code::NotAllowed => ErrorCode::NotAllowed,
            Code::Archived => ErrorCode::Archived,
            Code::Moved => ErrorCode::Conflict,
            Code::NoSuchAgent => ErrorCode::UnknownAgent,
            Code::WrongKind => ErrorCode::BadRequest,
            Code::NoSuchTurn => ErrorCode::UnknownTurn,
            Code::NoSuchCall => ErrorCode::UnknownCall,
            Code::NoSuchEvent | Code::NoSuchContent => ErrorCode::UnknownEvent,
            Code::TooMuch => ErrorCode::TooLarge,
            Code::Ambiguous => ErrorCode::Ambiguous,
            Code::Storage => ErrorCode::Storage,
            Code::Busy => ErrorCode::Unavailable,
            _ => ErrorCode::Internal,
        },
        RemoteError::Moved { .. } => ErrorCode::Unavailable,
        RemoteError::NoSuchNode { .. } => ErrorCode::UnknownNode,
        RemoteError::NoSuchAgent { .. } => ErrorCode::UnknownAgent,
        RemoteError::TooManyWaiting => ErrorCode::Unavailable,
        _ => ErrorCode::NodeUnreachable,
    };
    ApiError::new(code, error.to_string())
}
