//! The agent channel: HTTPS with certificates at both ends, by which nodes delegate tasks to each other's agents.
//!
//! Whoever shows a certificate of the mesh CA is the node that it names, and nothing that a request says of its sender counts
//! against that. There is no plaintext and no other proof. [`Server`] answers, [`Client`] asks, both with one [`Tls`] that a
//! new certificate or revocation list is put into while they run.
//!
//! What stands behind the endpoints is the node's: its agents are a [`Desk`], its registry a [`Directory`].

mod a2a;
mod api;
mod claims;
mod client;
mod desk;
mod directory;
mod fault;
mod handshake;
mod heads;
mod limits;
mod message;
mod metrics;
mod once;
mod open;
mod paced;
mod server;
mod tls;
mod work;

pub use client::{Answering, AskError, Client, ClientConfig, Heard, Outgoing, Target};
pub use desk::{Caller, Delegation, Desk, Piece, Standing};
pub use directory::{Directory, JoinError, Place};
pub use fault::{Code, Fault};
pub use handshake::Refusal;
pub use limits::Limits;
pub use message::{
    CHAIN_HEADER, KEY_HEADER, ListedAgent, ListedAgents, MessageRequest, MessageResponse, NODE_HEADER, Ping,
    Status,
};
pub use metrics::{Ending, Stats};
pub use server::Server;
pub use tls::{Clock, Credentials, CredentialsError, Ended, Reloaded, Tls};
