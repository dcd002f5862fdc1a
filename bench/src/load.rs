//! The client side of the measurements: keep-alive HTTP/1.1 connections, one request at a time on each.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::stub::{MODEL, now_nanos};

const DEADLINE: Duration = Duration::from_secs(20);

/// A keep-alive connection to `host:port`.
pub(crate) struct Client {
    authority: String,
    sender: SendRequest<Full<Bytes>>,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Client {
    pub(crate) async fn connect(authority: &str) -> Result<Self> {
        let socket =
            TcpStream::connect(authority).await.with_context(|| format!("cannot connect to {authority}"))?;
        socket.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(socket)).await?;
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { authority: authority.to_owned(), sender, connection })
    }

    async fn post(&mut self, body: Bytes) -> Result<Response<Incoming>> {
        self.sender.ready().await?;
        let request = Request::post("/v1/chat/completions")
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let response = self.sender.send_request(request).await?;
        ensure!(response.status() == StatusCode::OK, "{} answered {}", self.authority, response.status());
        Ok(response)
    }

    /// One non-streaming request; returns its time in milliseconds.
    pub(crate) async fn ask(&mut self, body: &Bytes) -> Result<f64> {
        let begin = Instant::now();
        let response = self.post(body.clone()).await?;
        let answer = response.into_body().collect().await?.to_bytes();
        let took = begin.elapsed();
        ensure!(answer.len() > 100, "the answer is too short: {answer:?}");
        Ok(took.as_secs_f64() * 1e3)
    }

    /// One streaming request; returns for each chunk the milliseconds from its sending to its arrival.
    pub(crate) async fn stream(&mut self, body: &Bytes) -> Result<Vec<f64>> {
        let mut response = self.post(body.clone()).await?.into_body();
        let mut lags = Vec::new();
        let mut rest = Vec::new();
        while let Some(frame) = response.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            let arrived = now_nanos();
            rest.extend_from_slice(&data);
            while let Some(end) = rest.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = rest.drain(..end + 2).collect();
                if let Some(sent) = send_time(&event) {
                    lags.push(arrived.saturating_sub(sent) as f64 / 1e6);
                }
            }
        }
        Ok(lags)
    }

    /// Starts a streaming request and returns once its first bytes are here; the stream goes on until it is dropped.
    pub(crate) async fn hold(mut self, body: &Bytes) -> Result<Held> {
        let mut response = self.post(body.clone()).await?.into_body();
        response.frame().await.context("the stream ended at once")??;
        Ok(Held { response, _client: self })
    }
}

/// An open stream.
pub(crate) struct Held {
    response: Incoming,
    _client: Client,
}

impl Held {
    /// The next bytes; none once it has ended, well or not.
    pub(crate) async fn piece(&mut self) -> Option<Bytes> {
        self.response.frame().await?.ok().map(|frame| frame.into_data().unwrap_or_default())
    }
}

fn send_time(event: &[u8]) -> Option<u64> {
    let json = event.strip_prefix(b"data: ")?;
    serde_json::from_slice::<serde_json::Value>(json.trim_ascii_end()).ok()?["sent"].as_u64()
}

/// A non-streaming request of about the size of a short conversation.
pub(crate) fn plain_body() -> Bytes {
    Bytes::from(format!(
        r#"{{"model":"{MODEL}","messages":[{{"role":"system","content":"You are brief. {}"}},{{"role":"user","content":"Hello"}}]}}"#,
        "Answer in one sentence. ".repeat(20)
    ))
}

/// A streaming request for `chunks` chunks, `gap_micros` apart.
pub(crate) fn stream_body(chunks: u32, gap_micros: u32) -> Bytes {
    Bytes::from(format!(
        r#"{{"model":"{MODEL}","stream":true,"n_chunks":{chunks},"gap_micros":{gap_micros},"messages":[{{"role":"user","content":"Hello"}}]}}"#
    ))
}

/// Times of `count` requests after a tenth as many for warming up, sorted, in milliseconds.
pub(crate) async fn latencies(client: &mut Client, count: usize) -> Result<Vec<f64>> {
    let body = plain_body();
    for _ in 0..count / 10 {
        client.ask(&body).await?;
    }
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        times.push(tokio::time::timeout(DEADLINE, client.ask(&body)).await.context("no answer")??);
    }
    crate::stats::sort(&mut times);
    Ok(times)
}

/// Answers per second with `connections` connections, each asking as soon as it is answered, for `time`.
pub(crate) async fn throughput(authority: &str, connections: usize, time: Duration) -> Result<f64> {
    let mut clients = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut client = Client::connect(authority).await?;
        client.ask(&plain_body()).await?;
        clients.push(client);
    }
    let begin = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for mut client in clients {
        tasks.spawn(async move {
            let body = plain_body();
            let mut answers = 0_u32;
            while begin.elapsed() < time {
                client.ask(&body).await?;
                answers += 1;
            }
            anyhow::Ok(answers)
        });
    }
    let mut answers = 0_u32;
    while let Some(done) = tasks.join_next().await {
        answers += done??;
    }
    Ok(f64::from(answers) / begin.elapsed().as_secs_f64())
}
