//! What the node's user asks of agents and sessions.

use std::collections::{BTreeMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use mesh_control::{
    AgentState, AgentView, ApiError, CancelTurn, ContentQuery, CreateSession, DecideTool, ErrorCode,
    ForkSession, HitView, LabelSession, NameSession, ParentView, PartyView, PromptPart, PromptSession,
    RightView, SearchQuery, SessionPage, SessionQuery, SessionState, SessionView, ShareSession, ShareView,
    SteerSession, SuspendSession, UnreachedView, Written,
};
use mesh_identity::{NodeId, Role};
use mesh_sessions::event::{Party, Right, Share, ShareWith};
use mesh_sessions::host::NewSession;
use mesh_sessions::ids::{AgentId, BlobId, EventNumber, SessionId, SessionName, TurnNumber};
use mesh_sessions::model::Shown;
use mesh_sessions::proto::wire::{Deed, HitFacts, SessionFacts};
use mesh_sessions::remote::RemoteHost;
use mesh_sessions::store::{Filter, Hit, Kind, Listed, State as ListedState};

use super::super::{Node, views};
use super::held::{Held, refused, refused_there};

/// Sessions of a page when no number is asked for.
const PAGE: u32 = 100;
/// Hits of a search when no number is asked for, and at most.
const HITS: u32 = 20;
const HITS_MAX: u32 = 200;

impl Node {
    /// The agents that sessions can be held with: this node's, then its peers'.
    pub(crate) async fn agent_views(&self) -> Result<Vec<AgentView>, ApiError> {
        let sessions = self.sessions().await?;
        let own = sessions.agents(&self.owner());
        let mut views: Vec<AgentView> = own
            .iter()
            .map(|agent| AgentView {
                name: agent.id.to_string(),
                node: self.id().to_string(),
                node_name: self.name().to_string(),
                local: true,
                description: agent.description.clone(),
                model: Some(agent.model.clone()),
                tools: agent.tools.iter().map(|tool| tool.spec().name).collect(),
                capabilities: self.config().mesh.labels.clone(),
                state: AgentState::Ready,
            })
            .collect();
        views.extend(self.peer_agents().into_iter().map(|agent| AgentView {
            name: agent.id.to_string(),
            node: agent.node.to_string(),
            node_name: agent.node_name,
            local: false,
            description: agent.description,
            model: agent.model,
            tools: Vec::new(),
            capabilities: agent.labels,
            state: if agent.is_busy { AgentState::Busy } else { AgentState::Ready },
        }));
        Ok(views)
    }

    pub(crate) async fn session_page(&self, query: SessionQuery) -> Result<SessionPage, ApiError> {
        self.page_of(&query, Kind::Session).await
    }

    pub(super) async fn page_of(&self, query: &SessionQuery, kind: Kind) -> Result<SessionPage, ApiError> {
        if query.all {
            return self.page_of_all(query, kind).await;
        }
        match query.node.as_deref().map(|node| self.host_of(node)).transpose()?.flatten() {
            Some(host) => self.page_there(&host, query, kind).await,
            None => self.page_here(query, kind).await,
        }
    }

    async fn page_of_all(&self, query: &SessionQuery, kind: Kind) -> Result<SessionPage, ApiError> {
        let here = self.page_here(query, kind).await?.sessions;
        let me = self.id().to_string();
        let (sessions, mut elsewhere): (Vec<_>, Vec<_>) = here.into_iter().partition(|view| view.node == me);
        let mut page = SessionPage { sessions, ..SessionPage::default() };
        let hosts = match kind {
            Kind::Session => self.peers_with_sessions(),
            Kind::Board => self.board_hosts(),
        };
        let asked = hosts.into_iter().map(|host| async move {
            let answer = tokio::time::timeout(PEER_ANSWERS, self.page_there(&host, query, kind)).await;
            (
                host.node(),
                answer
                    .unwrap_or_else(|_| Err(ApiError::new(ErrorCode::Timeout, "it did not answer in time"))),
            )
        });
        for (node, answer) in futures_util::future::join_all(asked).await {
            match answer {
                Ok(there) => {
                    let (at_home, moved): (Vec<_>, Vec<_>) =
                        there.sessions.into_iter().partition(|view| view.node == node.to_string());
                    page.sessions.extend(at_home);
                    elsewhere.extend(moved);
                }
                Err(error) => page.unreached.push(UnreachedView {
                    node: node.to_string(),
                    node_name: self.name_of(&node),
                    why: error.message,
                }),
            }
        }
        // One that has moved is told of by each of its hosts, and best by the last.
        let told: HashSet<String> = page.sessions.iter().map(|view| view.id.clone()).collect();
        page.sessions.extend(elsewhere.into_iter().filter(|view| !told.contains(&view.id)));
        Ok(page)
    }

    async fn page_here(&self, query: &SessionQuery, kind: Kind) -> Result<SessionPage, ApiError> {
        let label = query.label.as_ref().map(|label| {
            let (key, value) = label.split_once('=').ok_or_else(|| bad("label must be KEY=VALUE"))?;
            Ok::<_, ApiError>((key.to_owned(), value.to_owned()))
        });
        let filter = Filter {
            kind: Some(kind),
            agent: query.agent.as_deref().map(agent_id).transpose()?,
            name: query.name.clone().map(session_name).transpose()?,
            label: label.transpose()?,
            state: query.state.map(listed_state).transpose()?,
            unfinished: query.unfinished,
            before: query.before.as_deref().map(session_id).transpose()?,
            limit: Some(query.limit.unwrap_or(PAGE)),
            ..Filter::default()
        };
        let listed = self.sessions().await?.list(&self.owner(), filter).await;
        let (listed, next) = listed.map_err(|error| refused(&error))?;
        let sessions = listed.iter().map(|listed| self.listed_view(listed)).collect();
        Ok(SessionPage { sessions, next: next.map(|next| next.to_string()), unreached: Vec::new() })
    }

    /// Peers are asked by agent alone; the rest is chosen here.
    async fn page_there(
        &self,
        host: &RemoteHost,
        query: &SessionQuery,
        kind: Kind,
    ) -> Result<SessionPage, ApiError> {
        let agent = query.agent.as_deref().map(agent_id).transpose()?;
        let before = query.before.as_deref().map(session_id).transpose()?;
        let limit = query.limit.unwrap_or(PAGE);
        let listed = match kind {
            Kind::Session => host.list(agent, before, limit).await,
            Kind::Board => host.list_boards(before, limit).await,
        };
        let (listed, next) = listed.map_err(|error| refused_there(&error))?;
        let fits = |view: &SessionView| {
            let label = query.label.as_ref().and_then(|label| label.split_once('='));
            query.name.as_ref().is_none_or(|name| view.name.as_ref() == Some(name))
                && label.is_none_or(|(key, value)| view.labels.get(key).is_some_and(|has| has == value))
                && query
                    .state
                    .is_none_or(|state| state == view.state || is_active(state) && is_active(view.state))
                && (!query.unfinished || view.turn.is_some() || view.waiting > 0)
        };
        let views = listed.into_iter().map(|facts| {
            self.keep_remote(host.session(facts.id));
            self.facts_view(&host.node(), facts)
        });
        Ok(SessionPage {
            sessions: views.filter(fits).collect(),
            next: next.map(|next| next.to_string()),
            unreached: Vec::new(),
        })
    }

    pub(crate) async fn create_session(&self, new: CreateSession) -> Result<SessionView, ApiError> {
        let address = mesh_control::Address::of(&new.agent);
        let (id, agent) = (session_id(&new.id)?, agent_id(address.what)?);
        let name = new.name.clone().map(session_name).transpose()?;
        let held = match address.node {
            Some(node) => match self.host_of(node)? {
                Some(host) => self.create_there(&host, id, agent, name, new.labels).await?,
                None => self.create_here(id, agent, name, new.labels).await?,
            },
            None if self.suits(&agent, &new.capabilities).await? => {
                self.create_here(id, agent, name, new.labels).await?
            }
            None => self.create_anywhere(id, agent, name, &new).await?,
        };
        self.view_of(&held).await
    }

    async fn suits(&self, agent: &AgentId, capabilities: &[String]) -> Result<bool, ApiError> {
        let has = self.sessions().await?.agents(&self.owner()).iter().any(|own| own.id == *agent);
        let labels = &self.config().mesh.labels;
        Ok(has && capabilities.iter().all(|wanted| labels.contains(wanted)))
    }

    async fn create_here(
        &self,
        id: SessionId,
        agent: AgentId,
        name: Option<SessionName>,
        labels: BTreeMap<String, String>,
    ) -> Result<Held, ApiError> {
        let (sessions, by) = (self.sessions().await?, self.owner());
        let unknown = !sessions.agents(&by).iter().any(|own| own.id == agent);
        let created = sessions.create(id, &by, NewSession { agent, name, labels, chain: None }).await;
        created.map_err(|error| match unknown {
            true => refused(&error).with_mend("`qmt-cli agents` lists those that there are"),
            false => refused(&error),
        })?;
        Ok(Held::Here { sessions, by, id })
    }

    async fn create_there(
        &self,
        host: &RemoteHost,
        id: SessionId,
        agent: AgentId,
        name: Option<SessionName>,
        labels: BTreeMap<String, String>,
    ) -> Result<Held, ApiError> {
        let session = host.create_as(id, agent, name, labels).await.map_err(|error| refused_there(&error))?;
        Ok(Held::There(self.keep_remote(session)))
    }

    /// At the peer that suits best, and answers.
    async fn create_anywhere(
        &self,
        id: SessionId,
        agent: AgentId,
        name: Option<SessionName>,
        new: &CreateSession,
    ) -> Result<Held, ApiError> {
        let what = if new.capabilities.is_empty() {
            format!("no node has an agent {agent} for this one")
        } else {
            format!("no node with {} has an agent {agent} for this one", new.capabilities.join(", "))
        };
        let mut failed = ApiError::new(ErrorCode::UnknownAgent, what)
            .with_mend("`qmt-cli agents` lists those that there are");
        for peer in self.peer_agents().into_iter().filter(|peer| peer.id == agent) {
            if !new.capabilities.iter().all(|wanted| peer.labels.contains(wanted)) {
                continue;
            }
            let host = self.remote_host(peer.scope, peer.node);
            let created = self.create_there(&host, id, agent.clone(), name.clone(), new.labels.clone());
            match tokio::time::timeout(PEER_ANSWERS, created).await {
                Ok(Ok(held)) => return Ok(held),
                Ok(Err(error)) => failed = error,
                Err(_) => {
                    failed = ApiError::new(
                        ErrorCode::NodeUnreachable,
                        format!("{} does not answer", peer.node_name),
                    )
                }
            }
        }
        Err(failed)
    }

    pub(crate) async fn show_session(&self, session: &str) -> Result<SessionView, ApiError> {
        self.view_of(&self.hold(session).await?).await
    }

    pub(super) async fn view_of(&self, held: &Held) -> Result<SessionView, ApiError> {
        match held {
            Held::Here { sessions, by, id } => {
                let (listed, session) = sessions.show(*id, by).await.map_err(|error| refused(&error))?;
                Ok(SessionView {
                    state: stands(session.state().as_str()),
                    shares: Some(session.shares().iter().map(share_view).collect()),
                    right: session.right_of(by).map(right_view),
                    ..self.listed_view(&listed)
                })
            }
            Held::There(session) => {
                let facts = session.show().await.map_err(|error| refused_there(&error))?;
                Ok(self.facts_view(&session.host().node(), facts))
            }
        }
    }

    pub(crate) async fn prompt_session(&self, prompt: PromptSession) -> Result<Written, ApiError> {
        let held = self.hold(&prompt.session).await?;
        let id = prompt.prompt.parse().map_err(|error| bad(format!("prompt: {error}")))?;
        let number = held.prompt(id, parts(prompt.parts)?).await?;
        Ok(self.written(&held, number))
    }

    pub(crate) async fn steer_session(&self, steer: SteerSession) -> Result<Written, ApiError> {
        let held = self.hold(&steer.session).await?;
        let number = held.steer(steer.turn.map(TurnNumber), parts(steer.parts)?).await?;
        Ok(self.written(&held, number))
    }

    pub(crate) async fn cancel_turn(&self, cancel: CancelTurn) -> Result<Written, ApiError> {
        self.act(&cancel.session, Deed::Cancel { turn: cancel.turn.map(TurnNumber) }).await
    }

    pub(crate) async fn decide_tool(&self, decide: DecideTool) -> Result<Written, ApiError> {
        let tool_call = decide.call.parse().map_err(|error| bad(format!("call: {error}")))?;
        let what = Deed::Decide { turn: TurnNumber(decide.turn), tool_call, allowed: decide.allowed };
        self.act(&decide.session, what).await
    }

    pub(crate) async fn name_session(&self, name: NameSession) -> Result<Written, ApiError> {
        let what = Deed::Name { name: name.name.map(session_name).transpose()? };
        self.act(&name.session, what).await
    }

    pub(crate) async fn label_session(&self, label: LabelSession) -> Result<Written, ApiError> {
        self.act(&label.session, Deed::Label { labels: label.labels }).await
    }

    pub(crate) async fn share_session(&self, share: ShareSession) -> Result<Written, ApiError> {
        let shares: Result<_, ApiError> = share.shares.iter().map(|share| self.share(share)).collect();
        self.act(&share.session, Deed::Share { shares: shares? }).await
    }

    pub(crate) async fn suspend_session(&self, suspend: SuspendSession) -> Result<Written, ApiError> {
        let why = suspend.why.unwrap_or_else(|| "it was told to".to_owned());
        self.act(&suspend.session, Deed::Suspend { why }).await
    }

    pub(crate) async fn act(&self, session: &str, what: Deed) -> Result<Written, ApiError> {
        let held = self.hold(session).await?;
        let number = held.act(what).await?;
        Ok(self.written(&held, number))
    }

    pub(crate) async fn fork_session(&self, fork: ForkSession) -> Result<SessionView, ApiError> {
        let held = self.hold(&fork.session).await?;
        let (id, at) = (session_id(&fork.id)?, fork.at.map(EventNumber));
        let name = fork.name.map(session_name).transpose()?;
        let forked = match held {
            Held::Here { sessions, by, id: parent } => {
                sessions.fork(parent, at, id, &by).await.map_err(|error| refused(&error))?;
                Held::Here { sessions, by, id }
            }
            Held::There(parent) => {
                let forked = parent.host().fork_as(id, parent.id(), at).await;
                Held::There(self.keep_remote(forked.map_err(|error| refused_there(&error))?))
            }
        };
        if name.is_some() {
            forked.act(Deed::Name { name }).await?;
        }
        self.view_of(&forked).await
    }

    /// A content that an event of a session names.
    pub(crate) async fn session_content(&self, query: ContentQuery) -> Result<Bytes, ApiError> {
        let blob: BlobId = query.blob.parse().map_err(|error| bad(format!("blob: {error}")))?;
        match self.hold(&query.session).await? {
            Held::Here { sessions, .. } => {
                let bytes = sessions.store().blob(blob).await;
                let bytes = bytes.map_err(|error| ApiError::new(ErrorCode::Storage, error.to_string()))?;
                bytes.ok_or_else(|| ApiError::new(ErrorCode::UnknownEvent, "the content is not stored here"))
            }
            Held::There(session) => session.content(blob).await.map_err(|error| refused_there(&error)),
        }
    }

    pub(crate) async fn search_sessions(&self, query: SearchQuery) -> Result<Vec<HitView>, ApiError> {
        let limit = query.limit.unwrap_or(HITS).min(HITS_MAX);
        let there = query.node.as_deref().map(|node| self.host_of(node)).transpose()?.flatten();
        if let Some(host) = there {
            let hits = host.search(&query.words, limit).await.map_err(|error| refused_there(&error))?;
            let view = |hit: HitFacts| {
                self.keep_remote(host.session(hit.session));
                let name = hit.name.map(|name| name.to_string());
                let (session, number) = (hit.session.to_string(), hit.number.0);
                HitView { session, name, number, at_ms: hit.at_ms, excerpt: hit.excerpt }
            };
            return Ok(hits.into_iter().map(view).collect());
        }
        let hits = self.sessions().await?.search(&self.owner(), &query.words, limit).await;
        let view = |hit: Hit| {
            let name = hit.name.map(|name| name.to_string());
            let (session, number) = (hit.session.to_string(), hit.number.0);
            HitView { session, name, number, at_ms: hit.at_ms, excerpt: hit.excerpt }
        };
        Ok(hits.map_err(|error| refused(&error))?.into_iter().map(view).collect())
    }

    pub(super) fn written(&self, held: &Held, number: EventNumber) -> Written {
        let node = match held {
            Held::Here { .. } => self.id(),
            Held::There(session) => session.host().node(),
        };
        Written { session: held.id().to_string(), node: node.to_string(), number: number.0 }
    }

    fn listed_view(&self, listed: &Listed) -> SessionView {
        // The log that is here may end where another node goes on.
        let host = listed.host.unwrap_or(self.id());
        SessionView {
            id: listed.session.to_string(),
            node: host.to_string(),
            node_name: self.name_of(&host),
            agent: listed.agent.to_string(),
            owner: party_view(&listed.owner),
            name: listed.name.as_ref().map(ToString::to_string),
            labels: listed.labels.clone(),
            state: listed_as(listed.state.word(), listed.turn, listed.waiting),
            turn: listed.turn.map(|turn| turn.0),
            waiting: listed.waiting,
            parent: parent_view(listed.parent),
            epoch: listed.epoch,
            last: listed.last.0,
            created_ms: listed.created_ms,
            updated_ms: listed.updated_ms,
            shares: None,
            right: Some(RightView::Own),
        }
    }

    fn facts_view(&self, node: &NodeId, facts: SessionFacts) -> SessionView {
        let host = facts.moved_to.unwrap_or(*node);
        SessionView {
            id: facts.id.to_string(),
            node: host.to_string(),
            node_name: self.name_of(&host),
            agent: facts.agent.to_string(),
            owner: party_view(&facts.owner),
            name: facts.name.map(|name| name.to_string()),
            labels: facts.labels,
            state: listed_as(&facts.state, facts.turn, facts.waiting),
            turn: facts.turn.map(|turn| turn.0),
            waiting: facts.waiting,
            parent: parent_view(facts.parent),
            epoch: facts.epoch,
            last: facts.last.0,
            created_ms: facts.created_ms,
            updated_ms: facts.updated_ms,
            shares: facts.shares.map(|shares| shares.iter().map(share_view).collect()),
            right: facts.right.map(right_view),
        }
    }

    pub(super) fn share(&self, view: &ShareView) -> Result<Share, ApiError> {
        let right = match view.right {
            RightView::Watch => Right::Watch,
            RightView::Prompt => Right::Prompt,
            RightView::Own => Right::Own,
            RightView::Unknown => return Err(bad("right must be watch, prompt or own")),
        };
        let with = match (&view.node, &view.scope, view.role) {
            (Some(node), None, None) => ShareWith::Node(match node.parse() {
                Ok(node) => node,
                Err(_) => self.resolve_node(node, None)?.1,
            }),
            (None, Some(scope), Some(role)) => {
                let role = match role {
                    mesh_control::Role::Member => Role::Member,
                    mesh_control::Role::Client => Role::Client,
                    mesh_control::Role::Unknown => return Err(bad("role must be member or client")),
                };
                ShareWith::Role(self.resolve_scope(scope)?.id(), role)
            }
            _ => return Err(bad("a share is with a node, or with a scope and a role")),
        };
        Ok(Share { with, right })
    }
}

/// So long another node may take where others would do, or are asked too.
pub(super) const PEER_ANSWERS: std::time::Duration = std::time::Duration::from_secs(5);

pub(super) fn bad(why: impl Into<String>) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, why)
}

pub(super) fn session_id(text: &str) -> Result<SessionId, ApiError> {
    text.parse().map_err(|error| bad(format!("{text:?}: {error}")))
}

fn agent_id(text: &str) -> Result<AgentId, ApiError> {
    text.parse().map_err(|error| bad(format!("{text:?}: {error}")))
}

pub(super) fn session_name(text: String) -> Result<SessionName, ApiError> {
    text.parse().map_err(|error| bad(format!("name: {error}")))
}

pub(super) fn parts(parts: Vec<PromptPart>) -> Result<Vec<Shown>, ApiError> {
    let part = |part| match part {
        PromptPart::Text { text } => Ok(Shown::Text(text)),
        PromptPart::Image { media_type, data } => {
            let bytes = STANDARD.decode(data).map_err(|error| bad(format!("data of an image: {error}")))?;
            Ok(Shown::Image { media_type, bytes: bytes.into() })
        }
        _ => Err(bad("a part of this kind is not known here")),
    };
    parts.into_iter().map(part).collect()
}

fn listed_state(state: SessionState) -> Result<ListedState, ApiError> {
    match state {
        SessionState::Created => Ok(ListedState::Created),
        SessionState::Forked => Ok(ListedState::Forked),
        SessionState::Active => Ok(ListedState::Active),
        SessionState::Suspended => Ok(ListedState::Suspended),
        SessionState::Archived => Ok(ListedState::Archived),
        _ => Err(bad("state must be created, forked, active, suspended or archived")),
    }
}

/// Where a session stands, by the word that logs and peers have for it.
fn stands(word: &str) -> SessionState {
    serde_json::from_value(word.into()).unwrap_or_default()
}

/// The same as lists have it: one without work waits for a prompt, and of others it is not said what they do.
fn listed_as(word: &str, turn: Option<TurnNumber>, waiting: u32) -> SessionState {
    match stands(word) {
        SessionState::Active if turn.is_none() && waiting == 0 => SessionState::Waiting,
        state => state,
    }
}

/// Whether it goes on, whatever it does.
fn is_active(state: SessionState) -> bool {
    use SessionState::{Active, Processing, Streaming, Waiting};
    matches!(state, Active | Processing | Streaming | Waiting)
}

fn right_view(right: Right) -> RightView {
    match right {
        Right::Watch => RightView::Watch,
        Right::Prompt => RightView::Prompt,
        Right::Own => RightView::Own,
    }
}

fn share_view(share: &Share) -> ShareView {
    let right = right_view(share.right);
    match &share.with {
        ShareWith::Node(node) => ShareView { node: Some(node.to_string()), scope: None, role: None, right },
        ShareWith::Role(scope, role) => {
            ShareView { node: None, scope: Some(scope.to_string()), role: Some(views::role(*role)), right }
        }
    }
}

fn party_view(party: &Party) -> PartyView {
    PartyView {
        node: party.node.to_string(),
        scope: party.scope.map(|scope| scope.to_string()),
        role: party.role.map(views::role),
    }
}

fn parent_view(parent: Option<(SessionId, EventNumber)>) -> Option<ParentView> {
    parent.map(|(session, at)| ParentView { session: session.to_string(), at: at.0 })
}
