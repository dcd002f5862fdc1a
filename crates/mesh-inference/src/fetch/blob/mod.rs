//! `blob/1`: files of models from member to member, in chunks that the asker can check.

mod ask;
mod serve;
mod spread;
pub(crate) mod wire;

pub(crate) use ask::{Found, who_has};
pub(crate) use serve::Blobs;
pub(crate) use spread::{Spread, spread};

use mesh_transport::Protocol;

/// The protocol between members.
pub(crate) const PROTOCOL: Protocol = Protocol::new("blob/1");
