//! A backend that answers like an OpenAI server without a model, so that what is measured is what stands in front.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clap::Parser;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};

/// OpenAI-like backend for benchmarks: fixed answers, streams of timed chunks.
///
/// Endpoints: GET /health, GET /v1/models, GET /stats (counts as JSON), and POST on every other path below /v1: a body
/// with "stream": true gets a stream of events, any other a fixed answer. Each event carries "t", the time it was made
/// in nanoseconds since 1970, so that a reader on the same machine can tell how long it was under way.
/// Prints "listening on ADDR" once it is ready.
#[derive(Parser, Debug)]
struct Options {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Model names for /v1/models.
    #[arg(long, default_value = "stub")]
    model: Vec<String>,
    /// Size in bytes of the text in an answer that is not a stream.
    #[arg(long, default_value_t = 256)]
    answer_bytes: usize,
    /// Events in a stream, without the last `[DONE]`.
    #[arg(long, default_value_t = 100)]
    chunks: u64,
    /// Size in bytes of the text in each event.
    #[arg(long, default_value_t = 16)]
    chunk_bytes: usize,
    /// Microseconds between two events; 0 sends them as fast as they are read.
    #[arg(long, default_value_t = 10_000)]
    interval_us: u64,
    /// Threads; 0 means one per core.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

struct Stub {
    options: Options,
    answer: Bytes,
    requests: AtomicU64,
    open_streams: AtomicU64,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if options.threads > 0 {
        runtime.worker_threads(options.threads);
    }
    runtime.enable_all().build()?.block_on(serve(options))
}

async fn serve(options: Options) -> anyhow::Result<()> {
    let listener = TcpListener::bind(options.listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let text = "x".repeat(options.answer_bytes);
    let answer = serde_json::json!({
        "id": "chatcmpl-stub", "object": "chat.completion", "created": 0, "model": options.model.first(),
        "choices": [{ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": text } }],
        "usage": { "prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2 },
    });
    let answer = Bytes::from(answer.to_string());
    let stub =
        Arc::new(Stub { options, answer, requests: AtomicU64::new(0), open_streams: AtomicU64::new(0) });
    loop {
        let (tcp, _) = listener.accept().await?;
        tokio::spawn(connection(tcp, stub.clone()));
    }
}

async fn connection(tcp: TcpStream, stub: Arc<Stub>) {
    if tcp.set_nodelay(true).is_err() {
        return;
    }
    let service = service_fn(|request| {
        let stub = stub.clone();
        async move { Ok::<_, Infallible>(answer(stub, request).await) }
    });
    // An error here is a caller that left.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await;
}

async fn answer(stub: Arc<Stub>, request: Request<Incoming>) -> Response<Answer> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/health") => json(Bytes::from_static(b"{\"status\":\"ok\"}")),
        (&Method::GET, "/v1/models") => {
            let models: Vec<_> = stub
                .options
                .model
                .iter()
                .map(|id| serde_json::json!({ "id": id, "object": "model" }))
                .collect();
            json(serde_json::json!({ "object": "list", "data": models }).to_string().into())
        }
        (&Method::GET, "/stats") => {
            let (requests, open) =
                (stub.requests.load(Ordering::Relaxed), stub.open_streams.load(Ordering::Relaxed));
            json(serde_json::json!({ "requests": requests, "open_streams": open }).to_string().into())
        }
        (&Method::POST, path) if path.starts_with("/v1/") => complete(stub, request).await,
        _ => status(StatusCode::NOT_FOUND),
    }
}

async fn complete(stub: Arc<Stub>, request: Request<Incoming>) -> Response<Answer> {
    stub.requests.fetch_add(1, Ordering::Relaxed);
    let Ok(body) = request.into_body().collect().await else {
        return status(StatusCode::BAD_REQUEST);
    };
    let Ok(body) = serde_json::from_slice::<serde_json::Value>(&body.to_bytes()) else {
        return status(StatusCode::BAD_REQUEST);
    };
    if body.get("stream") != Some(&serde_json::Value::Bool(true)) {
        return json(stub.answer.clone());
    }
    stub.open_streams.fetch_add(1, Ordering::Relaxed);
    let text = "y".repeat(stub.options.chunk_bytes);
    let timer = (stub.options.interval_us > 0).then(|| Box::pin(tokio::time::sleep(Duration::ZERO)));
    let mut response =
        Response::new(Answer::Events(Events { sent: 0, text, timer, due: Instant::now(), stub }));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/event-stream"));
    response
}

fn json(body: Bytes) -> Response<Answer> {
    let mut response = Response::new(Answer::Whole(Some(body)));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn status(status: StatusCode) -> Response<Answer> {
    let mut response = Response::new(Answer::Whole(None));
    *response.status_mut() = status;
    response
}

enum Answer {
    Whole(Option<Bytes>),
    Events(Events),
}

struct Events {
    sent: u64,
    text: String,
    timer: Option<Pin<Box<Sleep>>>,
    due: Instant,
    stub: Arc<Stub>,
}

impl Events {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let last = self.stub.options.chunks;
        if self.sent > last {
            return Poll::Ready(None);
        }
        if self.sent < last
            && let Some(timer) = &mut self.timer
        {
            ready!(timer.as_mut().poll(cx));
            self.due += Duration::from_micros(self.stub.options.interval_us);
            timer.as_mut().reset(self.due);
        }
        self.sent += 1;
        if self.sent > last {
            return Poll::Ready(Some(Bytes::from_static(b"data: [DONE]\n\n")));
        }
        let t = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let text = &self.text;
        let event = format!(
            "data: {{\"object\":\"chat.completion.chunk\",\"t\":{t},\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n"
        );
        Poll::Ready(Some(event.into()))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.stub.open_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Events(events) => {
                events.poll_next(cx).map(|event| event.map(|event| Ok(Frame::data(event))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Events(_) => SizeHint::default(),
        }
    }
}
