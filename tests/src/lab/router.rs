//! Routers.

use std::net::Ipv4Addr;

use super::{Host, Plug, rules, tool};

/// A router between two networks.
#[derive(Debug)]
pub struct Router {
    uplink: Plug,
    downlink: Plug,
    address: Ipv4Addr,
}

impl Router {
    pub(super) fn new(uplink: Plug, downlink: Plug, address: Ipv4Addr) -> Self {
        Self { uplink, downlink, address }
    }

    /// Its address outside.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its cable to the network outside.
    pub fn uplink(&self) -> &Plug {
        &self.uplink
    }

    /// Its cable to the network inside.
    pub fn downlink(&self) -> &Plug {
        &self.downlink
    }

    /// Lets a port of its address outside lead to the same port of a host inside, for UDP and TCP.
    pub fn forward(&self, port: u16, host: &Host) {
        tool::nft(self.uplink.namespace(), &rules::forward(port, host.address()));
    }
}
