//! A backend that does what the test says, and a caller that sees every byte.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_inference::backend::{Backend, BackendKind, BackendState, Backends, Share};
use mesh_inference::gateway::{Gateway, GatewayConfig, Listen, NoPeers, PeerRoutes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Longest wait of a test for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// One request as a backend got it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Which connection it came on.
    pub(crate) connection: usize,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// What a backend does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Writes these bytes and waits for the next request.
    Raw(Vec<u8>),
    /// Writes these pieces, each flushed on its own, and waits for the next request.
    Pieces(Vec<Vec<u8>>),
    /// Writes these bytes and closes.
    RawThenClose(Vec<u8>),
    /// Writes these bytes, then waits for the other end to close, and counts that.
    RawThenHang(Vec<u8>),
    /// Writes these bytes up to the end of as many events as were released.
    EventsAsReleased(Vec<u8>, watch::Receiver<usize>),
}

pub(crate) type Script = Arc<dyn Fn(&Seen) -> Act + Send + Sync>;

pub(crate) struct Stub {
    pub(crate) addr: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    /// Connections closed by the other end while the stub was in [`Act::RawThenHang`].
    pub(crate) left: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stub {
    pub(crate) async fn start(script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (left_tx, left) = watch::channel(0);
        let left_tx = Arc::new(left_tx);
        let script: Script = Arc::new(script);
        let log = seen.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            let mut number = 0;
            while let Ok((tcp, _)) = listener.accept().await {
                number += 1;
                connections.spawn(stub_connection(tcp, number, script.clone(), log.clone(), left_tx.clone()));
            }
        });
        Self { addr, seen, left, task }
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    pub(crate) fn last(&self) -> Seen {
        self.seen.lock().unwrap().last().cloned().unwrap()
    }

    pub(crate) async fn wait_left(&mut self, count: usize) {
        let waited = tokio::time::timeout(PATIENCE, self.left.wait_for(|left| *left >= count)).await;
        waited.expect("the backend never saw its caller leave").unwrap();
    }
}

async fn stub_connection(
    mut tcp: TcpStream,
    connection: usize,
    script: Script,
    log: Arc<Mutex<Vec<Seen>>>,
    left: Arc<watch::Sender<usize>>,
) {
    let mut buffer = Vec::new();
    while let Some((line, headers, body)) = read_message(&mut tcp, &mut buffer).await {
        let seen = Seen { line, headers, body, connection };
        log.lock().unwrap().push(seen.clone());
        match script(&seen) {
            Act::Raw(bytes) => tcp.write_all(&bytes).await.unwrap(),
            Act::Pieces(pieces) => {
                for piece in pieces {
                    tcp.write_all(&piece).await.unwrap();
                    tcp.flush().await.unwrap();
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            Act::RawThenClose(bytes) => {
                tcp.write_all(&bytes).await.unwrap();
                return;
            }
            Act::RawThenHang(bytes) => {
                tcp.write_all(&bytes).await.unwrap();
                let mut byte = [0; 1];
                let _ = tcp.read(&mut byte).await;
                left.send_modify(|left| *left += 1);
                return;
            }
            Act::EventsAsReleased(bytes, mut released) => {
                let ends = bytes
                    .windows(4)
                    .enumerate()
                    .filter(|(_, four)| *four == b"\n\n\r\n")
                    .map(|(at, _)| at + 4);
                let mut written = 0;
                for (number, end) in (1..).zip(ends.chain([bytes.len()])) {
                    if released.wait_for(|count| *count >= number).await.is_err()
                        || tcp.write_all(&bytes[written..end]).await.is_err()
                    {
                        return;
                    }
                    written = end;
                }
            }
        }
    }
}

/// An answer with a JSON body.
pub(crate) fn json(body: &str) -> Act {
    Act::Raw(answer(200, "application/json", body))
}

pub(crate) fn answer(status: u16, kind: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

/// The head of a stream of events.
pub(crate) fn sse_head() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_vec()
}

/// One piece in chunked coding.
pub(crate) fn chunk(piece: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()
}

pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A registry entry for a stub; the sender keeps and changes its state.
pub(crate) fn backend(model: &str, addr: SocketAddr) -> (watch::Sender<BackendState>, Backend) {
    let (state_tx, state) = watch::channel(BackendState::Ready);
    let backend = Backend {
        model: model.into(),
        url: format!("http://{addr}").parse().unwrap(),
        upstream_model: None,
        auth: None,
        share: Share::Members,
        state,
        slots: None,
        kind: BackendKind::Local,
        terms: None,
    };
    (state_tx, backend)
}

/// A gateway over these backends.
pub(crate) struct Front {
    pub(crate) gateway: Gateway,
}

pub(crate) fn config() -> GatewayConfig {
    let mut config = GatewayConfig::default();
    config.listen = Listen::Exactly("127.0.0.1:0".parse().unwrap());
    config.drain = Duration::from_millis(500);
    config
}

impl Front {
    pub(crate) async fn start(list: Vec<Backend>) -> Self {
        Self::with(config(), list, Arc::new(NoPeers)).await
    }

    pub(crate) async fn with(config: GatewayConfig, list: Vec<Backend>, routes: Arc<dyn PeerRoutes>) -> Self {
        let backends = Backends::new();
        for backend in list {
            backends.insert(backend);
        }
        let gateway = Gateway::start(config, backends, routes, None).await.unwrap();
        Self { gateway }
    }

    pub(crate) async fn caller(&self) -> Caller {
        Caller::to(self.gateway.local_addr()).await
    }

    /// One chat request on a connection of its own.
    pub(crate) async fn chat(&self, body: &str) -> Answer {
        let mut caller = self.caller().await;
        caller.send(&post("/v1/chat/completions", body)).await;
        caller.answer().await
    }
}

/// A request as bytes.
pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
    with_headers("POST", path, &[], body)
}

pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
}

pub(crate) fn with_headers(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
        body.len()
    );
    if !headers.iter().any(|(name, _)| *name == "host") {
        head.push_str("host: localhost\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    [head.as_bytes(), b"\r\n", body.as_bytes()].concat()
}

/// A caller's connection.
pub(crate) struct Caller {
    pub(crate) tcp: TcpStream,
    buffer: Vec<u8>,
}

/// An answer, its body freed of chunked coding.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether it ended as HTTP says it must.
    pub(crate) complete: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// The `code` of an error in OpenAI's shape.
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Caller {
    pub(crate) async fn to(addr: SocketAddr) -> Self {
        let tcp = TcpStream::connect(addr).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        Self { tcp, buffer: Vec::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.tcp.write_all(bytes).await.unwrap();
    }

    /// The next answer on this connection.
    pub(crate) async fn answer(&mut self) -> Answer {
        tokio::time::timeout(PATIENCE, self.read_answer()).await.expect("no answer")
    }

    async fn read_answer(&mut self) -> Answer {
        let (line, headers) =
            read_head(&mut self.tcp, &mut self.buffer).await.expect("closed without an answer");
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let (body, complete) = read_body(&mut self.tcp, &mut self.buffer, &headers, true).await;
        Answer { status, headers, body, complete }
    }

    /// Reads raw bytes until they hold `text`.
    pub(crate) async fn until(&mut self, text: &str) {
        let read = async {
            while !self.buffer.windows(text.len()).any(|window| window == text.as_bytes()) {
                assert!(fill(&mut self.tcp, &mut self.buffer).await, "closed before {text:?}");
            }
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("never saw {text:?}"));
    }

    /// What came of the body of the answer under way, freed of chunked coding as far as it is there.
    pub(crate) fn seen_body(&self) -> String {
        let start = self.buffer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let mut rest = &self.buffer[start..];
        let mut body = Vec::new();
        while let Some(line) = rest.windows(2).position(|window| window == b"\r\n") {
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
            let Some(piece) = rest.get(line + 2..line + 2 + size) else { break };
            body.extend_from_slice(piece);
            rest = rest.get(line + 2 + size + 2..).unwrap_or_default();
        }
        String::from_utf8(body).unwrap()
    }

    /// A header of the answer under way.
    pub(crate) fn seen_header(&self, name: &str) -> Option<String> {
        let head = String::from_utf8_lossy(&self.buffer);
        let head = head.split("\r\n\r\n").next().unwrap().to_owned();
        head.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
    }

    /// Waits for the other end to close.
    pub(crate) async fn closed(&mut self) {
        let read = async { while fill(&mut self.tcp, &mut self.buffer).await {} };
        tokio::time::timeout(PATIENCE, read).await.expect("still open");
    }
}

async fn fill(tcp: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    tcp.read_buf(buffer).await.is_ok_and(|read| read > 0)
}

type Headers = Vec<(String, String)>;

async fn read_message(tcp: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, Headers, Vec<u8>)> {
    let (line, headers) = read_head(tcp, buffer).await?;
    let (body, complete) = read_body(tcp, buffer, &headers, false).await;
    complete.then_some((line, headers, body))
}

async fn read_head(tcp: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, Headers)> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if !fill(tcp, buffer).await {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end + 4).collect()).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next().unwrap().to_owned();
    let split = |line: &str| {
        line.split_once(':').map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())).unwrap()
    };
    Some((line, lines.map(split).collect()))
}

async fn read_body(
    tcp: &mut TcpStream,
    buffer: &mut Vec<u8>,
    headers: &Headers,
    to_end: bool,
) -> (Vec<u8>, bool) {
    let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    if let Some(length) = header("content-length") {
        let length: usize = length.parse().unwrap();
        while buffer.len() < length {
            if !fill(tcp, buffer).await {
                return (std::mem::take(buffer), false);
            }
        }
        return (buffer.drain(..length).collect(), true);
    }
    if header("transfer-encoding") != Some("chunked") {
        while to_end && fill(tcp, buffer).await {}
        return (if to_end { std::mem::take(buffer) } else { Vec::new() }, true);
    }
    let mut body = Vec::new();
    loop {
        let line = loop {
            if let Some(line) = buffer.windows(2).position(|window| window == b"\r\n") {
                break line;
            }
            if !fill(tcp, buffer).await {
                return (body, false);
            }
        };
        let size = usize::from_str_radix(std::str::from_utf8(&buffer[..line]).unwrap(), 16).unwrap();
        while buffer.len() < line + 2 + size + 2 {
            if !fill(tcp, buffer).await {
                return (body, false);
            }
        }
        body.extend_from_slice(&buffer[line + 2..line + 2 + size]);
        buffer.drain(..line + 2 + size + 2);
        if size == 0 {
            return (body, true);
        }
    }
}
