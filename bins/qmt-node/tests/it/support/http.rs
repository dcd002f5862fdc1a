//! A caller of a gateway, or of a control socket in ways that the client does not know.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use super::PATIENCE;

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// The code of an error in OpenAI's shape, or in the control API's.
    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// An answer under way; dropping it closes the connection, as a caller does who leaves.
pub(crate) struct Streaming {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    _connection: JoinSet<()>,
}

impl Streaming {
    /// The next piece of the body; none at its good end.
    pub(crate) async fn piece(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("no piece came");
        frame.map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default()))
    }

    pub(crate) async fn whole(self) -> Answer {
        let body = tokio::time::timeout(PATIENCE, self.body.collect()).await.expect("the answer has no end");
        Answer { status: self.status, headers: self.headers, body: body.unwrap().to_bytes() }
    }
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Streaming, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = connection.await; // the body and the sender report the same failure
    });
    let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("no answer")?;
    let (head, body) = answer.into_parts();
    Ok(Streaming { status: head.status, headers: head.headers, body, _connection: tasks })
}

fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let builder = Request::builder().method(method).uri(path).header("host", "localhost");
    builder.header("content-type", "application/json").body(Full::new(body.into())).unwrap()
}

pub(crate) async fn get(gateway: SocketAddr, path: &str) -> Answer {
    let stream = TcpStream::connect(gateway).await.unwrap();
    send(stream, request("GET", path, "")).await.unwrap().whole().await
}

/// A request whose failure the caller expects to see, such as at a gateway that is full.
pub(crate) async fn try_get(gateway: SocketAddr, path: &str) -> Option<Answer> {
    let stream = TcpStream::connect(gateway).await.ok()?;
    Some(send(stream, request("GET", path, "")).await.ok()?.whole().await)
}

pub(crate) async fn post(gateway: SocketAddr, path: &str, body: impl Into<Bytes>) -> Answer {
    open(gateway, path, body).await.whole().await
}

pub(crate) async fn open(gateway: SocketAddr, path: &str, body: impl Into<Bytes>) -> Streaming {
    let stream = TcpStream::connect(gateway).await.unwrap();
    send(stream, request("POST", path, body)).await.unwrap()
}

/// The body of a chat request.
pub(crate) fn chat(model: &str) -> String {
    let messages = json!([{ "role": "user", "content": "say something" }]);
    json!({ "model": model, "stream": true, "max_tokens": 8, "messages": messages }).to_string()
}

/// Names of the models that a gateway lists.
pub(crate) async fn models(gateway: SocketAddr) -> Vec<String> {
    let list = get(gateway, "/v1/models").await.json();
    let names = list["data"].as_array().unwrap().iter();
    names.map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

pub(crate) async fn over_socket(
    socket: &Path,
    method: &str,
    path: &str,
    body: impl Into<Bytes>,
) -> Streaming {
    let stream = UnixStream::connect(socket).await.unwrap();
    send(stream, request(method, path, body)).await.unwrap()
}
