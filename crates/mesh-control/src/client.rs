//! The client: one short-lived HTTP/1.1 connection over the Unix socket for each request.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::error::{ApiError, ErrorCode};
use crate::events::{EVENT_BYTES_MAX, Event, HEARTBEAT};
use crate::home::socket_path;
use crate::paths::{Endpoint, with_query};
use crate::sse::Parser;
use crate::types::audit::{AuditQuery, AuditView};
use crate::types::console::{ConsoleClosed, ConsoleLink, LinkRequest};
use crate::types::doctor::Finding;
use crate::types::invite::{
    AppointRequest, Appointed, InviteCreated, InviteRequest, InviteView, JoinRequest, Joined, LeaveRequest,
    Left, RecoverRequest, RevokeRequest, Revoked,
};
use crate::types::log::{LogPage, LogQuery};
use crate::types::model::{
    DropRequest, Dropped, LoadRequest, ModelView, PlanRequest, PlanView, PullRequest, PullView,
};
use crate::types::node::{NodeView, PingRequest, Pong};
use crate::types::route::{AgentRouteView, PeerRouteView, RouteView, SetAgentRoute};
use crate::types::status::Status;

/// Longest answer that the client reads, bytes; the same bound as for one event, since a snapshot is the longest of both.
const ANSWER_BYTES_MAX: usize = EVENT_BYTES_MAX;

/// How long the client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// For the socket to accept. Default 2 s: it is local.
    pub connect: Duration,
    /// For an answer that needs only the node itself. Default 10 s.
    pub answer: Duration,
    /// For an answer that needs other nodes or processes (join, leave, revoke, ping, load, drop, doctor), or
    /// a walk over all of the audit trail. Default 60 s.
    pub remote: Duration,
    /// For a prompt, which waits at the node while the session's host cannot be reached. Default 150 s: the grace period of
    /// 120 s, and some.
    pub prompt: Duration,
    /// For any sign of life on an event stream. Default three [`HEARTBEAT`]s.
    pub event_idle: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            answer: Duration::from_secs(10),
            remote: Duration::from_secs(60),
            prompt: Duration::from_secs(150),
            event_idle: HEARTBEAT * 3,
        }
    }
}

/// Why a request got no good answer. Unless it is [`ClientError::Api`], whether the node acted on it is unknown, except for
/// the variants that say so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The socket is not there or nobody listens on it. The node did not act.
    #[error("no node is running at {}", path.display())]
    NoNode {
        /// The socket.
        path: PathBuf,
    },
    /// The socket belongs to somebody else. The node did not act.
    #[error("this user may not talk to the node at {}", path.display())]
    NotYours {
        /// The socket.
        path: PathBuf,
    },
    /// The path is longer than a Unix socket's may be (about 100 bytes). The node did not act.
    #[error("{} is too long for a Unix socket", path.display())]
    PathTooLong {
        /// The socket.
        path: PathBuf,
    },
    /// Connecting failed otherwise. The node did not act.
    #[error("cannot connect to the node at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node took longer than [`Deadlines`] allow.
    #[error("the node did not answer {what} within {after:?}")]
    Deadline {
        /// The request's path.
        what: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The connection broke before the answer was complete.
    #[error("the connection to the node broke")]
    Broken(#[source] hyper::Error),
    /// The answer is longer than the client reads.
    #[error("the node's answer to {what} is longer than {max} bytes")]
    TooLong {
        /// The request's path.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// The answer is not what this version understands.
    #[error("the node's answer to {what} is not understood")]
    NotUnderstood {
        /// The request's path.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The node refuses or failed, and says why.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl ClientError {
    /// What went wrong, as a word that programs can branch on: the node's own ([`ApiError::code`]), or one of `no_node`,
    /// `not_yours`, `path_too_long`, `connect`, `timeout`, `broken`, `too_long`, `not_understood`.
    pub fn code(&self) -> &str {
        match self {
            Self::NoNode { .. } => "no_node",
            Self::NotYours { .. } => "not_yours",
            Self::PathTooLong { .. } => "path_too_long",
            Self::Connect { .. } => "connect",
            Self::Deadline { .. } => "timeout",
            Self::Broken(_) => "broken",
            Self::TooLong { .. } => "too_long",
            Self::NotUnderstood { .. } => "not_understood",
            Self::Api(error) => error.code.as_str(),
        }
    }

    /// Whether the same request may be answered a little later: the node restarts or is busy, or a link of it is down.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NoNode { .. } | Self::Connect { .. } | Self::Deadline { .. } | Self::Broken(_) => true,
            Self::Api(error) => {
                matches!(error.code, ErrorCode::Unavailable | ErrorCode::NodeUnreachable | ErrorCode::Timeout)
            }
            _ => false,
        }
    }

    /// What the caller can do about it; none when there is nothing to advise.
    pub fn mend(&self) -> Option<&str> {
        match self {
            Self::NoNode { .. } => Some("start one with `qmt-node`"),
            Self::NotYours { .. } => Some("run this as the user that runs the node"),
            Self::PathTooLong { .. } => Some("set QMT_HOME to a shorter path"),
            Self::NotUnderstood { .. } => Some("use qmt-cli and qmt-node of one version"),
            Self::Api(error) => error.mend.as_deref(),
            Self::Connect { .. } | Self::Deadline { .. } | Self::Broken(_) | Self::TooLong { .. } => None,
        }
    }
}

/// A client of one node. Holds no connection; cheap to clone. Needs a tokio runtime with time and I/O.
///
/// Cancel safety of every method: dropping the future closes the connection; a request that was already sent may still take
/// effect. Repeating is safe for all `GET`s, and for join, leave, revoke, appoint, load and drop, which name an end state.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    pub(crate) deadlines: Deadlines,
}

/// The body of a request.
pub(crate) type Sent = UnsyncBoxBody<Bytes, io::Error>;

impl Client {
    /// A client of the node that listens on `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), deadlines: Deadlines::default() }
    }

    /// A client of the node whose files are in `home` (see [`crate::home_from_env`]).
    pub fn for_home(home: &Path) -> Self {
        Self::new(socket_path(home))
    }

    /// The same client with other deadlines.
    #[must_use]
    pub fn with_deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// The socket it talks to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The node at this moment.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get(Endpoint::Status, Endpoint::Status.path(), self.deadlines.answer).await
    }

    /// All nodes it knows, itself first, then by scope and name.
    pub async fn nodes(&self) -> Result<Vec<NodeView>, ClientError> {
        self.get(Endpoint::Nodes, Endpoint::Nodes.path(), self.deadlines.answer).await
    }

    /// Issues an invite, founding a scope first when the node is in none. Not idempotent.
    pub async fn invite(&self, request: &InviteRequest) -> Result<InviteCreated, ClientError> {
        self.post(Endpoint::Invites, request, self.deadlines.answer).await
    }

    /// The invites that this node issued, newest first.
    pub async fn invites(&self) -> Result<Vec<InviteView>, ClientError> {
        self.get(Endpoint::Invites, Endpoint::Invites.path(), self.deadlines.answer).await
    }

    /// Revokes an invite or a node.
    pub async fn revoke(&self, request: &RevokeRequest) -> Result<Revoked, ClientError> {
        self.post(Endpoint::Revoke, request, self.deadlines.remote).await
    }

    /// Revokes a node by its scope's recovery key.
    pub async fn recover(&self, request: &RecoverRequest) -> Result<Revoked, ClientError> {
        self.post(Endpoint::Recover, request, self.deadlines.remote).await
    }

    /// Makes a member an admin.
    pub async fn appoint(&self, request: &AppointRequest) -> Result<Appointed, ClientError> {
        self.post(Endpoint::Admins, request, self.deadlines.remote).await
    }

    /// Joins the scope of an invite.
    pub async fn join(&self, request: &JoinRequest) -> Result<Joined, ClientError> {
        self.post(Endpoint::Join, request, self.deadlines.remote).await
    }

    /// Leaves a scope.
    pub async fn leave(&self, request: &LeaveRequest) -> Result<Left, ClientError> {
        self.post(Endpoint::Leave, request, self.deadlines.remote).await
    }

    /// Pings a node; one entry for each answered ping, in order.
    pub async fn ping(&self, request: &PingRequest) -> Result<Vec<Pong>, ClientError> {
        self.post(Endpoint::Ping, request, self.deadlines.remote).await
    }

    /// The models that the node can reach, by name.
    pub async fn models(&self) -> Result<Vec<ModelView>, ClientError> {
        self.get(Endpoint::Models, Endpoint::Models.path(), self.deadlines.answer).await
    }

    /// Starts to load a model at the node.
    pub async fn load(&self, request: &LoadRequest) -> Result<ModelView, ClientError> {
        self.post(Endpoint::Load, request, self.deadlines.remote).await
    }

    /// Stops the serving of a model, everywhere or at one node.
    pub async fn drop_model(&self, request: &DropRequest) -> Result<Dropped, ClientError> {
        self.post(Endpoint::Drop, request, self.deadlines.remote).await
    }

    /// Begins to download a model to the node's disk, or joins the download of it. Follow it with [`Client::pulls`].
    pub async fn pull(&self, request: &PullRequest) -> Result<PullView, ClientError> {
        self.post(Endpoint::Pull, request, self.deadlines.answer).await
    }

    /// Stops a download; what has come is kept. A model that is downloaded to be served is stopped with `drop`.
    pub async fn stop_pull(&self, request: &PullRequest) -> Result<PullView, ClientError> {
        self.post(Endpoint::StopPull, request, self.deadlines.answer).await
    }

    /// The downloads under way, and those that ended lately.
    pub async fn pulls(&self) -> Result<Vec<PullView>, ClientError> {
        self.get(Endpoint::Pulls, Endpoint::Pulls.path(), self.deadlines.answer).await
    }

    /// Where a model would run; nothing is loaded.
    pub async fn plan(&self, request: &PlanRequest) -> Result<PlanView, ClientError> {
        self.post(Endpoint::Plan, request, self.deadlines.remote).await
    }

    /// Where requests for `model`, or for every model, would go.
    pub async fn routes(&self, model: Option<&str>) -> Result<Vec<RouteView>, ClientError> {
        let path = Endpoint::Routes.path();
        let uri = model.map_or_else(|| path.to_owned(), |model| with_query(path, "model", model));
        self.get(Endpoint::Routes, &uri, self.deadlines.answer).await
    }

    /// The ways to a node, by its name, its id or a unique prefix of it; the one in use first.
    pub async fn routes_for_peer(&self, node: &str) -> Result<Vec<PeerRouteView>, ClientError> {
        let uri = with_query(Endpoint::Routes.path(), "node", node);
        self.get(Endpoint::Routes, &uri, self.deadlines.answer).await
    }

    /// Whose models the node's agents ask.
    pub async fn agent_routes(&self) -> Result<Vec<AgentRouteView>, ClientError> {
        self.get(Endpoint::AgentRoutes, Endpoint::AgentRoutes.path(), self.deadlines.answer).await
    }

    /// Has an agent ask another node's model from now on.
    pub async fn set_agent_route(&self, route: &SetAgentRoute) -> Result<AgentRouteView, ClientError> {
        self.post(Endpoint::AgentRoutes, route, self.deadlines.answer).await
    }

    /// The audit trail, as far as it fits the query: who let whom in, when, and what a revocation ended.
    pub async fn audit(&self, query: &AuditQuery) -> Result<AuditView, ClientError> {
        let uri = query.to_uri(Endpoint::Audit.path());
        self.get(Endpoint::Audit, &uri, self.deadlines.remote).await
    }

    /// What is missing or wrong on the node's machine.
    pub async fn doctor(&self) -> Result<Vec<Finding>, ClientError> {
        self.get(Endpoint::Doctor, Endpoint::Doctor.path(), self.deadlines.remote).await
    }

    /// What the node counts, in Prometheus' text format.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let endpoint = Endpoint::Metrics;
        let mut tasks = JoinSet::new();
        let request = request(Method::GET, endpoint.path(), None);
        let response = self.send(endpoint, request, self.deadlines.answer, &mut tasks).await?;
        let body = within(endpoint, self.deadlines.answer, read(endpoint, response.into_body())).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// The last log lines, or those behind a number.
    pub async fn logs(&self, query: &LogQuery) -> Result<LogPage, ClientError> {
        self.get(Endpoint::Logs, &query.to_uri(Endpoint::Logs.path()), self.deadlines.answer).await
    }

    /// Follows the log, from the lines on that [`Client::logs`] would answer.
    pub async fn follow_logs(&self, query: &LogQuery) -> Result<LogEvents, ClientError> {
        let endpoint = Endpoint::LogEvents;
        let request = request(Method::GET, &query.to_uri(endpoint.path()), None);
        Ok(LogEvents { stream: self.stream(endpoint, request, self.deadlines.answer).await? })
    }

    /// A link that opens the node's console once. Not idempotent.
    pub async fn console_link(&self, request: &LinkRequest) -> Result<ConsoleLink, ClientError> {
        self.post(Endpoint::ConsoleLink, request, self.deadlines.answer).await
    }

    /// Signs every browser out of the node's console, and ends the links that were not used.
    pub async fn close_console(&self) -> Result<ConsoleClosed, ClientError> {
        self.post(Endpoint::CloseConsole, &ConsoleClosed {}, self.deadlines.answer).await
    }

    /// Follows what happens at the node, from a snapshot on.
    pub async fn events(&self) -> Result<Events, ClientError> {
        let endpoint = Endpoint::Events;
        let request = request(Method::GET, endpoint.path(), None);
        Ok(Events { stream: self.stream(endpoint, request, self.deadlines.answer).await? })
    }

    pub(crate) async fn stream(
        &self,
        endpoint: Endpoint,
        request: Request<Sent>,
        deadline: Duration,
    ) -> Result<Stream, ClientError> {
        let mut tasks = JoinSet::new();
        let response = self.send(endpoint, request, deadline, &mut tasks).await?;
        Ok(Stream {
            endpoint,
            body: response.into_body(),
            parser: Parser::new(EVENT_BYTES_MAX),
            ready: VecDeque::new(),
            idle: self.deadlines.event_idle,
            _connection: tasks,
        })
    }

    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        endpoint: Endpoint,
        uri: &str,
        deadline: Duration,
    ) -> Result<T, ClientError> {
        self.exchange(endpoint, request(Method::GET, uri, None), deadline).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        endpoint: Endpoint,
        body: &impl Serialize,
        deadline: Duration,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).expect("control types have string keys and finite numbers");
        self.exchange(endpoint, request(Method::POST, endpoint.path(), Some(body)), deadline).await
    }

    pub(crate) async fn exchange<T: DeserializeOwned>(
        &self,
        endpoint: Endpoint,
        request: Request<Sent>,
        deadline: Duration,
    ) -> Result<T, ClientError> {
        let mut tasks = JoinSet::new(); // dropped, and with it the connection, when the exchange ends
        let response = self.send(endpoint, request, deadline, &mut tasks).await?;
        let body = within(endpoint, deadline, read(endpoint, response.into_body())).await?;
        serde_json::from_slice(&body)
            .map_err(|source| ClientError::NotUnderstood { what: endpoint.path(), source })
    }

    /// Connects, sends, and waits for the head of a good answer; a failed one is read and becomes the error.
    pub(crate) async fn send(
        &self,
        endpoint: Endpoint,
        request: Request<Sent>,
        deadline: Duration,
        tasks: &mut JoinSet<()>,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = within(endpoint, self.deadlines.connect, self.connect()).await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Broken)?;
        tasks.spawn(async move {
            let _ = connection.await; // the sender and the body report the same failure
        });
        within(endpoint, deadline, async {
            let response = sender.send_request(request).await.map_err(ClientError::Broken)?;
            if response.status().is_success() {
                return Ok(response);
            }
            let status = response.status().as_u16();
            let body = read(endpoint, response.into_body()).await?;
            Err(ApiError::from_answer(status, &body).into())
        })
        .await
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let path = self.socket.clone();
        UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoNode { path },
            io::ErrorKind::PermissionDenied => ClientError::NotYours { path },
            io::ErrorKind::InvalidInput => ClientError::PathTooLong { path },
            _ => ClientError::Connect { path, source },
        })
    }
}

/// The events of a node. Dropping it closes the connection.
#[derive(Debug)]
pub struct Events {
    stream: Stream,
}

impl Events {
    /// The next event; none when the node ended the stream, as it does when it stops. After an error the stream is of no use.
    /// Cancel safe: no event is lost.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        let Some(data) = self.stream.next_data().await? else { return Ok(None) };
        serde_json::from_slice(&data)
            .map(Some)
            .map_err(|source| ClientError::NotUnderstood { what: Endpoint::Events.path(), source })
    }
}

/// The log of a node as it grows. Dropping it closes the connection.
#[derive(Debug)]
pub struct LogEvents {
    stream: Stream,
}

impl LogEvents {
    /// The next lines; none when the node ended the stream, as it does when it stops. After an error the stream is of no use.
    /// Cancel safe: no line is lost.
    pub async fn next(&mut self) -> Result<Option<LogPage>, ClientError> {
        let Some(data) = self.stream.next_data().await? else { return Ok(None) };
        serde_json::from_slice(&data)
            .map(Some)
            .map_err(|source| ClientError::NotUnderstood { what: Endpoint::LogEvents.path(), source })
    }
}

/// The body of an answer while it comes.
#[derive(Debug)]
pub(crate) struct Stream {
    endpoint: Endpoint,
    body: Incoming,
    parser: Parser,
    ready: VecDeque<Vec<u8>>,
    idle: Duration,
    _connection: JoinSet<()>,
}

impl Stream {
    /// The data of the next server-sent event; none at the end. Cancel safe.
    pub(crate) async fn next_data(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Ok(Some(data));
            }
            let Some(bytes) = self.next_bytes().await? else { return Ok(None) };
            let pushed = self.parser.push(&bytes, &mut self.ready);
            pushed.map_err(|long| ClientError::TooLong { what: self.endpoint.path(), max: long.max })?;
        }
    }

    /// The next bytes; none at the end. Cancel safe.
    pub(crate) async fn next_bytes(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let frame = within(self.endpoint, self.idle, async { Ok(self.body.frame().await) }).await?;
            let Some(frame) = frame.transpose().map_err(ClientError::Broken)? else { return Ok(None) };
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
    }
}

pub(crate) fn request(method: Method, uri: &str, body: Option<Vec<u8>>) -> Request<Sent> {
    let mut builder = Request::builder().method(method).uri(uri).header(http::header::HOST, "qmt-node");
    if body.is_some() {
        builder = builder.header(http::header::CONTENT_TYPE, "application/json");
    }
    builder
        .body(Full::from(body.unwrap_or_default()).map_err(|never| match never {}).boxed_unsync())
        .expect("paths are constants and queries are percent-encoded")
}

pub(crate) async fn read(endpoint: Endpoint, body: Incoming) -> Result<Bytes, ClientError> {
    match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ClientError::TooLong { what: endpoint.path(), max: ANSWER_BYTES_MAX })
        }
        Err(error) => match error.downcast::<hyper::Error>() {
            Ok(error) => Err(ClientError::Broken(*error)),
            Err(_) => unreachable!("a limited body fails by its limit or by hyper"),
        },
    }
}

pub(crate) async fn within<T>(
    endpoint: Endpoint,
    after: Duration,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    timeout(after, work).await.unwrap_or(Err(ClientError::Deadline { what: endpoint.path(), after }))
}
