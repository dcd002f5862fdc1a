//! The side that is watched: lets peers in by their tokens and holds their connections.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, PoisonError},
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::{Inner, TOKEN_BYTES, Token, is_own, over};
use crate::connection::Origin;

/// From accepting a connection to its whole token, which who connects has at hand (once it has asked anew: a second).
const TOKEN_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections that the system keeps for us until we accept them.
const BACKLOG: i32 = 128;
/// The wait after the system has refused us a connection, such as for want of files.
const PAUSE: Duration = Duration::from_millis(200);

/// The port at which a peer there finds us; listens from the first time on.
pub(super) fn port_for(inner: &Arc<Inner>, remote: IpAddr) -> io::Result<u16> {
    let mut listeners = inner.pulses.listeners.lock().unwrap_or_else(PoisonError::into_inner);
    let at = match remote {
        // A node that only its own machine knows is open to no other.
        IpAddr::V4(ip) if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) if is_own(remote) => remote,
        _ => Ipv6Addr::UNSPECIFIED.into(),
    };
    if let Some(port) = listeners.get(&at) {
        return Ok(*port);
    }
    let listener = bind(at).or_else(|error| match at {
        // A machine without IPv6.
        IpAddr::V6(ip) if ip.is_unspecified() => bind(Ipv4Addr::UNSPECIFIED.into()).map_err(|_| error),
        _ => Err(error),
    })?;
    let port = listener.local_addr()?.port();
    listeners.insert(at, port);
    inner.tasks.spawn(accept(inner.clone(), listener));
    Ok(port)
}

fn bind(ip: IpAddr) -> io::Result<TcpListener> {
    let addr = SocketAddr::new(ip, 0);
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    if ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(inner: Arc<Inner>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = over(&inner) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, from)) => {
                inner.tasks.spawn(serve(inner.clone(), socket, from.ip().to_canonical()));
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "no pulse could be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(inner: Arc<Inner>, mut socket: TcpStream, from: IpAddr) {
    let Some(place) = inner.pulses.gate.enter(Origin::Ip(from)) else { return };
    let mut token: Token = [0; TOKEN_BYTES];
    let shown = tokio::select! {
        () = over(&inner) => return,
        shown = tokio::time::timeout(TOKEN_TIMEOUT, socket.read_exact(&mut token)) => shown,
    };
    if !matches!(shown, Ok(Ok(_))) {
        return;
    }
    let Some((watched, answer)) = inner.pulses.redeem(&token) else { return };
    let held = CancellationToken::new();
    if let Some(before) = watched.lock().held.replace(held.clone()) {
        before.cancel();
    }
    // The answer fits into any socket's buffer.
    if socket.write_all(&answer).await.is_err() {
        return;
    }
    drop(place);
    tokio::select! {
        () = over(&inner) => {}
        () = watched.unlinked.cancelled() => {}
        () = held.cancelled() => {}
        // Whatever comes ends it: nothing is to be said any more.
        _ = socket.read_u8() => {}
    }
}
