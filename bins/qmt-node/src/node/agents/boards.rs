//! Boards, for the node's user and for its agents.

use futures_util::future::BoxFuture;
use mesh_control::{
    Address, ApiError, CreateBoard, ErrorCode, PostOnBoard, SessionPage, SessionQuery, SessionView, Written,
};
use mesh_gossip::State;
use mesh_sessions::content::{Part, Text};
use mesh_sessions::event::{Body, Event, Party, Right, Share};
use mesh_sessions::ids::{AgentId, EventNumber};
use mesh_sessions::model::Shown;
use mesh_sessions::remote::RemoteHost;
use mesh_sessions::store::{Filter, Kind, ReadLimit};
use mesh_sessions::tools::{BoardFrom, BoardSeen, Boards, NewPost, PostSeen, PostsSeen};

use super::super::Node;
use super::asked::{PEER_ANSWERS, bad, parts, session_id, session_name};
use super::delegate::Mesh;
use super::held::{Held, refused, refused_there};

/// The most events of a board that one reading by an agent looks at.
const LOOKED_AT_MAX: u32 = 1000;
/// Nodes that are asked for their boards at a time; a board of another one is named with its node.
const HOSTS_MAX: usize = 64;
/// So long a reading waits for the board's node.
const READING: std::time::Duration = std::time::Duration::from_secs(60);

impl Node {
    pub(crate) async fn board_page(&self, query: SessionQuery) -> Result<SessionPage, ApiError> {
        self.page_of(&query, Kind::Board).await
    }

    pub(crate) async fn create_board(&self, new: CreateBoard) -> Result<SessionView, ApiError> {
        let (id, name) = (session_id(&new.id)?, session_name(new.name)?);
        let shares: Result<Vec<Share>, ApiError> = new.shares.iter().map(|share| self.share(share)).collect();
        let (sessions, by) = (self.sessions().await?, self.owner());
        sessions.create_board(id, &by, name, shares?).await.map_err(|error| refused(&error))?;
        self.view_of(&Held::Here { sessions, by, id }).await
    }

    pub(crate) async fn show_board(&self, board: &str) -> Result<SessionView, ApiError> {
        self.view_of(&self.hold_board(board).await?).await
    }

    pub(crate) async fn post_on_board(&self, post: PostOnBoard) -> Result<Written, ApiError> {
        let held = self.hold_board(&post.board).await?;
        let id = post.post.parse().map_err(|error| bad(format!("post: {error}")))?;
        let number = held.post(id, None, parts(post.parts)?).await?;
        Ok(self.written(&held, number))
    }

    /// The board that an address names. A name without a node is looked for here, then at all peers.
    async fn hold_board(&self, text: &str) -> Result<Held, ApiError> {
        let Address { what, node } = Address::of(text);
        let Some(node) = node else {
            return match self.hold_here(text, Kind::Board).await {
                Err(error) if error.code == ErrorCode::UnknownSession => self.board_at_peers(text).await,
                held => held,
            };
        };
        match self.host_of(node) {
            Ok(None) => self.hold_here(what, Kind::Board).await.map_err(|error| unknown(text, error)),
            Ok(Some(host)) => {
                let session = match what.parse() {
                    Ok(id) => host.session(id),
                    Err(_) => {
                        let found = host.resolve_board(what).await;
                        found.map_err(|error| unknown(text, refused_there(&error)))?
                    }
                };
                Ok(Held::There(self.keep_remote(session)))
            }
            // A name may have an @ in it.
            Err(error) => self.hold_here(text, Kind::Board).await.map_err(|_| error),
        }
    }

    /// Members that are there: any of them may have boards.
    pub(super) fn board_hosts(&self) -> Vec<RemoteHost> {
        let mut hosts: Vec<RemoteHost> = Vec::new();
        for scope in self.scopes().list() {
            let Some(gossip) = self.gossip(&scope.id()) else { continue };
            for member in gossip.members().iter().filter(|member| member.state == State::Alive) {
                let is_new = member.id != self.id() && hosts.iter().all(|host| host.node() != member.id);
                if is_new && hosts.len() < HOSTS_MAX {
                    hosts.push(self.remote_host(scope.id(), member.id));
                }
            }
        }
        hosts
    }

    async fn board_at_peers(&self, text: &str) -> Result<Held, ApiError> {
        let asked = self.board_hosts().into_iter().map(|host| async move {
            tokio::time::timeout(PEER_ANSWERS, host.resolve_board(text)).await.ok()?.ok()
        });
        let found = futures_util::future::join_all(asked).await;
        let mut found: Vec<_> = found.into_iter().flatten().collect();
        match found.len() {
            1 => Ok(Held::There(self.keep_remote(found.swap_remove(0)))),
            0 => Err(unknown(text, ApiError::new(ErrorCode::UnknownSession, ""))),
            count => Err(ApiError::new(ErrorCode::Ambiguous, format!("{count} nodes have a board {text:?}"))
                .with_mend(format!("say which: {text}@NODE"))),
        }
    }

    /// The same for an agent at work on somebody's behalf: a peer gets what it may have itself, and only here, since nobody
    /// else can check who it is.
    async fn hold_board_for(&self, by: &Party, text: &str) -> Result<Held, String> {
        if by.scope.is_none() {
            return self.hold_board(text).await.map_err(said);
        }
        let Address { what, node } = Address::of(text);
        if node.is_some_and(|node| !matches!(self.host_of(node), Ok(None))) {
            return Err("on behalf of another node only boards of this node can be used".to_owned());
        }
        let sessions = self.sessions().await.map_err(said)?;
        let id = sessions.resolve(by, what, Some(Kind::Board)).await;
        let id = id.map_err(|error| said(unknown(text, refused(&error))))?;
        Ok(Held::Here { sessions, by: by.clone(), id })
    }

    async fn boards_for(&self, by: &Party) -> Result<Vec<BoardSeen>, String> {
        let sessions = self.sessions().await.map_err(said)?;
        let filter = Filter { kind: Some(Kind::Board), ..Filter::default() };
        let (own, _) = sessions.list(by, filter).await.map_err(|error| error.to_string())?;
        let mut boards = Vec::new();
        for board in own {
            let right = sessions.right(board.session, by).await.map_err(|error| error.to_string())?;
            let name = board.name.map_or_else(|| board.session.to_string(), |name| name.to_string());
            boards.push(BoardSeen {
                address: format!("{name}@{}", self.name()),
                last: board.last,
                may_post: Some(right >= Some(Right::Prompt)),
            });
        }
        if by.scope.is_none() {
            let everywhere = SessionQuery { all: true, ..SessionQuery::default() };
            let page = self.board_page(everywhere).await.map_err(said)?;
            let me = self.id().to_string();
            boards.extend(page.sessions.into_iter().filter(|view| view.node != me).map(|view| {
                let node = if view.node_name.is_empty() { view.node } else { view.node_name };
                let name = view.name.unwrap_or(view.id);
                BoardSeen { address: format!("{name}@{node}"), last: EventNumber(view.last), may_post: None }
            }));
        }
        Ok(boards)
    }

    async fn read_board(&self, by: &Party, from: BoardFrom) -> Result<PostsSeen, String> {
        let held = self.hold_board_for(by, &from.board).await?;
        let mut seen = PostsSeen { posts: Vec::new(), read: from.after, last: from.after };
        let events = match &held {
            Held::Here { sessions, id, .. } => {
                let limit = ReadLimit { events: LOOKED_AT_MAX, ..ReadLimit::default() };
                let events = sessions.store().read(*id, from.after, limit).await;
                seen.last = sessions.store().last(*id).await.map_err(|error| error.to_string())?;
                events.map_err(|error| error.to_string())?
            }
            Held::There(session) => {
                seen.last = session.show().await.map_err(|error| error.to_string())?.last;
                let mut following = session.follow(from.after);
                let mut events = Vec::new();
                let mut posts = 0;
                while following.at() < seen.last
                    && posts < from.limit
                    && events.len() < LOOKED_AT_MAX as usize
                {
                    let event = following.next().await.map_err(|error| error.to_string())?;
                    posts += u32::from(matches!(event.body, Body::Posted { .. }));
                    events.push(event);
                }
                events
            }
        };
        for event in events {
            if seen.posts.len() >= from.limit as usize {
                break;
            }
            seen.read = event.number;
            if let Some(post) = self.post_seen(&held, &event).await? {
                seen.posts.push(post);
            }
        }
        Ok(seen)
    }

    async fn post_seen(&self, held: &Held, event: &Event) -> Result<Option<PostSeen>, String> {
        let Body::Posted { by, agent, parts, .. } = &event.body else { return Ok(None) };
        let mut text = String::new();
        for part in parts {
            match part {
                Part::Text { text: Text::Inline(said) } => text.push_str(said),
                Part::Text { text: Text::Blob { blob, .. } } => {
                    let bytes = match held {
                        Held::Here { sessions, .. } => {
                            let stored = sessions.store().blob(*blob).await;
                            stored.map_err(|error| error.to_string())?.unwrap_or_default()
                        }
                        Held::There(session) => {
                            session.content(*blob).await.map_err(|error| error.to_string())?
                        }
                    };
                    text.push_str(&String::from_utf8_lossy(&bytes));
                }
                Part::Image { media_type, .. } => text.push_str(&format!("[{media_type}]")),
                _ => text.push_str("[something that this version does not know]"),
            }
        }
        let node = Some(self.name_of(&by.node)).filter(|name| !name.is_empty());
        let node = node.unwrap_or_else(|| by.node.short());
        let who = agent.as_ref().map_or_else(|| node.clone(), |agent| format!("{agent}@{node}"));
        Ok(Some(PostSeen { number: event.number, who, text }))
    }

    async fn post_for(&self, by: &Party, agent: AgentId, post: NewPost) -> Result<EventNumber, String> {
        let held = match self.hold_board_for(by, &post.board).await? {
            // It is the agent of this node that writes, when the one for whom it does so may.
            Held::Here { sessions, by, id } => {
                let right = sessions.right(id, &by).await.map_err(|error| error.to_string())?;
                if right < Some(Right::Prompt) {
                    return Err("this board can be read, and not posted on".to_owned());
                }
                Held::Here { sessions, by: self.owner(), id }
            }
            held => held,
        };
        held.post(post.id, Some(agent), vec![Shown::Text(post.text)]).await.map_err(said)
    }
}

impl Boards for Mesh {
    fn list(&self, by: Party) -> BoxFuture<'static, Result<Vec<BoardSeen>, String>> {
        let node = self.node();
        Box::pin(async move { node.ok_or_else(stopping)?.boards_for(&by).await })
    }

    fn read(&self, by: Party, from: BoardFrom) -> BoxFuture<'static, Result<PostsSeen, String>> {
        let node = self.node();
        Box::pin(async move {
            let node = node.ok_or_else(stopping)?;
            let read = tokio::time::timeout(READING, node.read_board(&by, from)).await;
            read.unwrap_or_else(|_| Err("the board's node does not answer".to_owned()))
        })
    }

    fn post(&self, by: Party, post: NewPost) -> BoxFuture<'static, Result<EventNumber, String>> {
        let (node, agent) = (self.node(), self.agent().cloned());
        Box::pin(async move {
            let (node, agent) = (node.ok_or_else(stopping)?, agent.ok_or_else(stopping)?);
            node.post_for(&by, agent, post).await
        })
    }
}

fn stopping() -> String {
    "the node is shutting down".to_owned()
}

/// For a model.
fn said(error: ApiError) -> String {
    error.message
}

/// In the words of boards.
fn unknown(board: &str, error: ApiError) -> ApiError {
    if error.code != ErrorCode::UnknownSession {
        return error;
    }
    ApiError::new(ErrorCode::UnknownSession, format!("there is no board {board} for this node"))
        .with_mend("`qmt-cli board list --all` lists them; `qmt-cli board new NAME` makes one")
}
