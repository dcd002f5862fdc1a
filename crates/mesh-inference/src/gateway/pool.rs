//! Kept-alive connections to backends.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::Uri;
use http::uri::{Authority, Scheme};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tower_service::Service;

use super::wire::Wire;

/// Idle connections kept for each backend: as many as a llama-server has slots on large machines.
const IDLE_MAX: usize = 64;
/// llama-server closes an idle connection after 5 s; leaving first avoids sending into a closing one.
const IDLE_TIME: Duration = Duration::from_secs(4);

/// Why no connection to a backend could be made. Nothing was sent: another backend can be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// No answer in time.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// The URL has no host, or a scheme other than http and https.
    #[error("its URL is neither http nor https")]
    BadUrl,
    /// Refused, unreachable or no such name.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Transport security failed.
    #[error("{0}")]
    Tls(String),
    /// HTTP could not start.
    #[error("{0}")]
    Http(#[from] hyper::Error),
}

/// Connections by backend address. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    idle: Mutex<HashMap<Key, Vec<Idle>>>,
    tls: HttpsConnector<HttpConnector>,
    connect_timeout: Duration,
}

/// Scheme (whether https) and authority.
pub(crate) type Key = (bool, Authority);

struct Idle {
    wire: Wire,
    since: Instant,
}

/// Resolves with a reason when a far end is not to be heard any more.
pub(crate) type CutOff = BoxFuture<'static, &'static str>;

/// A connection out of the pool. Dropping it closes the connection; [`Lease::give_back`] keeps it.
pub(crate) struct Lease {
    pub(crate) wire: Wire,
    /// Whether it has carried a request before: its far end may have closed it in this moment.
    pub(crate) reused: bool,
    /// Resolves, and says why, when the far end is not to be heard any more: nothing that it has sent goes further.
    cut_off: Option<CutOff>,
    home: Option<(Pool, Key)>,
}

impl Lease {
    /// A connection to a peer, for one request alone.
    pub(crate) fn once(wire: Wire, cut_off: CutOff) -> Self {
        Self { wire, reused: false, cut_off: Some(cut_off), home: None }
    }

    /// A connection within this process, for one request alone.
    pub(crate) fn inside(wire: Wire) -> Self {
        Self { wire, reused: false, cut_off: None, home: None }
    }

    /// The same connection, to be cut off when this says so.
    pub(crate) fn until(self, cut_off: CutOff) -> Self {
        Self { cut_off: Some(cut_off), ..self }
    }

    /// Why the far end was cut off, once it was.
    pub(crate) fn poll_cut_off(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        match &mut self.cut_off {
            Some(cut_off) => cut_off.poll_unpin(cx),
            None => Poll::Pending,
        }
    }

    /// Returns the connection to its pool when it can carry another request, and closes it else.
    pub(crate) fn give_back(mut self) {
        if let Some((pool, key)) = self.home.take()
            && self.wire.is_reusable()
        {
            pool.keep(key, self.wire);
        }
    }
}

impl Pool {
    pub(crate) fn new(connect_timeout: Duration) -> Result<Self, rustls::Error> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let tls = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())?
            .https_only()
            .enable_http1()
            .wrap_connector(tcp);
        let shared = Shared { idle: Mutex::default(), tls, connect_timeout };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// An idle connection to `url`'s host, else a new one. Cancel safe: a connection half made is closed.
    pub(crate) async fn lease(&self, url: &Uri) -> Result<Lease, ConnectError> {
        let key = key_of(url)?;
        if let Some(wire) = self.take(&key) {
            return Ok(Lease { wire, reused: true, cut_off: None, home: Some((self.clone(), key)) });
        }
        // Boxed, here and for peers: what connecting needs would make the future of every request several times as large.
        Box::pin(self.fresh(url)).await
    }

    /// A new connection to `url`'s host.
    pub(crate) async fn fresh(&self, url: &Uri) -> Result<Lease, ConnectError> {
        let key = key_of(url)?;
        let limit = self.shared.connect_timeout;
        let connect = async {
            if key.0 {
                let io = self
                    .shared
                    .tls
                    .clone()
                    .call(url.clone())
                    .await
                    .map_err(|e| ConnectError::Tls(e.to_string()))?;
                Ok::<Wire, ConnectError>(Wire::new(TokioIo::new(io)).await?)
            } else {
                let host = key.1.host();
                let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
                let io = TcpStream::connect((host, key.1.port_u16().unwrap_or(80))).await?;
                io.set_nodelay(true)?;
                Ok(Wire::new(io).await?)
            }
        };
        let wire = tokio::time::timeout(limit, connect).await.map_err(|_| ConnectError::Timeout(limit))??;
        Ok(Lease { wire, reused: false, cut_off: None, home: Some((self.clone(), key)) })
    }

    /// Closes connections that have been idle too long. Called by the gateway about once a second.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        let mut idle = self.idle();
        idle.retain(|_, wires| {
            wires.retain_mut(|idle| now.duration_since(idle.since) < IDLE_TIME && idle.wire.is_reusable());
            !wires.is_empty()
        });
    }

    fn take(&self, key: &Key) -> Option<Wire> {
        let now = Instant::now();
        let mut idle = self.idle();
        let wires = idle.get_mut(key)?;
        while let Some(mut found) = wires.pop() {
            if now.duration_since(found.since) < IDLE_TIME && found.wire.is_reusable() {
                return Some(found.wire);
            }
        }
        None
    }

    fn keep(&self, key: Key, wire: Wire) {
        let mut idle = self.idle();
        let wires = idle.entry(key).or_default();
        if wires.len() < IDLE_MAX {
            wires.push(Idle { wire, since: Instant::now() });
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Vec<Idle>>> {
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key_of(url: &Uri) -> Result<Key, ConnectError> {
    let authority = url.authority().ok_or(ConnectError::BadUrl)?.clone();
    match url.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => Ok((false, authority)),
        Some(scheme) if *scheme == Scheme::HTTPS => Ok((true, authority)),
        _ => Err(ConnectError::BadUrl),
    }
}
