//! The server: from a listener to requests of proven callers.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures_util::TryFutureExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_identity::NodeName;
use mesh_identity::ca::Leaf;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::api::{self, Api};
use super::desk::{Caller, Desk};
use super::directory::Directory;
use super::fault::Code;
use super::handshake::{self, Refusal, Refused};
use super::heads::Heads;
use super::limits::Limits;
use super::metrics::{Counters, Stats};
use super::once::Once;
use super::open::{Entered, Side};
use super::paced::Paced;
use super::tls::Tls;

/// How often certificates that end while their connections are open are looked for: they live for hours.
const SWEEP: Duration = Duration::from_secs(60);
/// After a failure to accept, such as too many open files.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// The most of a request's head that is read, and of an answer that is held back.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// An agent channel that listens. Clones are handles; when the last is dropped everything ends at once, so call
/// [`Server::shutdown`].
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    _last_handle: Arc<DropGuard>,
}

struct Shared {
    address: SocketAddr,
    api: Arc<Api>,
    router: Router,
    /// Connections without a certificate yet, by address.
    handshakes: Arc<Places<IpAddr>>,
    /// Connections with one, by its name.
    connections: Arc<Places<NodeName>>,
    /// No more connections and requests.
    closing: CancellationToken,
    /// Everything ends.
    ended: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Serves connections of the listener. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start(
        listener: TcpListener,
        tls: Tls,
        desk: Arc<dyn Desk>,
        directory: Arc<dyn Directory>,
        limits: Limits,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (closing, ended, tasks) =
            (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let api = Arc::new(Api {
            clock: tls.clock(),
            tls,
            desk,
            directory,
            once: Once::new(limits.clone()),
            counters: Arc::new(Counters::default()),
            tasks: tasks.clone(),
            stop: ended.clone(),
            limits: limits.clone(),
        });
        let router = api::router(api.clone());
        let shared = Arc::new(Shared {
            address,
            router,
            handshakes: Places::new(limits.handshakes_max, limits.handshakes_of_one_max),
            connections: Places::new(limits.connections_max, limits.connections_of_one_max),
            api,
            closing,
            ended: ended.clone(),
            tasks,
        });
        shared.tasks.spawn(shared.clone().listen(listener));
        shared.tasks.spawn(shared.clone().sweep());
        Ok(Self { shared, _last_handle: Arc::new(ended.drop_guard()) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Counters of this moment.
    pub fn stats(&self) -> Stats {
        let (api, connections) = (&self.shared.api, self.shared.connections.taken());
        api.counters.stats(connections, api.once.under_way())
    }

    /// Takes no more requests, lets those under way end for [`Limits::shutdown`], and ends what is left. Idempotent.
    pub async fn shutdown(&self) {
        let shared = &self.shared;
        shared.closing.cancel();
        shared.tasks.close();
        if tokio::time::timeout(shared.api.limits.shutdown, shared.tasks.wait()).await.is_err() {
            tracing::debug!("requests of the agent channel did not end in time and are ended");
        }
        shared.ended.cancel();
        shared.tasks.wait().await;
    }
}

impl Shared {
    async fn listen(self: Arc<Self>, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                () = self.ended.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => {
                    // Beyond the bound the connection is closed as it came: who can wait tries again.
                    let Some(place) = self.handshakes.take(from.ip().to_canonical()) else {
                        self.api.counters.not_shaken(Refusal::Busy);
                        continue;
                    };
                    let shared = self.clone();
                    self.tasks.spawn(async move {
                        let ended = shared.ended.clone();
                        tokio::select! {
                            () = ended.cancelled() => {}
                            () = shared.connection(stream, from.ip().to_canonical(), place) => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "the agent channel cannot accept a connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }

    async fn sweep(self: Arc<Self>) {
        let mut often = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = self.ended.cancelled() => return,
                _ = often.tick() => drop(self.api.tls.close_refused()),
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, from: IpAddr, place: Place<IpAddr>) {
        // Answers are small, and somebody waits for them.
        let _ = stream.set_nodelay(true);
        let shaken = self.handshake(stream).await;
        drop(place);
        match shaken {
            Err(Refused { why, words }) => {
                self.api.counters.not_shaken(why);
                tracing::warn!("TLS handshake failed from {from}: {words}");
            }
            Ok((stream, leaf, entered)) => {
                self.api.counters.shaken();
                let Some(_place) = self.connections.take(leaf.name.clone()) else {
                    tracing::warn!(peer.cn = %leaf.name, "too many open connections: one more is closed");
                    return;
                };
                let caller = Caller { leaf: Arc::new(leaf), address: from };
                self.serve(stream, caller, entered).await;
            }
        }
    }

    /// A handshake, with what the other end has proved.
    async fn handshake(&self, stream: TcpStream) -> Result<(TlsStream<TcpStream>, Leaf, Entered), Refused> {
        let limit = self.api.limits.handshake;
        let in_use = self.api.tls.in_use();
        let accept = TlsAcceptor::from(in_use.server.clone()).accept(stream);
        let stream = tokio::select! {
            () = self.closing.cancelled() => {
                return Err(Refused::new(Refusal::Other, "the node is shutting down"));
            }
            shaken = tokio::time::timeout(limit, accept) => match shaken {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return Err(handshake::refused(&error)),
                Err(_) => {
                    let words = format!("no handshake within {} s", limit.as_secs_f32());
                    return Err(Refused::new(Refusal::Broken, words));
                }
            },
        };
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let none = || Refused::new(Refusal::NoCertificate, "peer did not return a certificate");
        let own = chain.first().ok_or_else(none)?;
        let leaf =
            Leaf::read(own).map_err(|error| Refused::new(Refusal::BadCertificate, error.to_string()))?;
        let entered = self.api.tls.enter(&in_use, Side::Client, chain, &leaf)?;
        Ok((stream, leaf, entered))
    }

    async fn serve(&self, stream: TlsStream<TcpStream>, caller: Caller, entered: Entered) {
        let (router, who, counters) = (self.router.clone(), caller.clone(), self.api.counters.clone());
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(who.clone());
            let counters = counters.clone();
            router.clone().oneshot(request.map(Body::new)).inspect_ok(move |response| {
                if let Some(code) = response.extensions().get::<Code>() {
                    counters.refused(*code);
                }
            })
        });
        let io = TokioIo::new(Paced::new(stream, self.api.limits.stalled));
        let mut builder = http1::Builder::new();
        builder
            .timer(Heads::default())
            .header_read_timeout(self.api.limits.head)
            .max_buf_size(BUFFER_BYTES_MAX);
        let mut connection = pin!(builder.serve_connection(io, service));
        let mut is_closing = false;
        loop {
            tokio::select! {
                biased;
                () = entered.close.cancelled() => {
                    self.api.counters.cut();
                    tracing::info!(peer.cn = %caller.leaf.name, "the certificate is accepted no more: its connection is closed");
                    return;
                }
                () = self.closing.cancelled(), if !is_closing => {
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(peer.cn = %caller.leaf.name, %error, "a connection ended");
                    }
                    return;
                }
            }
        }
    }
}

/// A bounded number of places, and of those that one may have.
struct Places<K> {
    max: usize,
    of_one_max: usize,
    taken: Mutex<(usize, HashMap<K, usize>)>,
}

/// A place that is given back when it is dropped.
struct Place<K: Eq + Hash> {
    places: Arc<Places<K>>,
    of: K,
}

impl<K: Eq + Hash + Clone> Places<K> {
    fn new(max: usize, of_one_max: usize) -> Arc<Self> {
        Arc::new(Self { max, of_one_max, taken: Mutex::default() })
    }

    fn take(self: &Arc<Self>, of: K) -> Option<Place<K>> {
        let mut taken = self.lock();
        let of_one = taken.1.get(&of).copied().unwrap_or_default();
        if taken.0 >= self.max || of_one >= self.of_one_max {
            return None;
        }
        taken.0 += 1;
        taken.1.insert(of.clone(), of_one + 1);
        Some(Place { places: self.clone(), of })
    }
}

impl<K: Eq + Hash> Places<K> {
    fn taken(&self) -> usize {
        self.lock().0
    }

    fn lock(&self) -> MutexGuard<'_, (usize, HashMap<K, usize>)> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.0 -= 1;
        if let Some(count) = taken.1.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                taken.1.remove(&self.of);
            }
        }
    }
}
