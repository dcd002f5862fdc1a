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
//! | `GET /api/audit` | [`AuditQuery`] as the query | [`AuditView`] |
//! | `GET /api/doctor` | - | [`Finding`]s |
//! | `GET /api/events` | - | [`Event`]s as server-sent events, a snapshot first |
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
mod home;
mod paths;
pub mod sse;
mod types;

pub use client::{Client, ClientError, Deadlines, Events};
pub use error::{ApiError, ErrorCode};
pub use events::{EVENT_BYTES_MAX, Event, EventKind, HEARTBEAT, HEARTBEAT_FRAME};
pub use home::{NoHome, SOCKET_FILE, home_from_env, socket_path};
pub use paths::Endpoint;
pub use types::audit::{AuditChain, AuditEntry, AuditQuery, AuditView};
pub use types::doctor::{Finding, Verdict};
pub use types::invite::{
    AppointRequest, Appointed, InviteCreated, InviteRequest, InviteView, JoinRequest, Joined, LeaveRequest,
    Left, RecoverRequest, RevokeRequest, Revoked, RevokedKind,
};
pub use types::model::{
    DropRequest, Dropped, LoadRequest, ModelState, ModelView, PlanRequest, PlanView, ProviderKind,
    ProviderView, PullRequest, PullState, PullView,
};
pub use types::node::{MemoryView, NodeState, NodeView, PathKind, PingRequest, Pong, Role};
pub use types::route::{PeerRouteView, RouteTarget, RouteView};
pub use types::status::{AnswerCounts, LinkCounts, ScopeStatus, Status, TunnelCounts};
