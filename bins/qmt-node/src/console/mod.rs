//! The console: a page for a browser on this machine, and the control API under it.
//!
//! Who may come in is decided in three places, in this order: [`guard`] keeps out what does not come from this page (other
//! sites, rebound names), [`door`] those who show no cookie, [`guard`] again what a watcher may not do.

mod chat;
mod door;
mod guard;
mod page;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::serve::Listener;
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{StatusCode, header};
use mesh_control::{ApiError, ConsoleClosed, ConsoleLink, ErrorCode, LinkRequest};
use mesh_identity::UnixTime;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::config::Listener as Wanted;
use crate::control::failure;
use crate::node::Node;
use crate::store::{Store, StoreError};
use chat::Chat;
pub(crate) use door::{Access, Door};
use guard::Own;

/// Ports tried above the default one when that is taken.
const PORTS_TRIED: u16 = 100;
/// Connections at a time: a browser opens six, and a dozen people with two tabs each are many for one machine.
const CONNECTIONS_MAX: usize = 256;
/// The longest text that is made a QR code of, bytes: the most that a code holds.
const QR_BYTES_MAX: usize = 4096;

/// The console's socket, bound and not served yet.
#[derive(Debug)]
pub(crate) struct Console {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Console {
    /// Binds the port: the default one moves to the next free one when it is taken, one that was asked for does not.
    pub(crate) async fn bind(wanted: &Wanted) -> io::Result<Self> {
        let mut addr = wanted.addr;
        for _ in 0..PORTS_TRIED {
            match TcpListener::bind(addr).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && !wanted.asked => {
                    let Some(next) = addr.port().checked_add(1) else { return Err(error) };
                    addr.set_port(next);
                }
                bound => {
                    let listener = bound?;
                    let addr = listener.local_addr()?;
                    if addr.port() != wanted.addr.port() && !wanted.asked {
                        tracing::info!(
                            taken = wanted.addr.port(),
                            port = addr.port(),
                            "the default port of the console is taken, using the next free one"
                        );
                    }
                    return Ok(Self { listener, addr });
                }
            }
        }
        Err(io::Error::from(io::ErrorKind::AddrInUse))
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves the page and the API of `node` until `stop`; event streams end with the node.
    pub(crate) async fn serve(self, node: Node, door: Arc<Door>, stop: CancellationToken) {
        let app = router(node, door, self.addr);
        let served =
            axum::serve(Bounded::new(self.listener), app).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "the console failed");
        }
    }
}

#[derive(Clone)]
struct Doors {
    door: Arc<Door>,
    own: Own,
}

fn router(node: Node, door: Arc<Door>, addr: SocketAddr) -> Router {
    let doors = Doors { door, own: Own::new(addr) };
    let chat = Chat::new(&node);
    // No name stands in them, so whoever is on this machine may read them, as monitoring does.
    let metrics = get(crate::control::metrics).with_state(node.clone());
    let inside = crate::control::router(node)
        .route("/console/qr", post(qr).layer(DefaultBodyLimit::max(QR_BYTES_MAX)))
        .route("/console/access", get(access))
        .route("/v1/{*rest}", any(chat::forward).with_state(chat))
        .layer(axum::middleware::from_fn_with_state(doors.clone(), guard::admitted));
    Router::new()
        .route("/open", get(open).with_state(doors.clone()))
        .route("/console/leave", post(leave).with_state(doors.clone()))
        .route("/metrics", metrics)
        .merge(page::routes())
        .fallback_service(inside)
        .layer(axum::middleware::from_fn_with_state(doors.own, guard::own_page))
}

#[derive(Deserialize)]
struct OpenQuery {
    key: String,
}

/// The one-time link: its key for a cookie.
async fn open(State(doors): State<Doors>, Query(query): Query<OpenQuery>) -> Response {
    match doors.door.open(&query.key, UnixTime::now()) {
        Some(cookie) => {
            let cookie = doors.own.set_cookie(&cookie);
            (StatusCode::SEE_OTHER, [(header::SET_COOKIE, cookie), (header::LOCATION, "/".to_owned())])
                .into_response()
        }
        None => page::stale(),
    }
}

/// Takes this browser's cookie away.
async fn leave(State(doors): State<Doors>) -> Response {
    (StatusCode::NO_CONTENT, [(header::SET_COOKIE, doors.own.clear_cookie())]).into_response()
}

/// What the page may offer: everything, or a look.
async fn access(axum::Extension(access): axum::Extension<Access>) -> Response {
    Json(serde_json::json!({ "access": access.word() })).into_response()
}

/// An invite's link as SVG. The text is in the body, so that no log line and no history holds it.
async fn qr(body: String) -> Response {
    match mesh_identity::qr::svg(&body) {
        Ok(svg) => ([(header::CONTENT_TYPE, "image/svg+xml")], Body::from(svg)).into_response(),
        Err(error) => failure(&ApiError::new(ErrorCode::TooLarge, error.to_string())),
    }
}

fn no_console() -> ApiError {
    let error = ApiError::new(ErrorCode::Unavailable, "this node runs no console");
    error.with_mend("start it with `qmt-node --console`, or put [console] into its configuration")
}

impl Node {
    /// A link that opens the console once.
    ///
    /// # Errors
    /// There is no console.
    pub(crate) fn console_link(&self, request: &LinkRequest) -> Result<ConsoleLink, ApiError> {
        let Some((url, door)) = self.console() else { return Err(no_console()) };
        let access = if request.read_only { Access::Watch } else { Access::Full };
        let (key, until) = door.link(access, UnixTime::now());
        Ok(ConsoleLink {
            url: format!("{url}/open?key={key}"),
            expires_at: until.0,
            read_only: request.read_only,
        })
    }

    /// Signs every browser out, and ends the links that were not used.
    ///
    /// # Errors
    /// There is no console, or the database could not be written: then everybody stays signed in.
    pub(crate) async fn close_console(&self) -> Result<ConsoleClosed, ApiError> {
        let Some((_, door)) = self.console() else { return Err(no_console()) };
        let secret = new_secret(self.store())
            .await
            .map_err(|error| ApiError::new(ErrorCode::Internal, format!("nobody was signed out: {error}")))?;
        door.close(&secret);
        Ok(ConsoleClosed {})
    }
}

/// Under which key of the node's database the secret of the cookies is kept.
const SECRET_KEY: &str = "console_secret";

/// The secret of the cookies, made on first use: browsers stay signed in when the node starts again.
pub(crate) async fn secret(store: &Store) -> Result<Vec<u8>, StoreError> {
    let kept = store.kv(SECRET_KEY).await?.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
    match kept.filter(|secret| secret.len() == SECRET_BYTES) {
        Some(secret) => Ok(secret),
        None => new_secret(store).await,
    }
}

const SECRET_BYTES: usize = 32;

async fn new_secret(store: &Store) -> Result<Vec<u8>, StoreError> {
    let secret = rand::random::<[u8; SECRET_BYTES]>().to_vec();
    store.set_kv(SECRET_KEY, Some(&URL_SAFE_NO_PAD.encode(&secret))).await?;
    Ok(secret)
}

/// Connections within [`CONNECTIONS_MAX`].
struct Bounded {
    listener: TcpListener,
    room: Arc<Semaphore>,
}

impl Bounded {
    fn new(listener: TcpListener) -> Self {
        Self { listener, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl Listener for Bounded {
    type Io = Held;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Held, SocketAddr) {
        let room = self.room.clone().acquire_owned().await.expect("nobody closes the semaphore");
        let (stream, addr) = Listener::accept(&mut self.listener).await;
        (Held { stream, _room: room }, addr)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with its place.
struct Held {
    stream: TcpStream,
    _room: OwnedSemaphorePermit,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
