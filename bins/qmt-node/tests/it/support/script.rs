//! A model that does what its prompt says.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::PATIENCE;

/// The one model that it has.
pub(crate) const MODEL: &str = "scripted";

/// An OpenAI-compatible server. A prompt `tool NAME ARGUMENTS` has it ask for that tool, everything else it repeats after
/// `heard: `.
pub(crate) struct Script {
    pub(crate) addr: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    /// Which answers are held: from this number on.
    held_from: watch::Sender<usize>,
    asked: Mutex<Vec<Value>>,
    begun: watch::Sender<usize>,
}

impl Script {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            held_from: watch::Sender::new(usize::MAX),
            asked: Mutex::default(),
            begun: watch::Sender::new(0),
        });
        let task = tokio::spawn(accept(listener, shared.clone()));
        Self { addr, shared, task }
    }

    /// The same as a node's configuration names it.
    pub(crate) fn as_provider(&self) -> String {
        format!(
            "[[providers]]\nname = \"script\"\nbase_url = \"http://{}/v1\"\nmodels = [\"{MODEL}\"]\n",
            self.addr
        )
    }

    /// Begins answers from this number on, the first is 1, and does not end them.
    pub(crate) fn hold_from(&self, number: usize) {
        self.shared.held_from.send_replace(number);
    }

    /// Ends all answers.
    pub(crate) fn release(&self) {
        self.hold_from(usize::MAX);
    }

    /// What it was asked.
    pub(crate) fn asked(&self) -> Vec<Value> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Waits until so many answers have begun.
    pub(crate) async fn wait_begun(&self, count: usize) {
        let mut begun = self.shared.begun.subscribe();
        let waited = tokio::time::timeout(PATIENCE, begun.wait_for(|begun| *begun >= count)).await;
        waited.unwrap_or_else(|_| panic!("never {count} answers: {:?}", self.asked())).unwrap();
    }
}

impl Drop for Script {
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

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    if request.uri().path() == "/v1/models" {
        let list = json!({ "object": "list", "data": [{ "id": MODEL, "object": "model" }] }).to_string();
        return Ok(Response::new(Full::new(Bytes::from(list)).boxed_unsync()));
    }
    let body = request.into_body().collect().await?.to_bytes();
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let pieces = pieces(&asked);
    let answer = {
        let mut all = shared.asked.lock().unwrap();
        all.push(asked);
        all.len()
    };
    let pieces = stream::iter(pieces.into_iter().enumerate()).then(move |(number, piece)| {
        let shared = shared.clone();
        async move {
            if number == 1 {
                shared.begun.send_modify(|begun| *begun += 1);
                let _ = shared.held_from.subscribe().wait_for(|held_from| answer < *held_from).await;
            }
            Ok(Frame::data(piece))
        }
    });
    let body = StreamBody::new(pieces).boxed_unsync();
    Ok(Response::builder().header("content-type", "text/event-stream").body(body).unwrap())
}

fn pieces(asked: &Value) -> Vec<Bytes> {
    let last = asked["messages"].as_array().and_then(|messages| messages.last()).cloned().unwrap_or_default();
    let said = match &last["content"] {
        Value::String(text) => text.clone(),
        parts => parts.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str()).collect(),
    };
    let words: Vec<&str> = said.splitn(3, ' ').collect();
    let (delta, reason) = match words.as_slice() {
        ["tool", name, arguments] if last["role"] == "user" => {
            let function = json!({ "name": name, "arguments": arguments });
            let id = format!("call-{}", asked["messages"].as_array().map_or(0, Vec::len));
            let call = json!({ "index": 0, "id": id, "type": "function", "function": function });
            (json!({ "tool_calls": [call] }), "tool_calls")
        }
        _ => (json!({ "content": format!("heard: {said}") }), "stop"),
    };
    let choices = [
        json!({ "choices": [{ "delta": { "reasoning_content": "hm" } }] }),
        json!({ "choices": [{ "delta": delta }] }),
        json!({ "choices": [{ "delta": {}, "finish_reason": reason }], "usage": { "prompt_tokens": 2, "completion_tokens": 3 } }),
    ];
    let mut pieces: Vec<Bytes> = choices.iter().map(|piece| format!("data: {piece}\n\n").into()).collect();
    pieces.push(Bytes::from_static(b"data: [DONE]\n\n"));
    pieces
}
