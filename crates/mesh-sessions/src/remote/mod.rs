//! Sessions of other nodes, and ours for them: protocol `session/1`.
//!
//! [`serve`] lets peers use the sessions of this node, each with the rights of its verified node, scope and role.
//! [`RemoteHost`] and [`RemoteSession`] are the other side: what they ask is repeated while the link is down where repeating is
//! safe, and a [`RemoteFollowing`] goes on over a new link after the last event that it has.

mod call;
mod chat;
mod follow;
mod frame;
mod hand_over;
mod nodes;
mod serve;
#[cfg(test)]
mod tests;

use std::time::Duration;

use mesh_transport::Protocol;

pub use self::call::{RemoteError, RemoteHost, RemoteSession};
pub use self::chat::ChatError;
pub use self::follow::RemoteFollowing;
pub use self::hand_over::deliver;
pub use self::nodes::{NodeInfo, Nodes, RemoteAgents, SessionAt};
pub use self::serve::{announce, serve};

/// The protocol's name.
pub const PROTOCOL: Protocol = Protocol::new("session/1");

/// Deadlines and bounds of `session/1`, for both sides. They count from the last frame of the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// From a call to the first frame of its answer (60 s).
    pub first_event: Duration,
    /// From one frame to the next, and for one write (30 s): a reader or a host that is silent for longer is gone.
    pub idle: Duration,
    /// How often each side says that it is there (10 s).
    pub beat: Duration,
    /// How long a caller tries to reach a host again before it gives up (120 s).
    pub grace: Duration,
    /// From the opening of a stream to the whole call, at the host (5 s).
    pub ask: Duration,
    /// Prompts whose contents are received at a time, from all peers together (4): each may hold 64 MiB.
    pub uploads_max: usize,
    /// Prompts of one session that wait for the link at a caller (64).
    pub waiting_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            first_event: Duration::from_secs(60),
            idle: Duration::from_secs(30),
            beat: Duration::from_secs(10),
            grace: Duration::from_secs(120),
            ask: Duration::from_secs(5),
            uploads_max: 4,
            waiting_max: 64,
        }
    }
}
