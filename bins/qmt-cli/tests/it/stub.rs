//! Servers that play a part: the control API of a node, and an OpenAI-compatible server.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

/// A request as it came: `METHOD path`, and the body, null when it is no JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    pub(crate) what: String,
    pub(crate) body: Value,
}

/// What is answered: a status, and a body that is JSON or, when it begins with `data:`, a stream of events. One that ends in
/// [`NO_END`] stays open.
pub(crate) type Reply = (u16, String);

/// At the end of a body: that there is none.
pub(crate) const NO_END: &str = "(no end)";

/// Sends its bytes at once, and then ends or stays open.
struct Sent {
    bytes: Option<Bytes>,
    ends: bool,
}

impl Sent {
    fn new(text: &str) -> Self {
        let cut = text.strip_suffix(NO_END);
        Self { bytes: Some(Bytes::from(cut.unwrap_or(text).to_owned())), ends: cut.is_none() }
    }
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.bytes.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

type Answers = Arc<dyn Fn(&Asked, usize) -> Reply + Send + Sync>;

/// A server that answers by a function of the request and its number among all, from 0.
pub(crate) struct Stub {
    asked: Arc<Mutex<Vec<Asked>>>,
    _task: JoinSet<()>,
}

impl Stub {
    /// Plays the control API of a node whose files are in `home`.
    pub(crate) fn control(
        home: &Path,
        answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = UnixListener::bind(mesh_control::socket_path(home)).expect("a socket");
        let (asked, answer): (_, Answers) = (Arc::default(), Arc::new(answer));
        let mut task = JoinSet::new();
        let seen = Arc::clone(&asked);
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&seen), Arc::clone(&answer)));
            }
        });
        Self { asked, _task: task }
    }

    /// Plays a server of models.
    pub(crate) async fn openai(
        answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static,
    ) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let (asked, answer): (_, Answers) = (Arc::default(), Arc::new(answer));
        let mut task = JoinSet::new();
        let seen = Arc::clone(&asked);
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&seen), Arc::clone(&answer)));
            }
        });
        (Self { asked, _task: task }, addr)
    }

    /// The bodies of all requests of this kind, in order.
    pub(crate) fn bodies(&self, what: &str) -> Vec<Value> {
        let asked = self.asked.lock().expect("no panic");
        asked.iter().filter(|asked| asked.what == what).map(|asked| asked.body.clone()).collect()
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, seen: Arc<Mutex<Vec<Asked>>>, answer: Answers) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
        async move {
            let what = format!("{} {}", request.method(), request.uri().path());
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let asked = Asked { what, body: serde_json::from_slice(&body).unwrap_or(Value::Null) };
            let number = {
                let mut seen = seen.lock().expect("no panic");
                seen.push(asked.clone());
                seen.len() - 1
            };
            let (status, body) = answer(&asked, number);
            let kind = if body.starts_with("data:") { "text/event-stream" } else { "application/json" };
            let response = Response::builder().status(status).header("content-type", kind);
            Ok::<_, Infallible>(response.body(Sent::new(&body)).expect("a response"))
        }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}
