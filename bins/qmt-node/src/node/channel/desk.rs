//! Callers of the channel at this node's agents.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt as _, StreamExt as _};
use mesh_identity::ca::Leaf;
use mesh_identity::{NodeId, NodeKey, Role, ScopeId, SignedGrant, UnixTime};
use mesh_sessions::agent::Agent;
use mesh_sessions::chain::{AgentAt, Budget, Chain, Hop, SignedChain};
use mesh_sessions::channel::{Caller, Code, Delegation, Desk, Ended, Fault, ListedAgent, Piece, Standing};
use mesh_sessions::content::Text;
use mesh_sessions::event::{Body, Party, TurnOutcome};
use mesh_sessions::host::{CommandError, Following, NewSession, Sessions};
use mesh_sessions::ids::{AgentId, EventNumber, SessionId};
use mesh_sessions::model::Shown;
use mesh_sessions::proto::Command;

use super::super::agents::delegate::{FOR_LABEL, ended};
use super::super::agents::held::refused;
use super::super::scopes::Scope;
use super::super::{Inner, Node};

/// In which callers whose certificates name no node own their sessions: nobody has a link in it.
const CHANNEL_SCOPE: &[u8] = b"qmt agent channel, callers by name alone";

/// This node's agents, for callers. It does not keep the node alive.
pub(super) struct NodeDesk {
    node: Weak<Inner>,
    me: NodeId,
}

impl NodeDesk {
    pub(super) fn new(node: &Node) -> Self {
        Self { node: Arc::downgrade(&node.inner), me: node.id() }
    }

    fn node(&self) -> Option<Node> {
        self.node.upgrade().map(|inner| Node { inner, _last_handle: None })
    }
}

impl Desk for NodeDesk {
    fn me(&self) -> NodeId {
        self.me
    }

    fn standing(&self, leaf: &Leaf) -> Option<Standing> {
        self.node()?.standing_of(leaf)
    }

    fn agents(
        &self,
        caller: &Caller,
        standing: &Standing,
    ) -> BoxFuture<'static, Result<Vec<ListedAgent>, Fault>> {
        let (node, caller, standing) = (self.node(), caller.clone(), standing.clone());
        let listed = |agent: &Arc<Agent>| ListedAgent {
            id: agent.id.to_string(),
            description: agent.description.clone(),
            model: Some(agent.model.clone()),
        };
        async move {
            let gone = || Fault::new(Code::Unavailable, "the node is shutting down");
            let node = node.ok_or_else(gone)?;
            let sessions =
                node.sessions().await.map_err(|error| Fault::new(Code::Unavailable, error.message))?;
            Ok(sessions.agents(&node.party_of(&caller, &standing)).iter().map(listed).collect())
        }
        .boxed()
    }

    fn deliver(&self, delegation: Delegation) -> BoxStream<'static, Piece> {
        let node = self.node();
        let work = stream::unfold(Work::Given(Box::new(delegation)), move |work| {
            let node = node.clone();
            async move { work.next(node).await }
        });
        work.boxed()
    }
}

impl Node {
    /// What a certificate is here: what the live grants of the node that it names say. What the configuration says is for those
    /// that name none, and for all where this node is in no mesh, whose CA alone says who is who.
    fn standing_of(&self, leaf: &Leaf) -> Option<Standing> {
        let (meshes, mut roles, mut scopes) = (self.meshes(), Vec::new(), Vec::new());
        for scope in &meshes {
            if let Some(role) = leaf.node.as_ref().and_then(|node| self.live_role(scope, node)) {
                roles.push(role);
                scopes.push(scope.id());
            }
        }
        let is_member = roles.contains(&Role::Member);
        let by_grant = if is_member { Some(Role::Member) } else { roles.first().copied() };
        let by_name = || self.config().agent_channel.as_ref()?.role;
        let may_go_by_name = leaf.node.is_none() || meshes.is_empty();
        let role = by_grant.or_else(|| may_go_by_name.then(by_name).flatten())?;
        if leaf.node.is_some() {
            // Between nodes that share no mesh chains are signed for none.
            scopes.push(ScopeId::lan(None));
        }
        Some(Standing { role, scopes })
    }

    /// The meshes that people made, without those in which this node is a member no more.
    fn meshes(&self) -> Vec<Scope> {
        let now = UnixTime::now();
        let mut scopes = self.scopes().list();
        scopes.retain(|scope| scope.uninvited.is_none() && scope.end(now).is_none());
        scopes
    }

    /// The role of a node's grant, while that holds. Gossip remembers members whose grants do not.
    fn live_role(&self, scope: &Scope, node: &NodeId) -> Option<Role> {
        if *node == self.id() {
            return Some(scope.grant.role);
        }
        let members = self.gossip(&scope.id())?.members();
        let member = members.get(node)?;
        let grant = SignedGrant::decode(&member.grant).ok()?;
        let holds = grant.expires_at() > UnixTime::now() && !scope.revoked.ends_grant(&grant);
        holds.then_some(member.role)
    }

    /// The mesh in which a node's membership was revoked; none for one that is a member of any.
    pub(super) fn shut_out(&self, node: &NodeId) -> Option<Scope> {
        let meshes = self.meshes();
        if *node == self.id() || meshes.iter().any(|scope| self.live_role(scope, node).is_some()) {
            return None;
        }
        meshes.into_iter().find(|scope| {
            let grant = || self.grant_of(&scope.id(), node);
            scope.revoked.node(node).is_some()
                || grant().is_some_and(|grant| scope.revoked.ends_grant(&grant))
        })
    }

    /// Which certificates are let in no more, whatever their CA says.
    pub(super) fn ended_members(&self) -> Ended {
        let inner = Arc::downgrade(&self.inner);
        Arc::new(move |leaf| {
            let node = inner.upgrade().map(|inner| Node { inner, _last_handle: None });
            node.zip(leaf.node).is_some_and(|(node, id)| node.shut_out(&id).is_some())
        })
    }

    /// Closes what a node has open whose membership was revoked.
    pub(crate) fn close_ended_channels(&self) {
        if let Some(running) = self.channel() {
            running.tls.close_ended();
        }
    }

    /// Whose sessions a caller's are.
    fn party_of(&self, caller: &Caller, standing: &Standing) -> Party {
        match (caller.leaf.node, standing.scopes.first()) {
            (Some(node), Some(scope)) => Party::peer(node, *scope, standing.role),
            _ => {
                let node = self.placeholder_of(caller.leaf.name.as_str());
                Party::peer(node, ScopeId::lan(Some(CHANNEL_SCOPE)), standing.role)
            }
        }
    }

    /// An id for a node that has a name alone. Only this node can make it, and nobody has its key.
    pub(super) fn placeholder_of(&self, name: &str) -> NodeId {
        let own = blake3::derive_key("qmt-node 2026 agent channel names", self.key().seed().as_slice());
        let seed = blake3::keyed_hash(&own, name.to_ascii_lowercase().as_bytes());
        NodeKey::from_seed(*seed.as_bytes()).node_id()
    }

    /// The agent that is meant, of those open to the caller.
    fn agent_for(&self, sessions: &Sessions, by: &Party, delegation: &Delegation) -> Result<AgentId, Fault> {
        let open = sessions.agents(by);
        let names: Vec<&str> = open.iter().map(|agent| agent.id.as_str()).collect();
        let mend = if names.is_empty() {
            "no agent here is open to you".to_owned()
        } else {
            format!("agents here: {}", names.join(", "))
        };
        let of_chain = delegation.chain.as_ref().map(|chain| chain.at().agent.as_str());
        let found = match delegation.to_agent.as_deref().or(of_chain) {
            Some(wanted) => open.iter().find(|agent| agent.id.as_str() == wanted),
            None => {
                let thinks_so = |agent: &&Arc<Agent>| Some(&agent.model) == delegation.model.as_ref();
                open.iter().find(thinks_so).or(open.first())
            }
        };
        let unknown = || {
            let wanted = delegation.to_agent.as_deref().unwrap_or("any");
            Fault::new(Code::UnknownAgent, format!("there is no agent {wanted} here")).with_mend(mend.clone())
        };
        let agent = found.map(|agent| agent.id.clone()).ok_or_else(unknown)?;
        match of_chain {
            Some(led_to) if led_to != agent.as_str() => Err(Fault::new(
                Code::NotAllowed,
                format!("the delegation chain leads to {led_to}, and {agent} is asked"),
            )),
            _ => Ok(agent),
        }
    }

    /// What led here, in a form that the agent's own delegations go on from. Of a caller without a signed chain it is this
    /// node that writes down what it was told.
    fn chain_for(
        &self,
        delegation: &Delegation,
        agent: &AgentId,
        session: SessionId,
    ) -> Result<Chain, Fault> {
        if let Some(chain) = delegation.chain.as_ref().filter(|chain| chain.depth() == delegation.depth) {
            return Ok(chain.clone());
        }
        let broken = |error: &dyn std::fmt::Display| Fault::new(Code::Internal, error.to_string());
        let scope = *delegation.standing.scopes.first().unwrap_or(&ScopeId::lan(None));
        let asking = format!("{}@{}", delegation.from_agent, delegation.caller.leaf.name);
        let asking = &asking[..asking.floor_char_boundary(AgentId::MAX_BYTES)];
        let from = AgentAt { node: self.id(), agent: asking.parse().map_err(|error| broken(&error))? };
        let to = AgentAt { node: self.id(), agent: agent.clone() };
        let hop = Hop { from, session, to, budget: Budget::UNBOUNDED };
        let before = u8::try_from(delegation.depth.saturating_sub(1)).unwrap_or(u8::MAX);
        let signed = SignedChain::received(self.key(), &scope, before, hop);
        signed
            .and_then(|signed| signed.verify(&scope, &self.id(), &self.id(), UnixTime::now()))
            .map_err(|error| Fault::new(Code::Loop, error.to_string()))
    }

    async fn begin_for(&self, delegation: &Delegation) -> Result<(Turn, Following, AgentId), Fault> {
        let unavailable = |error: mesh_control::ApiError| Fault::new(Code::Unavailable, error.message);
        let sessions = self.sessions().await.map_err(unavailable)?;
        let by = self.party_of(&delegation.caller, &delegation.standing);
        let agent = self.agent_for(&sessions, &by, delegation)?;
        let id = SessionId::from_uuid(uuid::Uuid::now_v7());
        let chain = self.chain_for(delegation, &agent, id)?;
        let from = format!("{}@{}", delegation.from_agent, delegation.caller.leaf.name);
        let labels = BTreeMap::from([(FOR_LABEL.to_owned(), from.clone())]);
        let new = NewSession { agent: agent.clone(), name: None, labels, chain: Some(chain) };
        sessions.create(id, &by, new).await.map_err(fault)?;
        let turn =
            Turn { node: self.clone(), sessions: sessions.clone(), by: by.clone(), id, is_over: false };
        let following = sessions.follow(id, &by, EventNumber::START).await.map_err(fault)?;
        let mut parts = Vec::new();
        if !delegation.context.is_empty() {
            parts.push(Shown::Text(format!("Context from {from}:\n{}", delegation.context.join("\n\n"))));
        }
        parts.push(Shown::Text(delegation.task.clone()));
        let prompt = "task".parse().map_err(|_| Fault::new(Code::Internal, "no prompt id"))?;
        sessions.prompt(id, &by, prompt, parts).await.map_err(fault)?;
        Ok((turn, following, agent))
    }
}

/// A delegation on its way.
enum Work {
    Given(Box<Delegation>),
    UnderWay(Box<(Turn, Following, Text)>),
    Over,
}

impl Work {
    async fn next(self, node: Option<Node>) -> Option<(Piece, Self)> {
        let Some(node) = node else {
            let fault = Fault::new(Code::Unavailable, "the node is shutting down");
            return (!matches!(self, Self::Over)).then_some((Piece::Failed(fault), Self::Over));
        };
        match self {
            Self::Given(delegation) => match node.begin_for(&delegation).await {
                Ok((turn, following, agent)) => {
                    let begun = Piece::Begun { agent: agent.to_string(), session: Some(turn.id.to_string()) };
                    Some((begun, Self::UnderWay(Box::new((turn, following, Text::Inline(String::new()))))))
                }
                Err(fault) => Some((Piece::Failed(fault), Self::Over)),
            },
            Self::UnderWay(under_way) => Some(follow(under_way).await),
            Self::Over => None,
        }
    }
}

/// On to the next thing that the caller is told.
async fn follow(mut under_way: Box<(Turn, Following, Text)>) -> (Piece, Work) {
    loop {
        let (turn, following, answer) = &mut *under_way;
        let event = match following.next().await {
            Ok(event) => event,
            Err(error) => return (Piece::Failed(fault(error)), Work::Over),
        };
        match &event.body {
            Body::TextAdded { text, .. } => {
                let piece = Piece::Text(text.clone());
                return (piece, Work::UnderWay(under_way));
            }
            Body::Answered { text, .. } => *answer = text.clone(),
            Body::TurnEnded { outcome: TurnOutcome::Done, .. } => {
                turn.is_over = true;
                let said = turn.said(answer.clone()).await;
                return (
                    said.map_or_else(Piece::Failed, |answer| Piece::Done { answer: Some(answer) }),
                    Work::Over,
                );
            }
            Body::TurnEnded { outcome, .. } => {
                turn.is_over = true;
                let why = format!("the task ended before it was done: {}", ended(outcome));
                return (Piece::Failed(Fault::new(Code::AgentFailed, why)), Work::Over);
            }
            _ => {}
        }
    }
}

/// A turn for a caller: dropped before its end, it is cancelled.
struct Turn {
    node: Node,
    sessions: Sessions,
    by: Party,
    id: SessionId,
    is_over: bool,
}

impl Turn {
    async fn said(&self, text: Text) -> Result<String, Fault> {
        let blob = match text {
            Text::Inline(text) => return Ok(text),
            Text::Blob { blob, .. } => blob,
        };
        let bytes = self.sessions.store().blob(blob).await;
        let bytes = bytes.map_err(|error| Fault::new(Code::Internal, error.to_string()))?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_over {
            let (sessions, by, id) = (self.sessions.clone(), self.by.clone(), self.id);
            // Nobody is left to hear that it did not work.
            self.node.inner.tasks.spawn(async move {
                drop(sessions.command(id, &by, Command::Cancel { turn: None }).await);
            });
        }
    }
}

fn fault(error: CommandError) -> Fault {
    use mesh_control::ErrorCode;
    let told = refused(&error);
    let code = match told.code {
        ErrorCode::UnknownAgent => Code::UnknownAgent,
        ErrorCode::NotAllowed => Code::NotAllowed,
        ErrorCode::TooLarge => Code::TooLarge,
        ErrorCode::Unavailable => Code::Unavailable,
        _ => Code::Internal,
    };
    Fault::new(code, told.message)
}
