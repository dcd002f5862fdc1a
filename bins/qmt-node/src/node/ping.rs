//! `ping/1`: the round trip of one call to a peer.

use mesh_control::{ApiError, ErrorCode, PathKind, PingRequest, Pong};
use mesh_transport::{Call, Peer, Protocol, Transport, serve_call};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

use super::Node;
use super::views::path_view;

const DEADLINE: Duration = Duration::from_secs(5);
const PINGS_MAX: u32 = 100;

/// Sent as it is, returned as it is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ping {
    nonce: u64,
}

impl Call for Ping {
    const PROTOCOL: Protocol = Protocol::new("ping/1");
    type Reply = u64;
}

pub(crate) fn serve(transport: &Transport) {
    serve_call::<Ping, _, _>(transport, |_: Peer, ping| async move { Ok(ping.nonce) });
}

impl Node {
    /// Pings a member; one entry for each answered ping.
    pub(crate) async fn ping(&self, request: PingRequest) -> Result<Vec<Pong>, ApiError> {
        let count = request.count.unwrap_or(1);
        if count == 0 || count > PINGS_MAX {
            return Err(ApiError::new(
                ErrorCode::BadRequest,
                format!("count must be between 1 and {PINGS_MAX}, not {count}"),
            ));
        }
        let (scope, node) = self.resolve_node(&request.node, None)?;
        if node == self.id() {
            return Err(ApiError::new(ErrorCode::BadRequest, "that is this node itself"));
        }
        let transport = self.transport();
        // The first exchange may have to open the link; the pings measure the link.
        transport.link(&scope, &node).await.map_err(|error| {
            ApiError::new(
                ErrorCode::NodeUnreachable,
                format!("{} does not answer: {}", request.node, super::chain(&error)),
            )
            .with_mend("see `qmt-cli nodes` for when it was last heard")
        })?;
        let mut pongs = Vec::new();
        for nonce in 0..count {
            let begin = Instant::now();
            let answered = transport.call(&scope, &node, &Ping { nonce: nonce.into() }, DEADLINE).await;
            match answered {
                Ok(_) => {
                    let path = transport
                        .linked(&scope, &node)
                        .map_or(PathKind::None, |link| path_view(link.path().kind));
                    pongs.push(Pong { rtt_ms: begin.elapsed().as_secs_f64() * 1e3, path });
                }
                Err(error) if pongs.is_empty() && nonce + 1 == count => {
                    return Err(ApiError::new(
                        ErrorCode::NodeUnreachable,
                        format!("{} does not answer: {}", request.node, super::chain(&error)),
                    ));
                }
                Err(_) => {}
            }
        }
        Ok(pongs)
    }
}
