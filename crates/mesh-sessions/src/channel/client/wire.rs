//! One connection to a server, driven by whoever uses it.
//!
//! No task stands behind it: dropping the wire closes the connection at once, which is how a caller's leaving reaches the other
//! node.

use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Body as _, Frame, Incoming};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use mesh_identity::ca::Leaf;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::super::open::Entered;

/// Largest read of an answer, and so the largest piece of it held here, in bytes.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

type Http1 = Connection<TokioIo<TlsStream<TcpStream>>, Full<Bytes>>;

/// A connection that carries one request at a time.
pub(super) struct Wire {
    sender: SendRequest<Full<Bytes>>,
    /// None once it has ended. Boxed, since a wire goes from hand to hand and this is most of it.
    connection: Option<Box<Http1>>,
    entered: Entered,
    /// Of the credentials that this node has shown.
    pub(super) generation: u64,
    /// What the other end has shown.
    pub(super) leaf: Arc<Leaf>,
}

impl Wire {
    pub(super) async fn new(
        io: TlsStream<TcpStream>,
        leaf: Arc<Leaf>,
        entered: Entered,
        generation: u64,
    ) -> Result<Self, hyper::Error> {
        let (sender, connection) =
            http1::Builder::new().max_buf_size(BUFFER_BYTES_MAX).handshake(TokioIo::new(io)).await?;
        Ok(Self { sender, connection: Some(Box::new(connection)), entered, generation, leaf })
    }

    /// Sends one request and returns the answer's head; the body comes by [`Wire::frame`]. Dropping the future leaves the wire
    /// unusable: drop it too.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Broken> {
        let mut answer = pin!(self.sender.send_request(request));
        let connection = &mut self.connection;
        let sent = poll_fn(|cx| {
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(answer);
            }
            drive(connection, cx);
            answer.as_mut().poll(cx)
        });
        tokio::select! {
            biased;
            () = self.entered.close.cancelled() => Err(Broken::Refused),
            sent = sent => sent.map_err(Broken::Http),
        }
    }

    /// The next piece of the body that [`Wire::send`] began; none at its end. Cancel safe.
    pub(super) async fn frame(&mut self, body: &mut Incoming) -> Option<Result<Frame<Bytes>, Broken>> {
        let connection = &mut self.connection;
        let frame = poll_fn(|cx| {
            if let ready @ Poll::Ready(_) = Pin::new(&mut *body).poll_frame(cx) {
                return ready;
            }
            drive(connection, cx);
            Pin::new(&mut *body).poll_frame(cx)
        });
        tokio::select! {
            biased;
            () = self.entered.close.cancelled() => Some(Err(Broken::Refused)),
            frame = frame => frame.map(|frame| frame.map_err(Broken::Http)),
        }
    }

    /// Whether another request can go out now. Notices a close by the other end.
    pub(super) fn is_reusable(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        drive(&mut self.connection, &mut cx);
        self.connection.is_some() && self.sender.is_ready() && !self.entered.close.is_cancelled()
    }
}

/// Why a connection carries no more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The other end's certificate is accepted no more.
    #[error("the certificate of the other end is accepted no more")]
    Refused,
    /// It ended, or is no HTTP.
    #[error("{0}")]
    Http(#[source] hyper::Error),
}

fn drive<C>(connection: &mut Option<Box<C>>, cx: &mut Context<'_>)
where
    C: std::future::Future<Output = Result<(), hyper::Error>> + Unpin,
{
    if let Some(open) = connection {
        // What went wrong is told by the request that waits.
        if Pin::new(open.as_mut()).poll(cx).is_ready() {
            *connection = None;
        }
    }
}
