//! The client against a node that is played by a small HTTP server on a Unix socket.

mod client;
mod fake;
mod sessions;
mod wire;
