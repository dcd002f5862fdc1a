//! An OpenAI-compatible server that says what a test wants, and sees who leaves.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_inference::backend::Share;
use qmt_node::config::{Provider, ProviderKind, Quota};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::PATIENCE;

/// The answer of a model that does not hang, in the pieces in which it is sent. Odd spaces, cut letters and an empty line:
/// whatever is put together again differently shows.
pub(crate) const PIECES: [&[u8]; 5] = [
    b"data: {\"choices\":[{\"delta\":{\"content\":\"one \"}}]}\n\n",
    b"data:  {\"choices\" : [{\"delta\":{\"content\":\"tw\xc3",
    b"\xb6\"}}]}\r\n\r\n",
    b": a comment\n\n",
    b"data: [DONE]\n\n",
];

/// A model of this name sends its first piece and then nothing.
pub(crate) const HANGS: &str = "hangs";

/// A model whose name begins so sends pieces for as long as somebody takes them.
pub(crate) const FLOODS: &str = "floods";

pub(crate) struct Stub {
    pub(crate) addr: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    models: Vec<String>,
    /// Whether the list of models is answered.
    lists: watch::Sender<bool>,
    /// Answers that are being sent.
    open: watch::Sender<usize>,
    bodies: Mutex<Vec<Bytes>>,
}

impl Stub {
    pub(crate) async fn start(models: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(Shared {
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            lists: watch::Sender::new(true),
            open: watch::Sender::new(0),
            bodies: Mutex::default(),
        });
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(accept(listener, shared.clone()));
        Self { addr, shared, task }
    }

    /// The same server as a node's configuration names it.
    pub(crate) fn provider(&self) -> Provider {
        Provider {
            name: "stub".to_owned(),
            kind: ProviderKind::OpenAi,
            base_url: format!("http://{}/v1", self.addr).parse().unwrap(),
            api_key: None,
            models: self.shared.models.clone(),
            share: Share::Members,
            quota: Quota::default(),
            price: None,
        }
    }

    /// Keeps those waiting who ask for the list of models, until it is called with true.
    pub(crate) fn lists(&self, answers: bool) {
        self.shared.lists.send_replace(answers);
    }

    pub(crate) async fn wait_open(&self, count: usize) {
        let mut open = self.shared.open.subscribe();
        let waited = tokio::time::timeout(PATIENCE, open.wait_for(|open| *open == count)).await;
        waited.unwrap_or_else(|_| panic!("never {count} answers under way at the server")).unwrap();
    }

    /// The bodies of the requests that were sent to it.
    pub(crate) fn bodies(&self) -> Vec<Bytes> {
        self.shared.bodies.lock().unwrap().clone()
    }

    /// Ends it in the middle of whatever it does.
    pub(crate) async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let shared = shared.clone();
        connections.spawn(async move {
            let service = service_fn(|request| answer(shared.clone(), request));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await;
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    if request.uri().path() == "/v1/models" {
        let _ = shared.lists.subscribe().wait_for(|answers| *answers).await;
        let data: Vec<_> = shared.models.iter().map(|id| json!({ "id": id, "object": "model" })).collect();
        let list = json!({ "object": "list", "data": data }).to_string();
        return Ok(Response::new(Full::new(Bytes::from(list)).boxed()));
    }
    let body = request.into_body().collect().await?.to_bytes();
    let asked: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    shared.bodies.lock().unwrap().push(body);
    let hangs = asked["model"] == HANGS;
    let body = match asked["model"].as_str() {
        Some(model) if model.starts_with(FLOODS) => StreamBody::new(flood(shared)).boxed(),
        _ => StreamBody::new(pieces(shared, hangs)).boxed(),
    };
    Ok(Response::builder().header("content-type", "text/event-stream").body(body).unwrap())
}

/// Counts an answer for as long as it is being sent: dropped when its caller leaves, too.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: Arc<Shared>) -> Self {
        shared.open.send_modify(|open| *open += 1);
        Self(shared)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.send_modify(|open| *open -= 1);
    }
}

fn pieces(
    shared: Arc<Shared>,
    hangs: bool,
) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync {
    stream::unfold((Open::new(shared), 0), move |(open, number)| async move {
        if hangs && number > 0 {
            std::future::pending::<()>().await;
        }
        let piece = PIECES.get(number)?;
        // So that each piece travels on its own.
        tokio::time::sleep(Duration::from_millis(2)).await;
        Some((Ok(Frame::data(Bytes::from_static(piece))), (open, number + 1)))
    })
}

fn flood(shared: Arc<Shared>) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync {
    let words = "more ".repeat(3000);
    let piece = Bytes::from(format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{words}\"}}}}]}}\n\n"));
    stream::unfold(Open::new(shared), move |open| {
        let piece = piece.clone();
        async move { Some((Ok(Frame::data(piece)), open)) }
    })
}
