//! One HTTP/1.1 connection to a backend or a peer, driven by whoever uses it.
//!
//! No task stands behind it: the request's own task polls the connection, so a chunk crosses without a wake-up in
//! between, and dropping the wire closes the socket at once, which is how a caller's leaving reaches the backend.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Largest read of an answer, and so the largest piece of it held here, in bytes.
const BUFFER_MAX: usize = 64 * 1024;

/// Any byte stream a request can go out on.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

type Http1 = Connection<TokioIo<Box<dyn Duplex>>, Full<Bytes>>;

/// An HTTP/1.1 connection that carries one request at a time.
pub(crate) struct Wire {
    sender: SendRequest<Full<Bytes>>,
    /// None once it has ended. Boxed, since a wire goes from hand to hand and this is most of it.
    connection: Option<Box<Http1>>,
}

impl Wire {
    pub(crate) async fn new(io: impl Duplex) -> Result<Self, hyper::Error> {
        let io: Box<dyn Duplex> = Box::new(io);
        let (sender, connection) =
            http1::Builder::new().max_buf_size(BUFFER_MAX).handshake(TokioIo::new(io)).await?;
        Ok(Self { sender, connection: Some(Box::new(connection)) })
    }

    /// Sends one request and returns the answer's head; the body comes by [`Wire::poll_body`].
    ///
    /// Dropping the future leaves the wire unusable: drop it too.
    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let mut answer = pin!(self.sender.send_request(request));
        let connection = &mut self.connection;
        poll_fn(|cx| {
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            drive(connection, cx);
            answer.as_mut().poll(cx)
        })
        .await
    }

    /// The next piece of the body that [`Wire::send`] began.
    pub(crate) fn poll_body(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, hyper::Error>>> {
        if let ready @ Poll::Ready(_) = http_body::Body::poll_frame(Pin::new(&mut *body), cx) {
            return ready;
        }
        drive(&mut self.connection, cx);
        http_body::Body::poll_frame(Pin::new(body), cx)
    }

    /// Whether another request can go out now. Notices a close by the other end.
    pub(crate) fn is_reusable(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        drive(&mut self.connection, &mut cx);
        self.connection.is_some() && self.sender.is_ready()
    }
}

fn drive(connection: &mut Option<Box<Http1>>, cx: &mut Context<'_>) {
    if let Some(running) = connection
        && Pin::new(running).poll(cx).is_ready()
    {
        // Its error, if any, has gone to the waiting answer or body.
        *connection = None;
    }
}
