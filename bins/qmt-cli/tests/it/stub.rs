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
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A request as it came: `METHOD path`, the query, and the body, null when it is no JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    pub(crate) what: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

/// What is answered: a status, and a body that is JSON or, when it begins with `data:` or `id:`, a stream of events. One that
/// ends in [`NO_END`] stays open until something else is posted.
pub(crate) type Reply = (u16, String);

/// At the end of a body: that there is none.
pub(crate) const NO_END: &str = "(no end)";

/// Sends its bytes at once, and then ends, or stays open until something else is posted.
struct Sent {
    bytes: Option<Bytes>,
    open: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Sent {
    fn new(text: &str, mut posted: watch::Receiver<u64>) -> Self {
        let cut = text.strip_suffix(NO_END);
        let open = async move {
            let _ = posted.changed().await; // the server may end before
        };
        let bytes = Some(Bytes::from(cut.unwrap_or(text).to_owned()));
        Self { bytes, open: cut.is_some().then_some(Box::pin(open)) }
    }
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(bytes) = self.bytes.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match &mut self.open {
            Some(open) => open.as_mut().poll(cx).map(|()| None),
            None => Poll::Ready(None),
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
        let (seen, posted) = (Arc::clone(&asked), watch::Sender::new(0));
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&seen), Arc::clone(&answer), posted.clone()));
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
        let (seen, posted) = (Arc::clone(&asked), watch::Sender::new(0));
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&seen), Arc::clone(&answer), posted.clone()));
            }
        });
        (Self { asked, _task: task }, addr)
    }

    /// The queries of all requests of this kind, in order.
    pub(crate) fn queries(&self, what: &str) -> Vec<String> {
        let asked = self.asked.lock().expect("no panic");
        asked.iter().filter(|asked| asked.what == what).map(|asked| asked.query.clone()).collect()
    }

    /// The bodies of all requests of this kind, in order.
    pub(crate) fn bodies(&self, what: &str) -> Vec<Value> {
        let asked = self.asked.lock().expect("no panic");
        asked.iter().filter(|asked| asked.what == what).map(|asked| asked.body.clone()).collect()
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    seen: Arc<Mutex<Vec<Asked>>>,
    answer: Answers,
    posted: watch::Sender<u64>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (seen, answer, posted) = (Arc::clone(&seen), Arc::clone(&answer), posted.clone());
        async move {
            let what = format!("{} {}", request.method(), request.uri().path());
            let query = request.uri().query().unwrap_or_default().to_owned();
            let body = request.into_body().collect().await.expect("a body").to_bytes();
            let asked = Asked { what, query, body: serde_json::from_slice(&body).unwrap_or(Value::Null) };
            let number = {
                let mut seen = seen.lock().expect("no panic");
                seen.push(asked.clone());
                seen.len() - 1
            };
            let (status, body) = answer(&asked, number);
            if asked.what.starts_with("POST") {
                posted.send_modify(|count| *count += 1);
            }
            let kind = if body.starts_with("data:") || body.starts_with("id:") {
                "text/event-stream"
            } else {
                "application/json"
            };
            let response = Response::builder().status(status).header("content-type", kind);
            Ok::<_, Infallible>(response.body(Sent::new(&body, posted.subscribe())).expect("a response"))
        }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}
