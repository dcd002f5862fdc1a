//! The client's questions about agents and sessions.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use http_body_util::BodyExt;
use hyper::body::Frame;
use tokio::io::{AsyncRead, ReadBuf};

use crate::client::{Client, ClientError, Stream, request};
use crate::paths::{Endpoint, with_query};
use crate::session_events::SessionItem;
use crate::types::agent::AgentView;
use crate::types::board::{CreateBoard, PostOnBoard};
use crate::types::session::{
    CancelTurn, ContentQuery, CreateSession, DecideTool, EventsQuery, ForkSession, HitView, ImportedSession,
    LabelSession, MoveSession, NameSession, OneSession, PromptSession, SearchQuery, SessionPage,
    SessionQuery, SessionView, ShareSession, SteerSession, SuspendSession, Written, uri,
};

/// How long an import may take from the first byte to the answer: a gigabyte on a slow disk.
const IMPORT_DEADLINE: Duration = Duration::from_secs(600);
/// Bytes of an import that are read at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// Longest content that is read, bytes; a node stores none longer than 32 MiB.
const CONTENT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Agents and sessions. Where a session is named, an [`crate::Address`] is meant. Whatever changes a session may be repeated:
/// its id, a prompt's id or the end state that is asked for make it the same request; [`Client::steer`] alone says it twice.
impl Client {
    /// The agents that sessions can be held with: the node's own, then its peers'.
    pub async fn agents(&self) -> Result<Vec<AgentView>, ClientError> {
        self.get(Endpoint::Agents, Endpoint::Agents.path(), self.deadlines.answer).await
    }

    /// A page of sessions.
    pub async fn sessions(&self, query: &SessionQuery) -> Result<SessionPage, ClientError> {
        let uri = query.to_uri(Endpoint::Sessions.path());
        self.get(Endpoint::Sessions, &uri, self.deadlines.remote).await
    }

    /// Begins a session.
    pub async fn create_session(&self, new: &CreateSession) -> Result<SessionView, ClientError> {
        self.post(Endpoint::Sessions, new, self.deadlines.remote).await
    }

    /// One session.
    pub async fn session(&self, session: &str) -> Result<SessionView, ClientError> {
        let uri = with_query(Endpoint::ShowSession.path(), "session", session);
        self.get(Endpoint::ShowSession, &uri, self.deadlines.remote).await
    }

    /// Prompts an agent. Returns when the prompt is safe in the session's log; what follows comes as events.
    pub async fn prompt(&self, prompt: &PromptSession) -> Result<Written, ClientError> {
        self.post(Endpoint::Prompt, prompt, self.deadlines.prompt).await
    }

    /// Says something in the middle of a turn.
    pub async fn steer(&self, steer: &SteerSession) -> Result<Written, ClientError> {
        self.post(Endpoint::Steer, steer, self.deadlines.remote).await
    }

    /// Ends a turn. Returns when it has ended.
    pub async fn cancel(&self, cancel: &CancelTurn) -> Result<Written, ClientError> {
        self.post(Endpoint::Cancel, cancel, self.deadlines.remote).await
    }

    /// Lets a tool run, or not.
    pub async fn decide(&self, decision: &DecideTool) -> Result<Written, ClientError> {
        self.post(Endpoint::Decide, decision, self.deadlines.remote).await
    }

    /// Names a session, or takes its name away.
    pub async fn name_session(&self, name: &NameSession) -> Result<Written, ClientError> {
        self.post(Endpoint::NameSession, name, self.deadlines.remote).await
    }

    /// Gives a session these labels instead of those it has.
    pub async fn label_session(&self, labels: &LabelSession) -> Result<Written, ClientError> {
        self.post(Endpoint::LabelSession, labels, self.deadlines.remote).await
    }

    /// Shares a session so, instead of as it is.
    pub async fn share_session(&self, shares: &ShareSession) -> Result<Written, ClientError> {
        self.post(Endpoint::ShareSession, shares, self.deadlines.remote).await
    }

    /// Begins a session that is another one up to an event.
    pub async fn fork_session(&self, fork: &ForkSession) -> Result<SessionView, ClientError> {
        self.post(Endpoint::ForkSession, fork, self.deadlines.remote).await
    }

    /// Has a session rest. Returns when it rests.
    pub async fn suspend(&self, suspend: &SuspendSession) -> Result<Written, ClientError> {
        self.post(Endpoint::Suspend, suspend, self.deadlines.remote).await
    }

    /// Has a session go on.
    pub async fn resume(&self, session: &str) -> Result<Written, ClientError> {
        let session = OneSession { session: session.to_owned() };
        self.post(Endpoint::Resume, &session, self.deadlines.remote).await
    }

    /// Ends a session: it can be read and forked from then on.
    pub async fn archive(&self, session: &str) -> Result<Written, ClientError> {
        let session = OneSession { session: session.to_owned() };
        self.post(Endpoint::Archive, &session, self.deadlines.remote).await
    }

    /// Hands a session over to another node. Returns it as it is there.
    pub async fn move_session(&self, to: &MoveSession) -> Result<SessionView, ClientError> {
        self.post(Endpoint::MoveSession, to, self.deadlines.remote).await
    }

    /// Where some words were said.
    pub async fn search_sessions(&self, query: &SearchQuery) -> Result<Vec<HitView>, ClientError> {
        let uri = query.to_uri(Endpoint::SearchSessions.path());
        self.get(Endpoint::SearchSessions, &uri, self.deadlines.remote).await
    }

    /// A page of boards; of the query only `name`, `state`, `node`, `all`, `before` and `limit` mean something.
    pub async fn boards(&self, query: &SessionQuery) -> Result<SessionPage, ClientError> {
        let uri = query.to_uri(Endpoint::Boards.path());
        self.get(Endpoint::Boards, &uri, self.deadlines.remote).await
    }

    /// Begins a board at the node.
    pub async fn create_board(&self, new: &CreateBoard) -> Result<SessionView, ClientError> {
        self.post(Endpoint::Boards, new, self.deadlines.remote).await
    }

    /// One board, by what people call it.
    pub async fn board(&self, board: &str) -> Result<SessionView, ClientError> {
        let uri = with_query(Endpoint::ShowBoard.path(), "board", board);
        self.get(Endpoint::ShowBoard, &uri, self.deadlines.remote).await
    }

    /// Posts on a board. Returns when the post is safe in the board's log.
    pub async fn post_on_board(&self, post: &PostOnBoard) -> Result<Written, ClientError> {
        self.post(Endpoint::PostOnBoard, post, self.deadlines.prompt).await
    }

    /// A content that an event names: a text that is too long for an event, or an image.
    pub async fn session_content(&self, query: &ContentQuery) -> Result<Bytes, ClientError> {
        let endpoint = Endpoint::SessionContent;
        let fields = [("session", Some(query.session.clone())), ("blob", Some(query.blob.clone()))];
        let request = request(Method::GET, &uri(endpoint.path(), fields), None);
        let mut stream = self.stream(endpoint, request, self.deadlines.remote).await?;
        let mut content = Vec::new();
        while let Some(bytes) = stream.next_bytes().await? {
            if content.len() + bytes.len() > CONTENT_BYTES_MAX {
                return Err(ClientError::TooLong { what: endpoint.path(), max: CONTENT_BYTES_MAX });
            }
            content.extend_from_slice(&bytes);
        }
        Ok(content.into())
    }

    /// A session as lines of JSON, to be imported elsewhere.
    pub async fn export_session(&self, session: &str) -> Result<Export, ClientError> {
        let endpoint = Endpoint::ExportSession;
        let uri = with_query(endpoint.path(), "session", session);
        let stream = self.stream(endpoint, request(Method::GET, &uri, None), self.deadlines.remote).await?;
        Ok(Export { stream })
    }

    /// Takes in a session that was exported. It takes effect as a whole or not at all, and may be repeated.
    pub async fn import_session(
        &self,
        lines: impl AsyncRead + Send + 'static,
    ) -> Result<ImportedSession, ClientError> {
        let endpoint = Endpoint::ImportSession;
        let (mut head, _) = request(Method::POST, endpoint.path(), None).into_parts();
        let kind = HeaderValue::from_static("application/x-ndjson");
        head.headers.insert(header::CONTENT_TYPE, kind);
        let body = Chunks { lines: Box::pin(lines), buffer: vec![0; CHUNK_BYTES] };
        self.exchange(endpoint, http::Request::from_parts(head, body.boxed_unsync()), IMPORT_DEADLINE).await
    }

    /// Reads a session's events, past and live, over one connection. [`Client::follow_session`] goes on when it breaks.
    pub async fn session_events(&self, query: &EventsQuery) -> Result<SessionEvents, ClientError> {
        let endpoint = Endpoint::SessionEvents;
        let mut request = request(Method::GET, &query.to_uri(endpoint.path()), None);
        if query.after > 0 {
            request.headers_mut().insert("last-event-id", HeaderValue::from(query.after));
        }
        Ok(SessionEvents { stream: self.stream(endpoint, request, self.deadlines.remote).await? })
    }
}

/// The events of a session over one connection. Dropping it closes the connection.
#[derive(Debug)]
pub struct SessionEvents {
    stream: Stream,
}

impl SessionEvents {
    /// The next event, or the end; none when the connection ended without its end. After an error the stream is of no use.
    /// Cancel safe: no event is lost.
    pub async fn next(&mut self) -> Result<Option<SessionItem>, ClientError> {
        let Some(data) = self.stream.next_data().await? else { return Ok(None) };
        let item = SessionItem::parse(&data);
        item.map(Some)
            .map_err(|source| ClientError::NotUnderstood { what: Endpoint::SessionEvents.path(), source })
    }
}

/// An export while it comes. Dropping it closes the connection.
#[derive(Debug)]
pub struct Export {
    stream: Stream,
}

impl Export {
    /// The next bytes; none at the end. An export is whole when its last line says so. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.stream.next_bytes().await
    }
}

/// A body out of a reader.
struct Chunks<R> {
    lines: Pin<Box<R>>,
    buffer: Vec<u8>,
}

impl<R: AsyncRead> hyper::body::Body for Chunks<R> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        let mut buffer = ReadBuf::new(&mut this.buffer);
        let read = ready!(this.lines.as_mut().poll_read(cx, &mut buffer));
        Poll::Ready(match read {
            Err(error) => Some(Err(error)),
            Ok(()) if buffer.filled().is_empty() => None,
            Ok(()) => Some(Ok(Frame::data(Bytes::copy_from_slice(buffer.filled())))),
        })
    }
}
