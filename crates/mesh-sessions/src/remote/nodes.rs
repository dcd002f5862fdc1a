//! The agents of the mesh for a program that embeds it, in the words of the first mesh of QMT.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mesh_identity::{NodeId, ScopeId};
use mesh_transport::Transport;

use super::Config;
use super::call::{RemoteError, RemoteHost, RemoteSession};
use crate::ids::{AgentId, EventNumber, SessionId};
use crate::proto::wire::{Code, Deed};

/// The live mesh, as whoever knows its members keeps it.
pub trait Nodes: Send + Sync {
    /// The nodes that host agents or models, the best choice for a new session first; this one is not among them.
    fn nodes(&self) -> Vec<NodeInfo>;

    /// The node that is meant, and a scope in which it is reached: by its id, by a configured name, or by the name that its
    /// grant carries; never by what it calls itself.
    fn find(&self, node: &str) -> Option<(ScopeId, NodeId)>;
}

/// A node as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its key.
    pub peer_id: NodeId,
    /// What its grant calls it.
    pub name: Option<String>,
    /// The scopes in which both are, the preferred one first.
    pub scopes: Vec<ScopeId>,
    /// By which it has its models: `llama.cpp` for its own, `api` for those of servers that somebody else runs.
    pub providers: Vec<String>,
    /// That it serves.
    pub models: Vec<String>,
    /// That it hosts.
    pub agents: Vec<String>,
    /// Such as `gpu`.
    pub capabilities: Vec<String>,
    /// Of its software.
    pub version: String,
    /// To it and back; none while there is no link.
    pub rtt: Option<Duration>,
    /// How it is reached, such as `direct` or `relayed`; none while there is no link.
    pub path: Option<String>,
}

/// How long one node is tried where others would do: the next one is a better choice than a long wait.
const ANYWHERE_GRACE: Duration = Duration::from_secs(5);

/// The sessions of all nodes of the mesh. Clones are handles to the same.
///
/// ```no_run
/// # async fn run(agents: mesh_sessions::remote::RemoteAgents) -> Result<(), Box<dyn std::error::Error>> {
/// let remote_session = agents.create_remote_session("gpu-server", "coder").await?;
/// let session = agents.attach_remote_session(remote_session).await?;
/// println!("{}", session.chat("Hello!").await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RemoteAgents {
    transport: Transport,
    nodes: Arc<dyn Nodes>,
    config: Config,
}

/// A session that is to be attached to.
#[derive(Clone, Debug)]
pub enum SessionAt {
    /// One that is at hand.
    Session(RemoteSession),
    /// One at a node.
    At {
        /// The node, as [`Nodes::find`] takes it.
        node: String,
        /// Its id, its name, or the beginning of its id.
        session: String,
    },
}

impl From<RemoteSession> for SessionAt {
    fn from(session: RemoteSession) -> Self {
        Self::Session(session)
    }
}

impl From<(&str, &str)> for SessionAt {
    /// Node and session.
    fn from((node, session): (&str, &str)) -> Self {
        Self::At { node: node.to_owned(), session: session.to_owned() }
    }
}

impl RemoteAgents {
    /// The agents of these nodes, over this transport.
    pub fn new(transport: Transport, nodes: Arc<dyn Nodes>, config: Config) -> Self {
        Self { transport, nodes, config }
    }

    /// The nodes that can be used now.
    pub async fn list_remote_nodes(&self) -> Vec<NodeInfo> {
        self.nodes.nodes()
    }

    /// A node by its id or name.
    ///
    /// # Errors
    /// [`RemoteError::NoSuchNode`].
    pub fn node(&self, node: &str) -> Result<RemoteHost, RemoteError> {
        let found = self.nodes.find(node);
        let (scope, id) = found.ok_or_else(|| RemoteError::NoSuchNode { node: node.to_owned() })?;
        Ok(self.host(scope, id))
    }

    /// Begins a session with an agent of a node.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn create_remote_session(&self, node: &str, agent: &str) -> Result<RemoteSession, RemoteError> {
        self.node(node)?.create(agent_id(agent)?, None, BTreeMap::new()).await
    }

    /// Begins a session with the agent at the first node that has it and all of these capabilities, and answers. A node that
    /// was asked before and whose answer was lost may have begun one that nobody uses.
    ///
    /// # Errors
    /// [`RemoteError`] of the last node that was asked, or [`RemoteError::NoSuchAgent`] when there is none.
    pub async fn create_session_anywhere(
        &self,
        agent: &str,
        capabilities: &[&str],
    ) -> Result<RemoteSession, RemoteError> {
        let id = agent_id(agent)?;
        let mut failed = RemoteError::NoSuchAgent { agent: agent.to_owned() };
        for node in self.nodes.nodes() {
            let can = |wanted: &&str| node.capabilities.iter().any(|label| label == wanted);
            let has = node.agents.iter().any(|hosted| hosted == agent);
            let Some(scope) = node.scopes.first().filter(|_| has && capabilities.iter().all(can)) else {
                continue;
            };
            let mut host = self.host(*scope, node.peer_id);
            Arc::make_mut(&mut host.config).grace = ANYWHERE_GRACE;
            match host.create(id.clone(), None, BTreeMap::new()).await {
                Ok(session) => return Ok(self.host(*scope, node.peer_id).session(session.id())),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// A session at a node, once it is known to be there and may be watched.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn attach_remote_session(
        &self,
        session: impl Into<SessionAt>,
    ) -> Result<RemoteSession, RemoteError> {
        match session.into() {
            SessionAt::Session(session) => {
                session.host().resolve(&session.id().to_string()).await?;
                Ok(session)
            }
            SessionAt::At { node, session } => self.node(&node)?.resolve(&session).await,
        }
    }

    /// Begins a session at a node that is another one of its up to an event; none: its last.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn fork_remote_session(
        &self,
        node: &str,
        session: SessionId,
        at: Option<EventNumber>,
    ) -> Result<RemoteSession, RemoteError> {
        self.node(node)?.fork(session, at).await
    }

    /// A session at a node, which goes on if it rested. Who may only watch it gets it as it is.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn resume_remote_session(
        &self,
        node: &str,
        session: SessionId,
    ) -> Result<RemoteSession, RemoteError> {
        let session = self.node(node)?.session(session);
        match session.act(Deed::Resume).await {
            Ok(_) | Err(RemoteError::Refused { code: Code::NotAllowed | Code::Archived, .. }) => Ok(session),
            Err(error) => Err(error),
        }
    }

    fn host(&self, scope: ScopeId, node: NodeId) -> RemoteHost {
        RemoteHost::new(self.transport.clone(), scope, node, self.config.clone())
    }
}

impl std::fmt::Debug for RemoteAgents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteAgents").field("me", &self.transport.node_id()).finish_non_exhaustive()
    }
}

fn agent_id(agent: &str) -> Result<AgentId, RemoteError> {
    agent.parse().map_err(|_| RemoteError::NoSuchAgent { agent: agent.to_owned() })
}
