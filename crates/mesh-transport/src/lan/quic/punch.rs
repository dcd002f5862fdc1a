//! Holes in NATs: packets that open the way, and who comes in by it.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use noq::Incoming;
use tokio::sync::oneshot;

/// How long after one packet the next is sent: the peer's first ones are lost until ours has gone out.
const EVERY: Duration = Duration::from_millis(50);
/// Too short for QUIC, which drops it: nothing answers, and no state is made by it.
const PACKET: [u8; 1] = [0];

/// Peers that are expected from some address.
#[derive(Clone, Default)]
pub(super) struct Holes(Arc<Mutex<HashMap<SocketAddr, oneshot::Sender<Incoming>>>>);

impl Holes {
    /// Resolves with who comes from there; with nothing when somebody else began to wait for the same address.
    pub(super) fn expect(&self, from: SocketAddr) -> impl Future<Output = Option<Incoming>> + use<> {
        let (sender, receiver) = oneshot::channel();
        let mut holes = self.lock();
        // Those that nobody waits for any more are of attempts that timed out.
        holes.retain(|_, waiting| !waiting.is_closed());
        holes.insert(from, sender);
        async move { receiver.await.ok() }
    }

    /// Hands over who has come in from there; given back if nobody waits for it.
    pub(super) fn arrived(&self, from: SocketAddr, incoming: Incoming) -> Option<Incoming> {
        match self.lock().remove(&from) {
            Some(waiting) => waiting.send(incoming).err(),
            None => Some(incoming),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, oneshot::Sender<Incoming>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends from the socket until it is dropped, or until the system refuses.
pub(super) async fn send(socket: UdpSocket, to: SocketAddr) -> io::Error {
    match send_on(&socket, to).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn send_on(socket: &UdpSocket, to: SocketAddr) -> io::Result<Infallible> {
    loop {
        match socket.send_to(&PACKET, to) {
            // A full buffer is one packet less; an unreachable peer is why we are here.
            Err(error) if !is_passing(&error) => return Err(error),
            _ => tokio::time::sleep(EVERY).await,
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionRefused | ConnectionReset | HostUnreachable)
}
