//! Tunnels over links in memory, with real sockets at both ends.

mod carried;
mod refused;
mod world;
