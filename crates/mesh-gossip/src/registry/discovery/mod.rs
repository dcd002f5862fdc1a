//! Finding nodes that do not share this node's file: by places that were written down, by one seed, by mDNS, and then by each other.

mod mdns;
mod rounds;

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use mesh_identity::NodeName;
use serde_json::Value;

pub(super) use mdns::Sighting;
pub use mdns::{Mdns, MdnsError};
pub(super) use rounds::Rounds;

/// Where a node may be asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The name that its certificate must have; none where any node of the CA will do.
    pub name: Option<NodeName>,
    /// An IP address or a host name.
    pub host: String,
    /// The port of its agent channel.
    pub port: u16,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            return write!(f, "[{}]:{}", self.host, self.port);
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Why a node could not be asked; logged, and asked again in the next round.
pub type AskError = Box<dyn std::error::Error + Send + Sync>;

/// The answer to come.
pub type Asked = Pin<Box<dyn Future<Output = Result<Value, AskError>> + Send>>;

/// The way to ask another node, which this crate does not know: HTTPS with the certificates of both.
pub trait Ask: Send + Sync + 'static {
    /// Tells the node at a place this node's own entry, and then asks for its registry. Whoever implements it bounds the answer;
    /// dropping the future ends the request.
    fn exchange(&self, place: Place, own: Value) -> Asked;
}
