//! One dial over several addresses.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::stream::{FuturesUnordered, StreamExt};
use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
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

/// How long a node is looked for at its own addresses alone before circuits are tried beside them.
const DIRECT_ALONE: Duration = Duration::from_secs(1);

/// Tries every address, and circuits where these do not answer and may be used. Cancel safe.
pub(super) async fn dial(
    commands: mpsc::Sender<Command>,
    node: NodeId,
    addrs: Vec<SocketAddr>,
    direct_only: bool,
) -> Result<Arc<dyn Connection>, DialError> {
    let direct = direct(&commands, node, addrs);
    if direct_only {
        return direct.await;
    }
    tokio::pin!(direct);
    let failed = match tokio::time::timeout(DIRECT_ALONE, &mut direct).await {
        Ok(Ok(conn)) => return Ok(conn),
        Ok(Err(DialError::Closed)) => return Err(DialError::Closed),
        Ok(Err(error)) => Some(error),
        Err(_) => None,
    };
    let circuit = by_circuit(&commands, node);
    let Some(failed) = failed else {
        tokio::pin!(circuit);
        return tokio::select! {
            done = &mut direct => match done {
                Ok(conn) => Ok(conn),
                Err(error) => circuit.await.map_err(|more| both(node, error, more)),
            },
            done = &mut circuit => match done {
                Ok(conn) => Ok(conn),
                Err(more) => direct.await.map_err(|error| both(node, error, more)),
            },
        };
    };
    circuit.await.map_err(|more| both(node, failed, more))
}

/// What to say where neither gave a connection.
fn both(node: NodeId, direct: DialError, circuits: Vec<String>) -> DialError {
    match direct {
        _ if circuits.is_empty() => direct,
        DialError::Unreachable { detail, .. } => {
            DialError::Unreachable { node, detail: format!("{detail}, {}", circuits.join(", ")) }
        }
        DialError::NoAddress(_) => DialError::Unreachable { node, detail: circuits.join(", ") },
        other => other,
    }
}

/// Through every node that serves circuits for this one; the first at which the node lets itself be reached.
async fn by_circuit(
    commands: &mpsc::Sender<Command>,
    node: NodeId,
) -> Result<Arc<dyn Connection>, Vec<String>> {
    let (reply, answer) = oneshot::channel();
    if commands.send(Command::Circuits { reply }).await.is_err() {
        return Err(Vec::new());
    }
    let to = convert::peer_id(&node);
    let through = answer.await.unwrap_or_default().into_iter();
    let mut attempts: FuturesUnordered<_> =
        through.map(|relay| connect(commands.clone(), to, relay.with(Protocol::P2p(to)))).collect();
    let mut details = Vec::new();
    while let Some(attempt) = attempts.next().await {
        match attempt {
            Some(Ok(conn)) => return Ok(Arc::new(conn)),
            Some(Err(ConnectError::Failed(detail))) => details.push(detail),
            Some(Err(ConnectError::WrongPeer)) => details.push("another node answers by a circuit".into()),
            None => {}
        }
    }
    Err(details)
}

/// Tries every address, by TCP first and soon by QUIC too; the first at which the node answers. Others that succeed
/// later are closed by being dropped. Cancel safe.
async fn direct(
    commands: &mpsc::Sender<Command>,
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

pub(super) async fn connect(
    commands: mpsc::Sender<Command>,
    to: PeerId,
    addr: Multiaddr,
) -> Option<Result<LanConnection, ConnectError>> {
    let (reply, answer) = oneshot::channel();
    commands.send(Command::Connect { to, addr, reply }).await.ok()?;
    answer.await.ok()
}
