//! Callers: each asks, reads a stream to its end, and asks again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::heard::{Event, Heard};
use super::scene::Scene;

/// A caller that can resume takes a gateway for gone after so long without a byte: gateways send comments more often.
const SILENCE: Duration = Duration::from_secs(5);
/// How long it looks for a gateway that gives the rest.
const RESUMED_WITHIN: Duration = Duration::from_secs(30);
/// Longest answer, all interruptions included.
const ANSWER_WITHIN: Duration = Duration::from_secs(180);
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(100);

/// What is asked, and of whom.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) model: Model,
    /// Whether the answer is to outlive its gateway.
    pub(super) resumable: bool,
    /// The gateways that are asked, by node.
    pub(super) gateways: Vec<usize>,
    pub(super) tokens: usize,
    pub(super) gap_ms: u64,
}

/// The models of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    /// The stand-in's, on several hosts.
    Talks,
    /// A real one, split over workers.
    Alphabet,
}

impl Model {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Talks => "talks",
            Self::Alphabet => "alphabet",
        }
    }
}

/// How an answer ended.
#[derive(Debug)]
pub(super) enum End {
    /// By a word of the gateway: `[DONE]`, or an error that it declares.
    Told,
    /// Its gateway was killed, and it could not be resumed.
    GatewayGone,
    /// Without a word. This must not be.
    Broken(String),
}

/// One answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) wish: Wish,
    pub(super) name: String,
    pub(super) heard: Heard,
    pub(super) end: End,
}

impl Wish {
    /// Asks for one answer and reads it to its end, wherever that is.
    pub(super) async fn answer(&self, scene: &Arc<Scene>, name: &str, first: usize) -> Answer {
        let mut heard = Heard::default();
        let asked = self.ask(scene, name, first, &mut heard);
        let end = match tokio::time::timeout(ANSWER_WITHIN, asked).await {
            Ok(end) => end,
            Err(_) => End::Broken(format!("it has no end after {ANSWER_WITHIN:?}")),
        };
        Answer { wish: self.clone(), name: name.to_owned(), heard, end }
    }

    async fn ask(&self, scene: &Arc<Scene>, name: &str, first: usize, heard: &mut Heard) -> End {
        let (mut at, mut stream) = self.begin(scene, name, first, heard).await;
        let id = stream.response_id.clone();
        loop {
            let began = Instant::now();
            let open = scene.open(self.model, at);
            let silence = if self.resumable { SILENCE } else { ANSWER_WITHIN };
            let why = match stream.read(silence, heard).await {
                Ok(()) => return End::Told,
                Err(why) => why,
            };
            drop(open);
            if !self.resumable || id.is_none() {
                return if scene.was_killed(at, began) {
                    End::GatewayGone
                } else {
                    End::Broken(format!("{why:#}, at gateway {at}"))
                };
            }
            let id = id.as_deref().unwrap_or_default();
            match self.resume(scene, id, at, heard).await {
                Ok((there, rest)) => (at, stream) = (there, rest),
                Err(error) => {
                    return End::Broken(format!("{why:#}, at gateway {at}; not resumed: {error:#}"));
                }
            }
        }
    }

    /// Asks until an answer begins: before that, failing is no harm.
    async fn begin(&self, scene: &Scene, name: &str, first: usize, heard: &mut Heard) -> (usize, Stream) {
        let message = json!([{ "role": "user", "content": name }]);
        let body = json!({
            "model": self.model.name(), "stream": true, "stream_options": { "include_usage": true }, "temperature": 0,
            "ignore_eos": true, "max_tokens": self.tokens, "gap_ms": self.gap_ms, "messages": message,
        });
        for at in self.gateways.iter().cycle().skip(first) {
            if let Some(gateway) = scene.gateway(*at) {
                let mut request = post(gateway, "/v1/chat/completions", &body);
                if self.resumable {
                    request
                        .headers_mut()
                        .insert("x-mesh-resumable", hyper::header::HeaderValue::from_static("1"));
                }
                if let Ok((StatusCode::OK, stream)) = Stream::open(gateway, request).await {
                    return (*at, stream);
                }
            }
            heard.refused += 1;
            tokio::time::sleep(RETRY).await;
        }
        unreachable!("a cycle of gateways has no end")
    }

    /// The rest of the answer, from any other gateway that gives it.
    async fn resume(
        &self,
        scene: &Scene,
        id: &str,
        left: usize,
        heard: &mut Heard,
    ) -> Result<(usize, Stream)> {
        heard.interrupted(true);
        let begin = Instant::now();
        let mut last = anyhow!("no other gateway is there");
        while begin.elapsed() < RESUMED_WITHIN {
            for at in scene.gateways().filter(|at| *at != left) {
                let Some(gateway) = scene.gateway(at) else { continue };
                let mut request =
                    Request::get(format!("/v1/resume/{id}")).header("host", gateway.to_string());
                if let Some(event) = &heard.last_id {
                    request = request.header("last-event-id", event);
                }
                let request = request.body(Full::default()).context("a request")?;
                match Stream::open(gateway, request).await {
                    Ok((StatusCode::OK, stream)) => {
                        heard.resumed += 1;
                        return Ok((at, stream));
                    }
                    Ok((status, stream)) => {
                        let said = stream.whole().await;
                        last = anyhow!("gateway {at} says {status}: {}", String::from_utf8_lossy(&said));
                    }
                    Err(error) => last = error.context(format!("gateway {at}")),
                }
            }
            tokio::time::sleep(RETRY).await;
        }
        Err(last)
    }
}

pub(super) fn post(gateway: SocketAddr, path: &str, body: &Value) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(Bytes::from(body.to_string())));
    *request.method_mut() = hyper::Method::POST;
    *request.uri_mut() = path.parse().unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    if let Ok(host) = gateway.to_string().parse() {
        headers.insert("host", host);
    }
    request
}

/// An answer under way.
pub(super) struct Stream {
    response_id: Option<String>,
    body: Incoming,
    buffer: Vec<u8>,
    _connection: JoinSet<()>,
}

impl Stream {
    pub(super) async fn open(
        gateway: SocketAddr,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Self)> {
        // A frozen gateway takes connections and says nothing.
        Self::open_within(SILENCE, gateway, request).await
    }

    pub(super) async fn open_within(
        limit: Duration,
        gateway: SocketAddr,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Self)> {
        let opened = async {
            let tcp = TcpStream::connect(gateway).await?;
            tcp.set_nodelay(true)?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(tcp)).await?;
            let mut tasks = JoinSet::new();
            tasks.spawn(async move {
                // The body says what became of it.
                let _ = connection.await;
            });
            let (head, body) = sender.send_request(request).await?.into_parts();
            let response_id = word(&head.headers, "x-mesh-response-id");
            anyhow::Ok((head.status, Self { response_id, body, buffer: Vec::new(), _connection: tasks }))
        };
        tokio::time::timeout(limit, opened).await.context("it says nothing")?
    }

    /// Reads to the end; fails where the stream breaks off before its terminal event, and takes note of what follows one.
    pub(super) async fn read(&mut self, silence: Duration, heard: &mut Heard) -> Result<()> {
        loop {
            let piece = tokio::time::timeout(silence, self.body.frame()).await;
            match piece.with_context(|| format!("silent for {silence:?}"))? {
                Some(Ok(frame)) => {
                    self.buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data))
                }
                None if heard.terminal > 0 => {
                    ensure!(self.buffer.is_empty(), "half an event behind the end");
                    return Ok(());
                }
                None => bail!("it ended without a terminal event"),
                Some(Err(_)) if heard.terminal > 0 => return Ok(()),
                Some(Err(error)) => return Err(error.into()),
            }
            while let Some(end) = self.buffer.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
                heard.hear(&Event::of(&String::from_utf8_lossy(&event)));
            }
        }
    }

    pub(super) async fn whole(self) -> Bytes {
        self.body.collect().await.map(|body| body.to_bytes()).unwrap_or_default()
    }
}

fn word(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}
