//! A node that plays its part on a socket.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_control::*;
use tokio::net::UnixListener;
use tokio::task::JoinSet;

pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// What a request looked like: method, path with query, body.
pub(crate) type Asked = (Method, String, String);

/// A node on a socket in a temporary folder: answers every request by `answer` and remembers it.
pub(crate) struct FakeNode {
    pub(crate) client: Client,
    asked: Arc<Mutex<Vec<Asked>>>,
    _folder: tempfile::TempDir,
    _task: JoinSet<()>,
}

impl FakeNode {
    pub(crate) fn start(answer: impl Fn(&Asked) -> Response<Body> + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let listener = UnixListener::bind(socket_path(folder.path())).expect("socket");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen) = (Arc::new(answer), Arc::clone(&asked));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.expect("body").to_bytes();
                        let asked = (
                            parts.method,
                            parts.uri.to_string(),
                            String::from_utf8_lossy(&body).into_owned(),
                        );
                        seen.lock().expect("no panic").push(asked.clone());
                        Ok::<_, Infallible>(answer(&asked))
                    }
                });
                connections.spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { client: Client::for_home(folder.path()), asked, _folder: folder, _task: task }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }
}

pub(crate) fn json(status: u16, text: &str) -> Response<Body> {
    Response::builder().status(status).body(Full::from(text.to_owned()).boxed()).expect("response")
}

/// A body that sends these chunks and then ends, or stays open.
pub(crate) fn stream(chunks: Vec<String>, ends: bool) -> Response<Body> {
    use std::pin::Pin;
    use std::task::{Context, Poll};
    struct Chunks(std::vec::IntoIter<String>, bool);
    impl hyper::body::Body for Chunks {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.next() {
                Some(chunk) => Poll::Ready(Some(Ok(Frame::data(Bytes::from(chunk))))),
                None if self.1 => Poll::Ready(None),
                None => Poll::Pending,
            }
        }
    }
    Response::new(Chunks(chunks.into_iter(), ends).boxed())
}
