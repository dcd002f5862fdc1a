//! Accepting callers' TCP connections, within a bound.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config::{GatewayConfig, Listen, StartError};
use super::serve::{Caller, Core};
use super::settle::settled;
use super::socket::{Busy, Socket};

/// Ports tried above a default one that is taken.
const PORTS_TRIED: u16 = 100;
/// Largest request head, and largest read, in bytes.
const BUFFER_MAX: usize = 64 * 1024;
/// Connections that [`GatewayConfig::connections_max`] allows when unset and the system allows more.
const CONNECTIONS_DEFAULT: usize = 4096;
/// Open files left for everything but callers and their backends.
const FILES_RESERVED: usize = 128;
/// Between two log lines about refused connections.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(60);
/// Between two rounds over idle backend connections.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// After a failed accept (too many open files), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What a connection over the bound is told.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 126\r\n\r\n\
    {\"error\":{\"message\":\"This gateway has all the connections it can hold.\",\"type\":\"server_error\",\"param\":null,\"code\":\"too_busy\"}}";

/// Binds as [`Listen`] says.
pub(crate) async fn bind(listen: Listen) -> Result<TcpListener, StartError> {
    let first = listen.addr();
    let mut addr = first;
    let mut tried = 0;
    loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => {
                if addr != first {
                    tracing::info!(
                        taken = first.port(),
                        port = addr.port(),
                        "the default API port is taken, using the next free one"
                    );
                }
                return Ok(listener);
            }
            Err(source) => {
                let may_move =
                    matches!(listen, Listen::FirstFreeFrom(_)) && source.kind() == io::ErrorKind::AddrInUse;
                let next = addr.port().checked_add(1).filter(|_| may_move && tried < PORTS_TRIED);
                let Some(next) = next else {
                    return Err(StartError::Bind { addr, source });
                };
                tried += 1;
                addr.set_port(next);
            }
        }
    }
}

/// Connections to take at a time: each may need a second file for its backend. Says what it comes to.
pub(crate) fn connections_max(config: &GatewayConfig) -> usize {
    let file_limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let files = file_limit.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX);
    let room = (files.saturating_sub(FILES_RESERVED) / 2).max(1);
    let wanted = config.connections_max.unwrap_or(CONNECTIONS_DEFAULT);
    let cap = wanted.clamp(1, room);
    if cap < wanted {
        tracing::warn!(
            connections_max = cap,
            file_limit,
            "few open files are allowed, so the gateway takes few callers at a time; raise the limit with `ulimit -n`"
        );
    } else {
        tracing::info!(connections_max = cap, file_limit, "gateway started");
    }
    cap
}

/// Accepts until `stop`, then lets answers under way go on until the drain time is over. Owns every connection's task.
pub(crate) async fn run(listener: TcpListener, core: Arc<Core>, stop: CancellationToken) {
    let cap = connections_max(&core.config);
    let room = Arc::new(Semaphore::new(cap));
    let mut connections = JoinSet::new();
    let mut refusals = Refusals { count: 0, logged: None, cap };
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = connections.join_next() => report_panic(ended),
            accepted = listener.accept() => match accepted {
                Ok((tcp, from)) => match room.clone().try_acquire_owned() {
                    Ok(permit) => {
                        let served = serve(tcp, from, core.clone(), stop.clone(), permit);
                        connections.spawn(served);
                    }
                    Err(_) => refusals.refuse(&tcp),
                },
                Err(error) => {
                    tracing::debug!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            _ = sweep.tick() => {
                core.pool.sweep();
                core.replicas.sweep();
            }
        }
    }
    drop(listener);
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            report_panic(ended);
        }
    };
    if tokio::time::timeout(core.config.drain, drained).await.is_err() {
        connections.shutdown().await;
    }
}

async fn serve(
    tcp: TcpStream,
    from: SocketAddr,
    core: Arc<Core>,
    stop: CancellationToken,
    permit: OwnedSemaphorePermit,
) {
    let _permit = permit;
    let _counted = core.stats.connection();
    if let Err(error) = tcp.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
        return;
    }
    let busy = Busy::default();
    let config = &core.config;
    let socket = Socket::new(tcp, busy.clone(), config.header_timeout, config.write_timeout);
    let service = service_fn(|request: Request<Incoming>| {
        let core = core.clone();
        let busy = busy.clone();
        async move {
            let guard = busy.begin();
            let has_body = !request.body().is_end_stream();
            let answer = core.answer(&Caller::Local, request).await;
            if has_body && !answer.status().is_success() {
                busy.refused();
            }
            Ok::<_, std::convert::Infallible>(answer.map(|reply| reply.until_sent(guard)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.idle_timeout)
        .max_buf_size(BUFFER_MAX)
        .serve_connection(TokioIo::new(socket), service);
    let ended = settled(async {
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(%from, error = super::relay::chain(&error), "connection ended");
    }
}

/// Connections turned away since the last log line.
struct Refusals {
    count: u64,
    logged: Option<Instant>,
    cap: usize,
}

impl Refusals {
    fn refuse(&mut self, tcp: &TcpStream) {
        // The socket's buffer is empty, so these bytes fit or the caller is gone.
        let _ = tcp.try_write(REFUSAL);
        self.count += 1;
        let now = Instant::now();
        if self.logged.is_none_or(|at| now.duration_since(at) >= REFUSALS_LOGGED_EVERY) {
            tracing::warn!(
                connections_max = self.cap,
                refused = self.count,
                "refusing connections: the gateway is full"
            );
            self.logged = Some(now);
            self.count = 0;
        }
    }
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}
