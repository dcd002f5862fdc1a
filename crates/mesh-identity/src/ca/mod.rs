//! The mesh CA: who may speak on the agent channel, as X.509 certificates that curl and openssl understand.

mod leaf;
mod serial;

pub use leaf::{LEAF_BYTES_MAX, Leaf, LeafError, NODE_URI_PREFIX};
pub use serial::{InvalidSerial, Serial};
