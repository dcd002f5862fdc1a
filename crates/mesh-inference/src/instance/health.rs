//! Asks a `llama-server` on loopback how it is: one small HTTP/1.1 request a connection.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Loopback and a thread that does nothing else: a second is long. A machine that swaps may still need it.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const STATUS_LINE_BYTES: u64 = 64;

/// The HTTP status of a GET, or `None` when there is no answer in time.
pub(crate) async fn status(port: u16, path: &str, key: Option<&str>) -> Option<u16> {
    tokio::time::timeout(ANSWER_WITHIN, ask(port, path, key)).await.ok()?
}

async fn ask(port: u16, path: &str, key: Option<&str>) -> Option<u16> {
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.ok()?;
    let authorization = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{authorization}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.take(STATUS_LINE_BYTES).read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8_lossy(&answer);
    answer.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

/// Whether the server at the port answers, and is ours: it knows the key that only our child was given, and wants it.
pub(crate) async fn is_ready(port: u16, key: &str) -> bool {
    status(port, "/health", None).await == Some(200)
        && status(port, "/props", None).await == Some(401)
        && status(port, "/props", Some(key)).await == Some(200)
}
