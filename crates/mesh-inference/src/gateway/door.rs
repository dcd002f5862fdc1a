//! Backends behind a door of this process: requests and answers are changed on their way.
//!
//! To the gateway a door is one more server, reached over a pipe in memory ([`Inside`]); so deadlines, fallbacks, errors
//! in mid-stream and the end of a request by its caller are the same as for a server that is asked directly.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::attempt::Forward;
use super::inside::Inside;
use super::pool::{ConnectError, Lease, Pool};
use super::relay::chain;
use super::serve::Core;
use super::survive::{Held, TooLong, events};
use super::wire::Wire;
use super::{anthropic, meter};
use crate::backend::Backend;
use crate::terms::{Api, Spending};

/// Largest answer taken in whole, in bytes.
const WHOLE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest request head, and largest read, in bytes.
const BUFFER_MAX: usize = 64 * 1024;

/// What stands behind one request.
pub(crate) struct Door {
    pub(crate) pool: Pool,
    pub(crate) backend: Backend,
    pub(crate) spending: Spending,
}

impl Core {
    /// A connection to a backend: one that is kept, a new one, or one through its door.
    pub(crate) async fn connect(
        &self,
        forward: &Forward<'_>,
        backend: &Backend,
    ) -> Result<Lease, ConnectError> {
        match &backend.terms {
            Some(terms) if !terms.is_plain() => {
                let spending = Spending::new(terms.clone(), forward.on_behalf_of);
                let door = Door { pool: self.pool.clone(), backend: backend.clone(), spending };
                Ok(Lease::inside(Wire::new(door.open()).await?))
            }
            _ => self.pool.lease(&backend.url).await,
        }
    }
}

impl Door {
    fn open(self) -> Inside {
        Inside::new(move |far| async move {
            // One request comes, since the connection is not kept.
            let door = std::sync::Mutex::new(Some(self));
            let service = service_fn(|request: Request<Incoming>| {
                let door = door.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                async move {
                    let Some(door) = door else { return Err("a second request on one connection") };
                    Ok(match door.backend.terms.as_ref().map(|terms| terms.api) {
                        Some(Api::Anthropic) => anthropic::answer(door, request).await,
                        _ => meter::answer(door, request).await,
                    })
                }
            });
            let served = http1::Builder::new()
                .max_buf_size(BUFFER_MAX)
                .keep_alive(false)
                .serve_connection(TokioIo::new(far), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(error = chain(&error), "a provider's answer ended early");
            }
        })
    }
}

/// An answer through a door.
pub(crate) type Answered = Response<Passing>;

/// Its body.
pub(crate) enum Passing {
    Whole(Option<Bytes>),
    Stream(Pin<Box<dyn Body<Data = Bytes, Error = String> + Send>>),
}

/// An answer in JSON.
pub(crate) fn whole(status: StatusCode, json: impl Into<Bytes>) -> Answered {
    let mut response = Response::new(Passing::Whole(Some(json.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The question, which the gateway has bounded.
pub(crate) async fn read_request(request: Request<Incoming>) -> Result<Bytes, String> {
    Ok(request.into_body().collect().await.map_err(|error| chain(&error))?.to_bytes())
}

pub(crate) async fn read_whole(lease: &mut Lease, incoming: Incoming) -> Result<Bytes, String> {
    read_up_to(WHOLE_BYTES_MAX, lease, incoming).await
}

pub(crate) async fn read_up_to(
    limit: usize,
    lease: &mut Lease,
    mut incoming: Incoming,
) -> Result<Bytes, String> {
    let mut all = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| lease.wire.poll_body(&mut incoming, cx)).await {
        let Ok(piece) = frame.map_err(|error| chain(&error))?.into_data() else { continue };
        if all.len() + piece.len() > limit {
            return Err(format!("its answer is larger than {limit} bytes"));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all.freeze())
}

/// What a stream's events become.
pub(crate) trait Rewrite: Send + Unpin + 'static {
    /// Takes one whole event; what is to go on is put behind `out`.
    ///
    /// # Errors
    /// Why the stream is broken here.
    fn event(&mut self, event: &[u8], out: &mut Vec<u8>) -> Result<(), String>;

    /// Whether the answer is complete; what comes behind that is not read.
    fn is_over(&self) -> bool;

    /// Takes what is no whole event: the end of a stream, or an event that is too long to be held.
    ///
    /// # Errors
    /// Why the stream is broken there.
    fn rest(&mut self, rest: &[u8], _out: &mut Vec<u8>) -> Result<(), String> {
        match rest.len() {
            0 => Err("the provider ended it early".into()),
            long => Err(format!("an event of {long} bytes has no end")),
        }
    }
}

/// A provider's stream of events on its way.
pub(crate) struct Stream<R> {
    /// None once it was read to its end.
    source: Option<(Lease, Incoming)>,
    held: Held,
    out: Vec<u8>,
    rewrite: R,
    failed: Failed,
}

/// How far a failure has come on its way out.
enum Failed {
    No,
    /// Held back for one turn, so that what was said before it gets out.
    Seen(String),
    Due(String),
}

impl<R: Rewrite> Stream<R> {
    pub(crate) fn new(lease: Lease, incoming: Incoming, rewrite: R) -> Self {
        let (held, out) = Default::default();
        Self { source: Some((lease, incoming)), held, out, rewrite, failed: Failed::No }
    }

    pub(crate) fn rewrite(&self) -> &R {
        &self.rewrite
    }

    /// Reads until there is something to say, or nothing more.
    pub(crate) async fn until_said(&mut self) -> Result<(), String> {
        poll_fn(|cx| {
            while self.out.is_empty() && self.source.is_some() {
                ready!(self.poll_more(cx));
            }
            Poll::Ready(())
        })
        .await;
        match &self.failed {
            Failed::Seen(why) if self.out.is_empty() => Err(why.clone()),
            _ => Ok(()),
        }
    }

    pub(crate) fn into_answer(self) -> Answered {
        let mut response = Response::new(Passing::Stream(Box::pin(self)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        response
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((lease, incoming)) = &mut self.source else { return Poll::Ready(()) };
        let frame = ready!(lease.wire.poll_body(incoming, cx));
        if let Err(why) = self.take(frame) {
            self.source = None;
            self.failed = Failed::Seen(why);
        }
        Poll::Ready(())
    }

    fn take(&mut self, frame: Option<Result<Frame<Bytes>, hyper::Error>>) -> Result<(), String> {
        let Some(frame) = frame else {
            self.source = None;
            return self.rewrite.rest(&self.held.take(), &mut self.out);
        };
        let Ok(piece) = frame.map_err(|error| chain(&error))?.into_data() else { return Ok(()) };
        let whole = match self.held.pass(piece) {
            Ok(whole) => whole,
            Err(TooLong(all)) => return self.rewrite.rest(&all, &mut self.out),
        };
        for event in events(&whole) {
            self.rewrite.event(event, &mut self.out)?;
            if self.rewrite.is_over() {
                self.source = None;
                break;
            }
        }
        Ok(())
    }
}

impl<R: Rewrite> Body for Stream<R> {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        let this = self.get_mut();
        loop {
            if !this.out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.out).into()))));
            }
            match std::mem::replace(&mut this.failed, Failed::No) {
                Failed::No if this.source.is_none() => return Poll::Ready(None),
                Failed::No => ready!(this.poll_more(cx)),
                Failed::Seen(why) => {
                    this.failed = Failed::Due(why);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Failed::Due(why) => return Poll::Ready(Some(Err(why))),
            }
        }
    }
}

impl Body for Passing {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => stream.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Whole(bytes) => {
                http_body::SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(_) => http_body::SizeHint::default(),
        }
    }
}
