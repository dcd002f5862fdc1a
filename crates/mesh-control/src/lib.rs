//! The control API of a node: its types and an async client.
//!
//! A node answers HTTP/1.1 on the Unix socket `QMT_HOME/node.sock` (mode 0600: whoever may open it is the node's owner).
//! `qmt-cli`, the console and tests speak to it through this crate. It holds no mesh logic and names no mesh crate: ids,
//! addresses and tokens are text here, exactly as they are printed.
//!
//! | method and path | request | answer |
//! |---|---|---|
//! | `GET /api/status` | - | [`Status`] |
//! | `GET /api/nodes` | - | [`NodeView`]s |
//! | `POST /api/invites` | [`InviteRequest`] | [`InviteCreated`] |
//! | `GET /api/invites` | - | [`InviteView`]s |
//! | `POST /api/revoke` | [`RevokeRequest`] | [`Revoked`] |
//! | `POST /api/recovery/revoke` | [`RecoverRequest`] | [`Revoked`] |
//! | `POST /api/admins` | [`AppointRequest`] | [`Appointed`] |
//! | `POST /api/join` | [`JoinRequest`] | [`Joined`] |
//! | `POST /api/leave` | [`LeaveRequest`] | [`Left`] |
//! | `POST /api/ping` | [`PingRequest`] | [`Pong`]s |
//! | `GET /api/models` | - | [`ModelView`]s |
//! | `POST /api/models/load` | [`LoadRequest`] | [`ModelView`] |
//! | `POST /api/models/drop` | [`DropRequest`] | [`Dropped`] |
//! | `POST /api/models/pull` | [`PullRequest`] | [`PullView`] |
//! | `POST /api/models/pull/stop` | [`PullRequest`] | [`PullView`] |
//! | `GET /api/models/pulls` | - | [`PullView`]s |
//! | `POST /api/models/plan` | [`PlanRequest`] | [`PlanView`] |
//! | `GET /api/routes?model=` | - | [`RouteView`]s |
//! | `GET /api/routes?node=` | - | [`PeerRouteView`]s |
//! | `GET /api/routes/agents` | - | [`AgentRouteView`]s |
//! | `POST /api/routes/agents` | [`SetAgentRoute`] | [`AgentRouteView`] |
//! | `GET /api/audit` | [`AuditQuery`] as the query | [`AuditView`] |
//! | `GET /api/doctor` | - | [`Finding`]s |
//! | `GET /metrics` | - | Prometheus' text format |
//! | `GET /api/logs` | [`LogQuery`] as the query | [`LogPage`] |
//! | `GET /api/logs/events` | [`LogQuery`] as the query | [`LogPage`]s as server-sent events |
//! | `POST /api/console/link` | [`LinkRequest`] | [`ConsoleLink`] |
//! | `POST /api/console/close` | - | [`ConsoleClosed`] |
//! | `GET /api/events` | - | [`Event`]s as server-sent events, a snapshot first |
//! | `GET /api/agents` | - | [`AgentView`]s, the answering node's first |
//! | `GET /api/sessions` | [`SessionQuery`] as the query | [`SessionPage`] |
//! | `POST /api/sessions` | [`CreateSession`] | [`SessionView`] |
//! | `GET /api/sessions/show` | [`OneQuery`] as the query | [`SessionView`] |
//! | `POST /api/sessions/prompt` | [`PromptSession`] | [`Written`] |
//! | `POST /api/sessions/steer` | [`SteerSession`] | [`Written`] |
//! | `POST /api/sessions/cancel` | [`CancelTurn`] | [`Written`] |
//! | `POST /api/sessions/decide` | [`DecideTool`] | [`Written`] |
//! | `POST /api/sessions/name` | [`NameSession`] | [`Written`] |
//! | `POST /api/sessions/label` | [`LabelSession`] | [`Written`] |
//! | `POST /api/sessions/share` | [`ShareSession`] | [`Written`] |
//! | `POST /api/sessions/fork` | [`ForkSession`] | [`SessionView`] |
//! | `POST /api/sessions/suspend` | [`SuspendSession`] | [`Written`] |
//! | `POST /api/sessions/resume`, `…/archive` | [`OneSession`] | [`Written`] |
//! | `POST /api/sessions/move` | [`MoveSession`] | [`SessionView`] |
//! | `GET /api/sessions/search` | [`SearchQuery`] as the query | [`HitView`]s |
//! | `GET /api/sessions/export` | [`OneQuery`] as the query | lines of JSON |
//! | `POST /api/sessions/import` | lines of JSON | [`ImportedSession`] |
//! | `GET /api/sessions/content` | [`ContentQuery`] as the query | the bytes |
//! | `GET /api/sessions/events` | [`EventsQuery`] as the query | [`SessionEvent`]s as server-sent events, then one [`StreamEnd`] |
//! | `GET /api/boards` | [`SessionQuery`] as the query | [`SessionPage`] |
//! | `POST /api/boards` | [`CreateBoard`] | [`SessionView`] |
//! | `GET /api/boards/show` | [`BoardQuery`] as the query | [`SessionView`] |
//! | `POST /api/boards/post` | [`PostOnBoard`] | [`Written`] |
//!
//! Every failure is an HTTP error status with the body `{"error":{"code","message","mend"}}`: [`ApiError`].
//! Readers ignore fields they do not know and map unknown enum words to `Unknown`, so either side may be newer.
//!
//! ```no_run
//! # async fn example() -> Result<(), mesh_control::ClientError> {
//! let home = mesh_control::home_from_env().expect("HOME or QMT_HOME is set");
//! let client = mesh_control::Client::for_home(&home);
//! for node in client.nodes().await? {
//!     println!("{} {:?} {:?}", node.name, node.state, node.path);
//! }
//! # Ok(()) }
//! ```

mod client;
mod error;
mod events;
mod follow;
mod home;
#[cfg(test)]
mod openapi;
mod paths;
mod session_client;
mod session_events;
pub mod sse;
mod types;

pub use client::{Client, ClientError, Deadlines, Events, LogEvents};
pub use error::{ApiError, ErrorCode};
pub use events::{EVENT_BYTES_MAX, Event, EventKind, HEARTBEAT, HEARTBEAT_FRAME};
pub use follow::{Followed, GRACE, SessionFollow};
pub use home::{NoHome, SOCKET_FILE, home_from_env, socket_path};
pub use paths::Endpoint;
pub use session_client::{Export, SessionEvents};
pub use session_events::{
    EndReason, EventOutcome, EventPart, EventText, EventToolCall, EventToolResult, EventUsage, Happened,
    SessionEvent, SessionItem, StreamEnd,
};
pub use types::agent::{AgentState, AgentView};
pub use types::audit::{AuditChain, AuditEntry, AuditQuery, AuditView};
pub use types::board::{BoardQuery, CreateBoard, PostOnBoard};
pub use types::console::{ConsoleClosed, ConsoleLink, LinkRequest};
pub use types::doctor::{Finding, Verdict};
pub use types::invite::{
    AppointRequest, Appointed, InviteCreated, InviteRequest, InviteView, JoinRequest, Joined, LeaveRequest,
    Left, RecoverRequest, RevokeRequest, Revoked, RevokedKind,
};
pub use types::log::{LogLevel, LogLine, LogPage, LogQuery};
pub use types::model::{
    DropRequest, Dropped, LoadRequest, ModelState, ModelView, PlanRequest, PlanView, ProviderKind,
    ProviderView, PullRequest, PullState, PullView,
};
pub use types::node::{MemoryView, NodeState, NodeView, PathKind, PingRequest, Pong, Role};
pub use types::route::{AgentRouteView, PeerRouteView, RouteTarget, RouteView, SetAgentRoute};
pub use types::session::{
    Address, CancelTurn, ContentQuery, CreateSession, DecideTool, EventsQuery, ForkSession, HitView,
    ImportedSession, LabelSession, MoveSession, NameSession, OneQuery, OneSession, PROMPT_BODY_BYTES_MAX,
    ParentView, PartyView, PromptPart, PromptSession, RightView, SearchQuery, SessionPage, SessionQuery,
    SessionState, SessionView, ShareSession, ShareView, SteerSession, SuspendSession, UnreachedView, Written,
};
pub use types::status::{AnswerCounts, Grade, HealthView, LinkCounts, ScopeStatus, Status, TunnelCounts};
