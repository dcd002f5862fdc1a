//! Tasks that agents of this node give to others, here and at peers.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;
use mesh_identity::{NodeId, ScopeId};
use mesh_sessions::agent::Agent;
use mesh_sessions::chain::{AgentAt, Chain, ChainError, Hop, SignedChain};
use mesh_sessions::content::Text;
use mesh_sessions::event::{Body, Event, Right, Share, ShareWith, TurnOutcome};
use mesh_sessions::host::{CommandError, Following, NewSession};
use mesh_sessions::ids::{AgentId, EventNumber, PromptId, SessionId};
use mesh_sessions::model::Shown;
use mesh_sessions::proto::wire::Deed;
use mesh_sessions::remote::RemoteFollowing;
use mesh_sessions::tools::{Candidate, Delegator, Order, Roster};

use super::super::scopes::Scope;
use super::super::{Inner, Node};
use super::held::Held;
use super::roster::PeerAgent;

/// The label of a session that was begun for another one.
pub(crate) const FOR_LABEL: &str = "delegated-by";

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

    /// The agent whose tool it is.
    pub(super) fn agent(&self) -> Option<&AgentId> {
        self.agent.as_ref()
    }

    pub(super) fn node(&self) -> Option<Node> {
        self.node.upgrade().map(|inner| Node { inner, _last_handle: None })
    }
}

impl Roster for Mesh {
    fn candidates(&self) -> Vec<Candidate> {
        let Some(node) = self.node() else { return Vec::new() };
        let mut candidates = node.own_candidates(self.agent.as_ref());
        candidates.extend(node.peer_candidates());
        let by_channel = node.channel_candidates(&candidates);
        candidates.extend(by_channel);
        candidates
    }
}

impl Delegator for Mesh {
    fn chain(&self, session: &SessionId) -> Option<Chain> {
        self.node()?.running_sessions()?.chain(session)
    }

    fn delegate(&self, order: Order) -> BoxFuture<'static, Result<String, String>> {
        let (node, agent) = (self.node(), self.agent.clone());
        Box::pin(async move {
            let (Some(node), Some(agent)) = (node, agent) else {
                return Err("the node is shutting down".to_owned());
            };
            node.delegate(agent, order).await
        })
    }
}

impl Node {
    /// This node's agents, the one that asks left out.
    fn own_candidates(&self, asking: Option<&AgentId>) -> Vec<Candidate> {
        let Some(sessions) = self.running_sessions() else { return Vec::new() };
        let labels = &self.config().mesh.labels;
        let candidate = |agent: Arc<Agent>| Candidate {
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

    /// Agents of peers: those that are told of, and those that the configuration names, in its words.
    fn peer_candidates(&self) -> Vec<Candidate> {
        let candidate = |agent: PeerAgent| Candidate {
            at: AgentAt { node: agent.node, agent: agent.id },
            node_name: Some(if agent.node_name.is_empty() {
                agent.node.to_string()
            } else {
                agent.node_name
            }),
            description: agent.description,
            model: agent.model,
            labels: agent.labels,
            is_busy: agent.is_busy,
        };
        let mut candidates: Vec<Candidate> = self.peer_agents().into_iter().map(candidate).collect();
        for named in &self.config().remote_agents {
            let Ok((_, node)) = self.resolve_node(&named.peer, None) else { continue };
            let at = AgentAt { node, agent: named.id.clone() };
            let known = candidates.iter().position(|candidate| candidate.at == at);
            let index = known.unwrap_or_else(|| {
                candidates.push(Candidate {
                    at,
                    node_name: Some(named.peer.clone()),
                    description: String::new(),
                    model: None,
                    labels: Vec::new(),
                    is_busy: false,
                });
                candidates.len() - 1
            });
            let candidate = &mut candidates[index];
            if let Some(description) = named.description.as_ref().or(named.name.as_ref()) {
                candidate.description.clone_from(description);
            }
            let new = named.capabilities.iter().filter(|label| !candidate.labels.contains(label));
            let new: Vec<String> = new.cloned().collect();
            candidate.labels.extend(new);
        }
        candidates
    }

    /// Gives the task to the agent that was chosen, or, when that one cannot begin, to the next of its name.
    async fn delegate(&self, agent: AgentId, mut order: Order) -> Result<String, String> {
        let mut rest = std::mem::take(&mut order.fallbacks).into_iter();
        let mut tried = Vec::new();
        loop {
            let failed = match self.delegate_once(agent.clone(), &order).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let node = order.to.node_name.clone().unwrap_or_else(|| "here".to_owned());
            let next = (!failed.has_begun && !order.cancel.is_cancelled()).then(|| rest.next()).flatten();
            match next {
                Some(next) => {
                    tracing::debug!(node, why = failed.why, "a delegation goes to the next node");
                    tried.push(format!("{node}: {}", failed.why));
                    order.to = next;
                }
                None if tried.is_empty() => return Err(failed.why),
                None => return Err(format!("{node}: {}; before that {}", failed.why, tried.join("; "))),
            }
        }
    }

    async fn delegate_once(&self, agent: AgentId, order: &Order) -> Result<String, NotDone> {
        if let Some(name) = self.channel_node(&order.to.at.node) {
            return self.delegate_by_channel(&name, &agent, order).await;
        }
        // Ids of calls are unique in a turn alone, so they name no session.
        let id = SessionId::from_uuid(uuid::Uuid::now_v7());
        let held = self.begin(agent, id, order).await.map_err(|why| NotDone { why, has_begun: false })?;
        let under_way = UnderWay { node: self.clone(), held: Some(held) };
        let answer = under_way.carry_out(order).await;
        under_way.end(answer.is_err()).await;
        answer.map_err(|why| NotDone { why, has_begun: true })
    }

    /// Begins the session in which the task is done, with what led to it.
    async fn begin(&self, agent: AgentId, id: SessionId, order: &Order) -> Result<Held, String> {
        let to = order.to.at.clone();
        let labels = BTreeMap::from([(FOR_LABEL.to_owned(), order.session.to_string())]);
        if to.node != self.id() {
            let scope = self.scope_of(&to.node).ok_or("the agent's node has left the mesh")?;
            let chain = self.next_hop(&scope, agent, order).map_err(|error| error.to_string())?;
            let begun = self.remote_host(scope, to.node).delegate(id, to.agent, labels, chain).await;
            return Ok(Held::There(self.keep_remote(begun.map_err(|error| error.to_string())?)));
        }
        let told = |error: CommandError| error.to_string();
        let (sessions, by) = (self.sessions().await.map_err(|error| error.message)?, self.owner());
        // In the scope in which it may go on.
        let scope = self.scopes().list().first().map_or(ScopeId::lan(None), Scope::id);
        let chain = self
            .next_hop(&scope, agent, order)
            .and_then(|signed| signed.verify(&scope, &self.id(), &self.id(), mesh_identity::UnixTime::now()));
        let chain = Some(chain.map_err(|error| error.to_string())?);
        let new = NewSession { agent: to.agent, name: None, labels, chain };
        sessions.create(id, &by, new).await.map_err(told)?;
        // Whose task it is may do no more by another agent than by the first: it speaks, and the policy is asked about it.
        if order.on_behalf_of.scope.is_some() {
            let shares = vec![Share { with: ShareWith::Node(order.on_behalf_of.node), right: Right::Prompt }];
            let shared = sessions.command(id, &by, mesh_sessions::proto::Command::Share { shares }).await;
            shared.map_err(told)?;
        }
        Ok(Held::Here { sessions, by, id })
    }

    pub(crate) fn scope_of(&self, node: &NodeId) -> Option<ScopeId> {
        let scopes = self.scopes().list();
        let has = |scope: &&Scope| {
            self.gossip(&scope.id()).is_some_and(|gossip| gossip.members().get(node).is_some())
        };
        scopes.iter().find(has).map(Scope::id)
    }

    /// The chain with this delegation.
    fn next_hop(&self, scope: &ScopeId, agent: AgentId, order: &Order) -> Result<SignedChain, ChainError> {
        self.next_hop_to(scope, agent, order, order.to.at.clone())
    }

    pub(crate) fn next_hop_to(
        &self,
        scope: &ScopeId,
        agent: AgentId,
        order: &Order,
        to: AgentAt,
    ) -> Result<SignedChain, ChainError> {
        let from = AgentAt { node: self.id(), agent };
        let hop = Hop { from, session: order.session, to, budget: order.budget };
        match &order.chain {
            Some(chain) => chain.extend(self.key(), scope, hop),
            None => SignedChain::begin(self.key(), scope, hop),
        }
    }
}

/// A task was not done.
pub(crate) struct NotDone {
    /// Why, for the model.
    pub(crate) why: String,
    /// Whether the other agent may have done something of it.
    pub(crate) has_begun: bool,
}

/// A task that is under way: dropped before its end, the other turn is ended too.
struct UnderWay {
    node: Node,
    /// None once it is over.
    held: Option<Held>,
}

impl UnderWay {
    /// Has the agent do the task, and waits for its answer.
    async fn carry_out(&self, order: &Order) -> Result<String, String> {
        let Some(held) = &self.held else { return Err("it is over".to_owned()) };
        let prompt: PromptId = "task".parse().map_err(|_| "no prompt id".to_owned())?;
        let context = order.context.iter().map(|context| Shown::Text(format!("Context:\n{context}")));
        let parts: Vec<Shown> = context.chain([Shown::Text(order.task.clone())]).collect();
        let mut following = match held {
            Held::Here { sessions, by, id } => {
                let told = |error: CommandError| error.to_string();
                let following = sessions.follow(*id, by, EventNumber::START).await.map_err(told)?;
                sessions.prompt(*id, &order.on_behalf_of, prompt, parts).await.map_err(told)?;
                Heard::Here(following)
            }
            Held::There(session) => {
                session.prompt(prompt, parts).await.map_err(|error| error.to_string())?;
                Heard::There(session.follow(EventNumber::START))
            }
        };
        let mut answer = Text::Inline(String::new());
        loop {
            let event = tokio::select! {
                event = following.next() => event?,
                () = order.cancel.cancelled() => return Err("cancelled".to_owned()),
            };
            match &event.body {
                Body::TextAdded { text, .. } => (order.printed)(text),
                Body::ToolAsked { why, .. } => {
                    let id = held.id();
                    (order.printed)(&format!("\n[session {id} waits for a decision: {why}]\n"));
                }
                Body::Answered { text, .. } => answer = text.clone(),
                Body::TurnEnded { outcome: TurnOutcome::Done, .. } => return said(held, answer).await,
                Body::TurnEnded { outcome, .. } => {
                    return Err(format!("the task ended before it was done: {}", ended(outcome)));
                }
                _ => {}
            }
        }
    }

    async fn end(mut self, has_failed: bool) {
        if let Some(held) = self.held.take().filter(|_| has_failed) {
            let _ = held.act(Deed::Cancel { turn: None }).await;
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            // Nobody is left to hear that it did not work.
            self.node.inner.tasks.spawn(async move { drop(held.act(Deed::Cancel { turn: None }).await) });
        }
    }
}

enum Heard {
    Here(Following),
    There(RemoteFollowing),
}

impl Heard {
    async fn next(&mut self) -> Result<Arc<Event>, String> {
        match self {
            Self::Here(following) => following.next().await.map_err(|error| error.to_string()),
            Self::There(following) => following.next().await.map(Arc::new).map_err(|error| error.to_string()),
        }
    }
}

async fn said(held: &Held, text: Text) -> Result<String, String> {
    let blob = match text {
        Text::Inline(text) => return Ok(text),
        Text::Blob { blob, .. } => blob,
    };
    let bytes = match held {
        Held::Here { sessions, .. } => {
            let bytes = sessions.store().blob(blob).await.map_err(|error| error.to_string())?;
            bytes.unwrap_or_default()
        }
        Held::There(session) => session.content(blob).await.map_err(|error| error.to_string())?,
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(crate) fn ended(outcome: &TurnOutcome) -> String {
    match outcome {
        TurnOutcome::Cancelled { .. } => "it was cancelled".to_owned(),
        TurnOutcome::LimitReached { limit } => format!("its limit of {limit:?} was reached"),
        TurnOutcome::Failed { why } => why.clone(),
        other => format!("{other:?}"),
    }
}
