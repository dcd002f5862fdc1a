//! The client side: one connection, one request at a time, the same for both servers.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A task with a paragraph of context.
const BODY: &str = r#"{"fromAgent":"opus@client","toAgent":"echo","message":"Summarise what the log says of last night, in three sentences, and name the machine that began it.","context":"The log has 1,200 lines; most of them are of the backup, which ran from 01:00 to 03:40 and ended well.","timeoutMs":60000,"chainDepth":0}"#;

pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: tokio::task::JoinHandle<()>,
}

impl Connection {
    pub(crate) async fn open(to: SocketAddr, server: &str, config: Arc<ClientConfig>) -> Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let stream =
            TlsConnector::from(config).connect(ServerName::try_from(server.to_owned())?, stream).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let task = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, task })
    }

    pub(crate) async fn delegate(&mut self, path: &'static str) -> Result<()> {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        let answer = self.ask(request.body(Full::new(Bytes::from_static(BODY.as_bytes())))?).await?;
        ensure!(answer.len() > 100, "the answer is too short: {answer:?}");
        Ok(())
    }

    pub(crate) async fn ping(&mut self) -> Result<()> {
        self.ask(Request::get("/api/mesh/ping").body(Full::default())?).await.map(drop)
    }

    async fn ask(&mut self, mut request: Request<Full<Bytes>>) -> Result<Bytes> {
        request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("server.mesh"));
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        ensure!(answer.status() == StatusCode::OK, "answered {}", answer.status());
        Ok(answer.into_body().collect().await?.to_bytes())
    }

    /// Resolves when the server has closed it.
    pub(crate) async fn ended(mut self) {
        let _ = (&mut self.task).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}
