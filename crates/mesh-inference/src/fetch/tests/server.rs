//! A server of the test: every byte of its answers is the test's.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Where the range that was asked for begins.
    pub(super) fn from(&self) -> usize {
        let range = self.header("range").map_or("bytes=0-", |range| range);
        range.strip_prefix("bytes=").unwrap().split('-').next().unwrap().parse().unwrap()
    }
}

/// An answer. Its length is that of its body, unless a header says another.
#[derive(Debug, Clone, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Bytes of the body that are sent before the connection is closed.
    pub(super) cut_at: Option<usize>,
    /// After what is sent, the connection stays open and silent.
    pub(super) hangs: bool,
}

impl Reply {
    pub(super) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(super) fn body(body: &[u8]) -> Self {
        Self { status: 200, body: body.to_vec(), ..Self::default() }
    }

    pub(super) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(super) fn cut_at(mut self, bytes: usize) -> Self {
        self.cut_at = Some(bytes);
        self
    }

    pub(super) fn then_silence(mut self, bytes: usize) -> Self {
        self.cut_at = Some(bytes);
        self.hangs = true;
        self
    }
}

/// What a server that knows ranges answers.
pub(super) fn file(seen: &Seen, body: &[u8], etag: &str) -> Reply {
    let is_same = seen.header("if-range").is_none_or(|known| known == etag);
    let reply = match seen.header("range").filter(|_| is_same) {
        None => Reply::body(body),
        Some(range) => {
            let (from, until) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let (from, until): (usize, usize) = (from.parse().unwrap(), until.parse().unwrap());
            if from >= body.len() {
                return Reply::status(416);
            }
            let until = until.min(body.len() - 1);
            let reply = Reply { status: 206, ..Reply::body(&body[from..=until]) };
            reply.with("content-range", format!("bytes {from}-{until}/{}", body.len()))
        }
    };
    reply.with("etag", etag)
}

type Script = Arc<dyn Fn(&Seen, usize) -> Reply + Send + Sync>;

/// Answers by a function of the request and its number, from 0.
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _task: JoinSet<()>,
}

impl Server {
    pub(super) async fn start(script: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (script, log): (Script, _) = (Arc::new(script), seen.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(serve(tcp, script.clone(), log.clone()));
            }
        });
        Self { addr, seen, _task: task }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Requests of a method.
    pub(super) fn count(&self, method: &str) -> usize {
        self.seen().iter().filter(|seen| seen.method == method).count()
    }
}

async fn serve(tcp: TcpStream, script: Script, log: Arc<Mutex<Vec<Seen>>>) {
    let mut tcp = BufReader::new(tcp);
    let Some(seen) = read(&mut tcp).await else { return };
    let number = {
        let mut log = log.lock().unwrap();
        log.push(seen.clone());
        log.len() - 1
    };
    let reply = script(&seen, number);
    let mut head = format!("HTTP/1.1 {} Status\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !reply.headers.iter().any(|(name, _)| name == "content-length" || name == "x-no-length") {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    head += "\r\n";
    let mut tcp = tcp.into_inner();
    if tcp.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    if seen.method != "HEAD" {
        let sent = &reply.body[..reply.cut_at.unwrap_or(reply.body.len()).min(reply.body.len())];
        let _ = tcp.write_all(sent).await; // the caller may have left
    }
    if reply.hangs {
        std::future::pending::<()>().await;
    }
    let _ = tcp.shutdown().await;
}

async fn read(tcp: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if tcp.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let mut words = lines.first()?.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let header = |line: &String| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    };
    Some(Seen { method, path, headers: lines[1..].iter().filter_map(header).collect() })
}
