//! Tasks that agents of this node give to others.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_util::future::BoxFuture;
use mesh_identity::{ScopeId, UnixTime};
use mesh_sessions::chain::{AgentAt, Chain, ChainError, Hop, SignedChain};
use mesh_sessions::content::Text;
use mesh_sessions::event::{Body, Party, Right, Share, ShareWith, TurnOutcome};
use mesh_sessions::host::{CommandError, NewSession, Sessions};
use mesh_sessions::ids::{AgentId, EventNumber, PromptId, SessionId};
use mesh_sessions::model::Shown;
use mesh_sessions::proto::Command;
use mesh_sessions::tools::{Candidate, Delegator, Order, Roster};

use super::super::{Inner, Node};

/// Sessions whose delegation is remembered: far more than turns that wait at a time.
const CHAINS_MAX: usize = 4096;
/// The label of a session that was begun for another one.
const FOR_LABEL: &str = "delegated-by";

/// The delegations that led to sessions of this node.
#[derive(Default)]
pub(super) struct Chains(Mutex<HashMap<SessionId, Chain>>);

impl Chains {
    fn of(&self, session: &SessionId) -> Option<Chain> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(session).cloned()
    }

    fn remember(&self, session: SessionId, chain: Chain) -> Result<(), String> {
        let mut chains = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if chains.len() >= CHAINS_MAX {
            return Err("too many delegated tasks are under way".to_owned());
        }
        chains.insert(session, chain);
        Ok(())
    }

    fn forget(&self, session: &SessionId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(session);
    }
}

/// The mesh as the tool `delegate` of an agent sees it. It does not keep the node alive.
#[derive(Clone)]
pub(super) struct Mesh {
    node: Weak<Inner>,
    /// The agent whose tool it is.
    agent: Option<AgentId>,
}

impl Mesh {
    pub(super) fn new(node: Weak<Inner>) -> Self {
        Self { node, agent: None }
    }

    /// As the agent sees it.
    pub(super) fn of(&self, agent: &AgentId) -> Self {
        Self { agent: Some(agent.clone()), ..self.clone() }
    }

    fn node(&self) -> Option<Node> {
        self.node.upgrade().map(|inner| Node { inner, _last_handle: None })
    }
}

impl Roster for Mesh {
    fn candidates(&self) -> Vec<Candidate> {
        let Some(node) = self.node() else { return Vec::new() };
        node.own_candidates(self.agent.as_ref())
    }
}

impl Delegator for Mesh {
    fn chain(&self, session: &SessionId) -> Option<Chain> {
        self.node()?.inner.agents.chains.of(session)
    }

    fn delegate(&self, order: Order) -> BoxFuture<'static, Result<String, String>> {
        let (node, agent) = (self.node(), self.agent.clone());
        Box::pin(async move {
            let (Some(node), Some(agent)) = (node, agent) else {
                return Err("the node is shutting down".to_owned());
            };
            node.delegate_here(agent, order).await
        })
    }
}

impl Node {
    /// This node's agents, the one that asks left out.
    fn own_candidates(&self, asking: Option<&AgentId>) -> Vec<Candidate> {
        let Some(sessions) = self.running_sessions() else { return Vec::new() };
        let labels = &self.config().mesh.labels;
        let candidate = |agent: Arc<mesh_sessions::agent::Agent>| Candidate {
            at: AgentAt { node: self.id(), agent: agent.id.clone() },
            node_name: None,
            description: agent.description.clone(),
            model: Some(agent.model.clone()),
            labels: labels.clone(),
            is_busy: false,
        };
        let agents = sessions.agents(&self.owner()).into_iter();
        agents.filter(|agent| Some(&agent.id) != asking).map(candidate).collect()
    }

    async fn delegate_here(&self, agent: AgentId, order: Order) -> Result<String, String> {
        let sessions = self.sessions().await.map_err(|error| error.message)?;
        // The same call is the same session, so that an order that comes twice is one.
        let id = session_of(&order);
        let chain = self.next_hop(agent, &order).map_err(|error| error.to_string())?;
        self.inner.agents.chains.remember(id, chain)?;
        let under_way =
            UnderWay { node: self.clone(), sessions: sessions.clone(), session: id, is_over: false };
        let answer = carry_out(&sessions, &self.owner(), id, &order).await;
        under_way.end(&answer).await;
        answer
    }

    /// The chain with this delegation.
    fn next_hop(&self, agent: AgentId, order: &Order) -> Result<Chain, ChainError> {
        let scope = self.scopes().list().first().map_or(ScopeId::lan(None), super::super::scopes::Scope::id);
        let from = AgentAt { node: self.id(), agent };
        let hop = Hop { from, session: order.session, to: order.to.at.clone(), budget: order.budget };
        let signed = match &order.chain {
            Some(chain) => chain.extend(self.key(), &scope, hop)?,
            None => SignedChain::begin(self.key(), &scope, hop)?,
        };
        signed.verify(&scope, &self.id(), &self.id(), UnixTime::now())
    }
}

/// A task that is under way: dropped before its end, the other turn is ended too.
struct UnderWay {
    node: Node,
    sessions: Sessions,
    session: SessionId,
    is_over: bool,
}

impl UnderWay {
    async fn end(mut self, answer: &Result<String, String>) {
        self.is_over = true;
        if answer.is_err() {
            self.cancel().await;
        }
    }

    async fn cancel(&self) {
        let cancelled =
            self.sessions.command(self.session, &self.node.owner(), Command::Cancel { turn: None }).await;
        if let Err(error) = cancelled {
            tracing::debug!(session = %self.session, %error, "a delegated turn was not ended");
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.node.inner.agents.chains.forget(&self.session);
        if !self.is_over {
            let (sessions, by, session) = (self.sessions.clone(), self.node.owner(), self.session);
            self.node.inner.tasks.spawn(async move {
                let _ = sessions.command(session, &by, Command::Cancel { turn: None }).await;
            });
        }
    }
}

/// Has the agent do the task in a session of its own, and waits for its answer.
async fn carry_out(
    sessions: &Sessions,
    owner: &Party,
    id: SessionId,
    order: &Order,
) -> Result<String, String> {
    let told = |error: CommandError| error.to_string();
    let labels = BTreeMap::from([(FOR_LABEL.to_owned(), order.session.to_string())]);
    let new = NewSession { agent: order.to.at.agent.clone(), name: None, labels };
    sessions.create(id, owner, new).await.map_err(told)?;
    // Whose task it is may do no more by another agent than by the first: it speaks, and the policy is asked about it.
    if order.on_behalf_of.scope.is_some() {
        let shares = vec![Share { with: ShareWith::Node(order.on_behalf_of.node), right: Right::Prompt }];
        sessions.command(id, owner, Command::Share { shares }).await.map_err(told)?;
    }
    let prompt: PromptId = "task".parse().map_err(|_| "no prompt id".to_owned())?;
    let mut following = sessions.follow(id, owner, EventNumber::START).await.map_err(told)?;
    sessions
        .prompt(id, &order.on_behalf_of, prompt, vec![Shown::Text(order.task.clone())])
        .await
        .map_err(told)?;
    let mut answer = Text::Inline(String::new());
    loop {
        let event = tokio::select! {
            event = following.next() => event.map_err(told)?,
            () = order.cancel.cancelled() => return Err("cancelled".to_owned()),
        };
        match &event.body {
            Body::TextAdded { text, .. } => (order.printed)(text),
            Body::ToolAsked { why, .. } => {
                (order.printed)(&format!("\n[session {id} waits for a decision: {why}]\n"));
            }
            Body::Answered { text, .. } => answer = text.clone(),
            Body::TurnEnded { outcome: TurnOutcome::Done, .. } => return said(sessions, &answer).await,
            Body::TurnEnded { outcome, .. } => {
                return Err(format!("the task ended before it was done: {}", ended(outcome)));
            }
            _ => {}
        }
    }
}

async fn said(sessions: &Sessions, text: &Text) -> Result<String, String> {
    match text {
        Text::Inline(text) => Ok(text.clone()),
        Text::Blob { blob, .. } => {
            let bytes = sessions.store().blob(*blob).await.map_err(|error| error.to_string())?;
            Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
        }
    }
}

fn ended(outcome: &TurnOutcome) -> String {
    match outcome {
        TurnOutcome::Cancelled { .. } => "it was cancelled".to_owned(),
        TurnOutcome::LimitReached { limit } => format!("it reached its limit of {limit:?}").to_lowercase(),
        TurnOutcome::Failed { why } => why.clone(),
        other => format!("{other:?}"),
    }
}

fn session_of(order: &Order) -> SessionId {
    let mut hash = blake3::Hasher::new();
    hash.update(order.session.as_bytes()).update(order.call.as_str().as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize().as_bytes()[..16]);
    SessionId::from_uuid(uuid::Builder::from_custom_bytes(bytes).into_uuid())
}
