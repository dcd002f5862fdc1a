//! One dial over several addresses.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::stream::{FuturesUnordered, StreamExt};
use libp2p::{Multiaddr, PeerId};
use mesh_identity::NodeId;
use tokio::sync::{mpsc, oneshot};

use super::{
    addr::{self, Carrier},
    connection::LanConnection,
    swarm::{Command, ConnectError},
};
use crate::{connection::Connection, convert, error::DialError};

/// How long TCP is tried alone: on a LAN it answers in well under that, and carries bulk better.
const HEAD_START: Duration = Duration::from_millis(200);

/// Tries every address, by TCP first and soon by QUIC too; the first at which the node answers. Others that succeed
/// later are closed by being dropped. Cancel safe.
pub(super) async fn dial(
    commands: mpsc::Sender<Command>,
    node: NodeId,
    addrs: Vec<SocketAddr>,
) -> Result<Arc<dyn Connection>, DialError> {
    if addrs.is_empty() {
        return Err(DialError::NoAddress(node));
    }
    let to = convert::peer_id(&node);
    let all = |carrier| {
        let addrs = addrs.iter().map(move |addr| addr::multiaddr(*addr, carrier));
        addrs.map(|addr| connect(commands.clone(), to, addr)).collect::<Vec<_>>()
    };
    let mut attempts: FuturesUnordered<_> = all(Carrier::Tcp).into_iter().collect();
    let mut then_quic = Some(all(Carrier::Quic));
    let head_start = tokio::time::sleep(HEAD_START);
    tokio::pin!(head_start);
    let (mut wrong, mut details) = (false, Vec::new());
    loop {
        let attempt = tokio::select! {
            biased;
            attempt = attempts.next(), if !attempts.is_empty() => attempt,
            () = &mut head_start, if then_quic.is_some() => None,
        };
        match attempt {
            Some(Some(Ok(conn))) => return Ok(Arc::new(conn)),
            Some(Some(Err(ConnectError::WrongPeer))) => wrong = true,
            Some(Some(Err(ConnectError::Failed(detail)))) => details.push(detail),
            Some(None) => return Err(DialError::Closed),
            None => attempts.extend(then_quic.take().into_iter().flatten()),
        }
        if attempts.is_empty() {
            match then_quic.take() {
                // Who answered everywhere by TCP has the ports of QUIC too.
                Some(quic) if !wrong || !details.is_empty() => attempts.extend(quic),
                _ => break,
            }
        }
    }
    // Somebody else at an old address says nothing while another one may only be silent.
    if wrong && details.is_empty() {
        return Err(DialError::WrongIdentity(node));
    }
    Err(DialError::Unreachable { node, detail: details.join(", ") })
}

async fn connect(
    commands: mpsc::Sender<Command>,
    to: PeerId,
    addr: Multiaddr,
) -> Option<Result<LanConnection, ConnectError>> {
    let (reply, answer) = oneshot::channel();
    commands.send(Command::Connect { to, addr, reply }).await.ok()?;
    answer.await.ok()
}
