//! The network that mesh-gossip is simulated in, built from its sources: a dependency on the crate would bring all of its
//! transports along.

#[expect(dead_code, reason = "datagrams need no links, and this baseline no cuts")]
#[path = "../../../crates/mesh-gossip/src/proto/sim/network.rs"]
pub(crate) mod network;
#[path = "../../../crates/mesh-gossip/src/proto/sim/queue.rs"]
mod queue;
