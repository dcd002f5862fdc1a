//! The tools that an agent has: files of a workspace, a shell, servers of the Model Context Protocol, other
//! agents, and shared boards.
//!
//! What a call may do is the policy's affair ([`crate::policy`]); what it can do at most is settled here: files lie in a
//! [`Workspace`], results and times are bounded, processes end with their call, and [`Secrets`] are taken out of what comes
//! back.

mod board;
mod confinement;
mod delegate;
mod edit;
mod environment;
mod files;
pub mod guard;
mod list;
mod mcp;
mod output;
mod process;
mod read_file;
mod search;
mod secrets;
mod shell;
mod walk;
mod workspace;
mod write_file;

#[cfg(test)]
mod tests;

pub use board::{BoardFrom, BoardPost, BoardRead, BoardSeen, Boards, NewPost, PostSeen, PostsSeen};
pub use confinement::Confinement;
pub use delegate::{Candidate, Delegate, Delegator, Order, Roster};
pub use environment::Environment;
pub use files::{FileLimits, Files};
pub use guard::Guard;
pub use mcp::{Mcp, McpAt, McpError, McpLimits, McpProgram, McpServer, McpWeb};
pub use secrets::{MARK, SECRET_BYTES_MIN, Secrets};
pub use shell::{Shell, ShellLimits};
pub use workspace::{PathError, Workspace};
