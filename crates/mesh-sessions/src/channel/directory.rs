//! The registry, as the channel sees it.

use futures_util::future::BoxFuture;
use mesh_identity::NodeName;
use mesh_identity::ca::Leaf;
use serde_json::Value;

/// The nodes that the registry knows. Its answers come from memory: each request asks it.
pub trait Directory: Send + Sync + 'static {
    /// The whole registry, as `GET /api/mesh` returns it.
    fn view(&self) -> Value;

    /// Whether a node of this name is in it, however it is. A name that is not may ping, read the registry and join, no more.
    fn knows(&self, name: &NodeName) -> bool;

    /// Takes what a node says of itself, and returns the registry as it is then. `node` is an object whose `name` is that of
    /// the certificate: the server has compared them. Whatever else in it names a node (an `id`) is for the directory to compare
    /// with `by`.
    fn join(&self, by: &Leaf, node: Value) -> BoxFuture<'static, Result<Value, JoinError>>;

    /// Where the channel of a node is.
    fn place_of(&self, name: &NodeName) -> Option<Place>;
}

/// Where an agent channel listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// A host name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Why a node was not taken into the registry. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// It is no entry of the registry.
    #[error("{0}")]
    Malformed(String),
    /// It speaks for another node than the one of the certificate.
    #[error("{0}")]
    NotYours(String),
    /// The registry cannot be written now.
    #[error("{0}")]
    Unavailable(String),
}
