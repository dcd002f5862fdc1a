//! The stub backend: speaks enough of the OpenAI API to stand behind a gateway, and does no work of its own.

use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::stream::unfold;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// The model that the stub offers.
pub(crate) const MODEL: &str = "stub";

/// Answer of a non-streaming request: about the size of a short completion.
const ANSWER: &str = r#"{"id":"cmpl-stub","object":"chat.completion","created":1,"model":"stub","choices":[{"index":0,"message":{"role":"assistant","content":"The quick brown fox jumps over the lazy dog, and then it does so again, since one sentence makes a short answer."},"finish_reason":"stop"}],"usage":{"prompt_tokens":12,"completion_tokens":24,"total_tokens":36}}"#;

/// Serves on a free loopback port, printed as the first line, until the process is ended.
pub(crate) fn run() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("cannot bind")?;
        println!("http://{}", listener.local_addr()?);
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            tokio::spawn(async move {
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(socket), service_fn(answer))
                    .await;
            });
        }
    })
}

async fn answer(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let wish: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    Ok(match path.as_str() {
        "/v1/models" => whole(format!(
            r#"{{"object":"list","data":[{{"id":"{MODEL}","object":"model","created":1,"owned_by":"stub"}}]}}"#
        )),
        "/health" => whole(r#"{"status":"ok"}"#.to_owned()),
        _ if wish["stream"] == true => streamed(
            wish["n_chunks"].as_u64().unwrap_or(100),
            Duration::from_micros(wish["gap_micros"].as_u64().unwrap_or(2_000)),
        ),
        _ => whole(ANSWER.to_owned()),
    })
}

fn whole(text: String) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// `chunks` events, the first at once and the others `gap` apart, each carrying the time at which it was sent in nanoseconds of the machine's clock.
fn streamed(chunks: u64, gap: Duration) -> Response<BoxBody<Bytes, Infallible>> {
    let events = unfold(0_u64, move |sent| async move {
        if sent > chunks {
            return None;
        }
        if sent == chunks {
            return Some((Ok(Frame::data(Bytes::from_static(b"data: [DONE]\n\n"))), sent + 1));
        }
        if sent > 0 {
            tokio::time::sleep(gap).await;
        }
        let text = format!(
            "data: {{\"sent\":{},\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"word \"}}}}]}}\n\n",
            now_nanos()
        );
        Some((Ok(Frame::data(Bytes::from(text))), sent + 1))
    });
    let mut response = Response::new(StreamBody::new(events).boxed());
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/event-stream"));
    response
}

/// Nanoseconds since 1970; comparable between processes of one machine.
pub(crate) fn now_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
