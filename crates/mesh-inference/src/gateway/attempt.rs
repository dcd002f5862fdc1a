//! Asking one backend, or one peer's gateway, and taking its answer over.

use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{self, HeaderMap, HeaderValue};
use http::response::Parts;
use http::uri::Uri;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use mesh_identity::{NodeId, ScopeId};
use mesh_routing::{Load, Target};
use mesh_transport::Protocol;
use tracing::{Instrument, Span};

use super::endpoint::Endpoint;
use super::error::{HOST_LOST, QUOTA_EXCEEDED};
use super::headers::{MESH_CONTINUES, MESH_ERROR, MESH_LOAD, clean_answer, is_event_stream, upstream};
use super::model_field::with_model;
use super::pool::Lease;
use super::relay::{Relay, chain};
use super::reply::Reply;
use super::serve::Core;
use super::ticket::Ticket;
use super::trace::TraceContext;
use super::wire::Wire;
use crate::backend::{Backend, BackendKind};
use crate::terms::UsedUp;

/// HTTP/1.1 between gateways, one request on each stream.
pub(crate) const PROTOCOL: Protocol = Protocol::new("gateway/1");

/// Why an answer ends whose node was revoked in the middle of it.
const REVOKED: &str = "its node is not allowed here any more";
/// Why an answer ends whose backend ends on purpose: its model moves, or is dropped.
const ENDED: &str = "its backend was ended";

/// When to ask again a peer whose quota is used up, should it not say.
const QUOTA_RETRY_AFTER: Duration = Duration::from_secs(60);

/// A request on its way out.
pub(crate) struct Forward<'a> {
    pub(crate) endpoint: Endpoint,
    /// The caller's headers.
    pub(crate) headers: &'a HeaderMap,
    pub(crate) id: &'a HeaderValue,
    pub(crate) body: Bytes,
    pub(crate) model: Arc<str>,
    /// It goes on with an answer, which only some backends can.
    pub(crate) continuing: bool,
    /// Whose prompt cache has the beginning of this conversation.
    pub(crate) last: Option<Maker>,
    /// The other node on whose behalf it is asked, whose quota it counts against.
    pub(crate) on_behalf_of: Option<NodeId>,
}

/// Who makes an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker {
    /// A backend of this node, by [`Core::backend_key`].
    Backend(u64),
    Peer(NodeId),
}

/// An answer whose first byte is there, or that has none.
pub(crate) struct Taken {
    /// Freed of what ends at this hop.
    pub(crate) head: Parts,
    pub(crate) relay: Relay,
    /// Whether its backend could also go on with an answer that another one began.
    pub(crate) continues: bool,
    pub(crate) maker: Maker,
}

impl Taken {
    /// The answer as it is.
    pub(crate) fn into_response(self) -> Response<Reply> {
        Response::from_parts(self.head, Reply::relay(self.relay))
    }

    /// Whether it is a stream of events that can be gone on with elsewhere.
    pub(crate) fn is_event_stream(&self) -> bool {
        self.head.status == StatusCode::OK && self.relay.is_open_stream()
    }
}

/// Why a provider gave no answer. Nothing of one has reached the caller: the next provider can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Miss {
    /// It holds all the requests it can.
    Full { retry_after: Option<Duration> },
    /// The caller's node has used up what it may.
    OverQuota { why: String, retry_after: Duration },
    /// It says so itself: still loading, say.
    NotReady { reason: String, retry_after: Option<Duration> },
    /// It had the request, and is gone before the first byte of its answer: another one, or it itself once it is back, may
    /// do better.
    Lost(String),
    /// No connection, no answer in time, or one that is of no use.
    Failed(String),
}

impl Miss {
    fn over_quota(UsedUp { why, retry_after }: UsedUp) -> Self {
        Self::OverQuota { why, retry_after }
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full { .. } => f.write_str("full"),
            Self::OverQuota { why, .. } => f.write_str(why),
            Self::NotReady { reason, .. } => write!(f, "not ready ({reason})"),
            Self::Lost(why) | Self::Failed(why) => f.write_str(why),
        }
    }
}

/// Why no head of an answer came.
enum NoHead {
    Closed(String),
    Late(String),
}

impl Core {
    /// What counts a backend's requests: its name and address, hashed.
    pub(crate) fn backend_key(&self, backend: &Backend) -> u64 {
        self.hasher.hash_one((&backend.model, &backend.url))
    }

    /// Asks one of this node's backends.
    pub(crate) async fn ask_backend(&self, forward: &Forward<'_>, backend: &Backend) -> Result<Taken, Miss> {
        let (trace, span) = self.attempt(forward, "here");
        noted(self.ask_backend_within(forward, backend, trace).instrument(span.clone()).await, &span)
    }

    /// A span of its own for an attempt; its trace goes along with the request.
    fn attempt(&self, forward: &Forward<'_>, target: &str) -> (Option<TraceContext>, Span) {
        let Some(request) = TraceContext::of(forward.headers) else { return (None, Span::none()) };
        let own = request.child(self.random());
        let span = own.attempt(request.span(), target);
        // Where nobody looks at attempts, what comes behind is the request's.
        let trace = if span.is_disabled() { request } else { own };
        (Some(trace), span)
    }

    async fn ask_backend_within(
        &self,
        forward: &Forward<'_>,
        backend: &Backend,
        trace: Option<TraceContext>,
    ) -> Result<Taken, Miss> {
        if let (Some(terms), Some(node)) = (&backend.terms, forward.on_behalf_of) {
            terms.admit(node, Instant::now()).map_err(Miss::over_quota)?;
        }
        let room =
            backend.slots.map_or(usize::MAX, |slots| slots.saturating_add(self.config.backend_queue_max));
        let entered = self
            .at_backends
            .enter(&self.backend_key(backend), room)
            .ok_or(Miss::Full { retry_after: None })?;
        let mut ticket = Ticket::new(&*self.routes, &Target::Local, &forward.model, Some(entered));
        let body = match &backend.upstream_model {
            Some(name) if **name != *forward.model => {
                let spliced = with_model(&forward.body, name)
                    .ok_or_else(|| Miss::Failed("its model name does not fit in".into()))?;
                Bytes::from(spliced)
            }
            _ => forward.body.clone(),
        };
        let request = || {
            let mut headers = upstream(forward.headers, forward.id, false);
            if let Some(trace) = trace {
                trace.write(&mut headers);
            }
            add_backend_headers(&mut headers, backend)?;
            Ok::<_, String>(post(forward.endpoint.path_at(&backend.url), headers, body.clone()))
        };
        let mut next = request().map_err(Miss::Failed)?;
        let sent = async {
            let mut lease =
                self.connect(forward, backend).await.map_err(|error| Miss::Failed(chain(&error)))?;
            loop {
                match self.send(&mut lease.wire, next).await {
                    Ok(answer) => return Ok((answer, lease)),
                    // A kept-alive connection that its far end has closed in this moment says nothing of the backend.
                    Err(NoHead::Closed(_)) if lease.reused => {
                        let fresh = Box::pin(self.pool.fresh(&backend.url)).await;
                        lease = fresh.map_err(|error| Miss::Failed(chain(&error)))?;
                        next = request().map_err(Miss::Failed)?;
                    }
                    // What somebody else runs may have been paid for.
                    Err(NoHead::Closed(why)) if backend.kind == BackendKind::Local => {
                        return Err(Miss::Lost(why));
                    }
                    Err(NoHead::Closed(why) | NoHead::Late(why)) => return Err(Miss::Failed(why)),
                }
            }
        };
        // A server that was asked to end makes nothing more of its answers, and ends once nobody waits for them.
        let sent = async {
            tokio::select! {
                biased;
                () = backend.ended() => Err(Miss::Lost(ENDED.to_owned())),
                sent = sent => sent,
            }
        };
        match sent.await {
            Ok((answer, lease)) => {
                let maker = Maker::Backend(self.backend_key(backend));
                let lease = lease.until(backend.ended().map(|()| ENDED).boxed());
                self.take_over(forward, answer, lease, ticket, (maker, backend.continues())).await
            }
            Err(miss) => {
                ticket.failed();
                Err(miss)
            }
        }
    }

    /// Asks another node's gateway.
    pub(crate) async fn ask_peer(
        &self,
        forward: &Forward<'_>,
        scope: &ScopeId,
        node: &NodeId,
    ) -> Result<Taken, Miss> {
        let (trace, span) = self.attempt(forward, &node.short());
        noted(self.ask_peer_within(forward, scope, node, trace).instrument(span.clone()).await, &span)
    }

    async fn ask_peer_within(
        &self,
        forward: &Forward<'_>,
        scope: &ScopeId,
        node: &NodeId,
        trace: Option<TraceContext>,
    ) -> Result<Taken, Miss> {
        let target = Target::Peer { scope: *scope, node: *node };
        let Some(transport) = &self.transport else {
            return Err(Miss::Failed("there is no mesh".into()));
        };
        let mut ticket = Ticket::new(&*self.routes, &target, &forward.model, None);
        let mut headers = upstream(forward.headers, forward.id, true);
        if let Some(trace) = trace {
            trace.write(&mut headers);
        }
        headers.insert(header::HOST, HeaderValue::from_static("mesh"));
        if forward.continuing {
            headers.insert(MESH_CONTINUES, HeaderValue::from_static("1"));
        }
        let path = forward.endpoint.path_at(&Uri::from_static("/"));
        let sent = async {
            let limit = self.config.connect_timeout;
            let open = tokio::time::timeout(limit, transport.open(scope, node, PROTOCOL)).await;
            let open = open.map_err(|_| Miss::Failed(format!("no stream within {limit:?}")))?;
            let stream = open.map_err(|error| Miss::Failed(chain(&error)))?;
            let cut_off = stream.cut_off().map(|()| REVOKED).boxed();
            let wire = Wire::new(stream).await.map_err(|error| Miss::Failed(chain(&error)))?;
            let mut lease = Lease::once(wire, cut_off);
            let sent = self.send(&mut lease.wire, post(path, headers, forward.body.clone())).await;
            let answer = sent.map_err(|no_head| match no_head {
                NoHead::Closed(why) => Miss::Lost(why),
                NoHead::Late(why) => Miss::Failed(why),
            })?;
            Ok::<_, Miss>((answer, lease))
        };
        match sent.await {
            Ok((answer, lease)) => {
                if let Some(load) = load_of(answer.headers()) {
                    ticket.note_load(load);
                }
                let continues = answer.headers().contains_key(MESH_CONTINUES);
                self.take_over(forward, answer, lease, ticket, (Maker::Peer(*node), continues)).await
            }
            Err(miss) => {
                ticket.failed();
                Err(miss)
            }
        }
    }

    async fn send(
        &self,
        wire: &mut Wire,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, NoHead> {
        let limit = self.config.head_timeout;
        match tokio::time::timeout(limit, wire.send(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if error.is_incomplete_message() => {
                Err(NoHead::Closed("it closed the connection without an answer".into()))
            }
            Ok(Err(error)) => Err(NoHead::Closed(chain(&error))),
            Err(_) => Err(NoHead::Late(format!("no answer within {limit:?}"))),
        }
    }

    /// Makes an answer's head and body the caller's, once its first byte is there.
    async fn take_over(
        &self,
        forward: &Forward<'_>,
        answer: Response<Incoming>,
        lease: Lease,
        mut ticket: Ticket,
        (maker, continues): (Maker, bool),
    ) -> Result<Taken, Miss> {
        let makes_again = continues || matches!(maker, Maker::Peer(_));
        let (mut head, incoming) = answer.into_parts();
        if let Some(miss) = miss_of(head.status, &head.headers) {
            if matches!(miss, Miss::Failed(_) | Miss::Lost(_)) {
                ticket.failed();
            }
            return Err(miss);
        }
        if forward.continuing && !continues {
            return Err(Miss::Failed("it cannot go on with an answer".into()));
        }
        let form = is_event_stream(&head.headers).then(|| forward.endpoint.stream_form());
        let mut relay = Relay::new(incoming, lease, form, ticket, self.config.silence_max);
        match tokio::time::timeout(self.config.head_hold, relay.first_piece()).await {
            Ok(Ok(())) | Err(_) => {}
            Ok(Err(broken)) => {
                relay.failed();
                return Err(if makes_again {
                    Miss::Lost(broken.to_string())
                } else {
                    Miss::Failed(broken.to_string())
                });
            }
        }
        clean_answer(&mut head.headers);
        Ok(Taken { head, relay, continues, maker })
    }
}

/// Says in an attempt's span why it gave no answer.
fn noted(tried: Result<Taken, Miss>, span: &Span) -> Result<Taken, Miss> {
    tried.inspect_err(|miss| {
        span.record("error", tracing::field::display(miss));
    })
}

/// A peer's word on its load; one that cannot be read is none.
fn load_of(headers: &HeaderMap) -> Option<Load> {
    headers.get(MESH_LOAD)?.to_str().ok()?.parse().ok()
}

/// Whether an answer means "ask somebody else".
fn miss_of(status: StatusCode, headers: &HeaderMap) -> Option<Miss> {
    let mesh_error = headers.get(MESH_ERROR).and_then(|code| code.to_str().ok());
    let retry_after = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    // A day: a longer wait is no answer to a request.
    let retry_after = retry_after.filter(|seconds| *seconds <= 86_400).map(Duration::from_secs);
    match status.as_u16() {
        429 if mesh_error == Some(QUOTA_EXCEEDED) => Some(Miss::OverQuota {
            why: "its quota for this node is used up".into(),
            retry_after: retry_after.unwrap_or(QUOTA_RETRY_AFTER),
        }),
        429 => Some(Miss::Full { retry_after }),
        503 if mesh_error == Some(HOST_LOST) => {
            Some(Miss::Lost("it lost its own host before the answer began".into()))
        }
        503 => {
            Some(Miss::NotReady { reason: mesh_error.unwrap_or("it answers 503").to_owned(), retry_after })
        }
        502 | 504 => Some(Miss::Failed(format!("it answers {}", status.as_u16()))),
        // The key is this node's, not the caller's.
        401 | 403 if mesh_error.is_none() => {
            Some(Miss::Failed(format!("it refuses this node ({})", status.as_u16())))
        }
        _ => match mesh_error {
            // The peer's own word on the request itself is final; on what it has or does, another may differ.
            Some("model_not_found" | "unknown_url" | "method_not_allowed" | "request_timeout") => {
                Some(Miss::Failed(format!("it answers {}", mesh_error.unwrap_or_default())))
            }
            _ => None,
        },
    }
}

/// Names the backend's host and shows its key; else says what is wrong with the backend.
fn add_backend_headers(headers: &mut HeaderMap, backend: &Backend) -> Result<(), String> {
    let host = backend.url.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    headers.insert(header::HOST, host.ok_or("its URL has no host")?);
    if let Some(secret) = &backend.auth {
        let bearer = HeaderValue::from_str(&format!("Bearer {}", secret.expose()));
        let mut bearer = bearer.map_err(|_| "its API key is not a header value")?;
        bearer.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, bearer);
    }
    Ok(())
}

fn post(path: Uri, headers: HeaderMap, body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path;
    *request.headers_mut() = headers;
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    fn miss(status: u16, pairs: &[(&'static str, &'static str)]) -> Option<Miss> {
        let headers = pairs
            .iter()
            .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        miss_of(StatusCode::from_u16(status).unwrap(), &headers)
    }

    #[test]
    fn answers_that_mean_ask_somebody_else() {
        assert_eq!(
            miss(429, &[("retry-after", "7")]),
            Some(Miss::Full { retry_after: Some(Duration::from_secs(7)) })
        );
        assert_eq!(
            miss(429, &[("retry-after", "7"), ("x-mesh-error", "quota_exceeded")])
                .map(|miss| miss.to_string()),
            Some("its quota for this node is used up".into())
        );
        assert!(matches!(
            miss(503, &[("retry-after", "soon")]),
            Some(Miss::NotReady { retry_after: None, .. })
        ));
        assert!(matches!(miss(502, &[]), Some(Miss::Failed(_))));
        assert!(matches!(miss(401, &[]), Some(Miss::Failed(_))));
        assert!(matches!(miss(404, &[("x-mesh-error", "model_not_found")]), Some(Miss::Failed(_))));
    }

    #[test]
    fn answers_that_are_the_callers_own() {
        for status in [200, 400, 404, 413, 422, 500] {
            assert_eq!(miss(status, &[]), None, "{status}");
        }
        assert_eq!(miss(413, &[("x-mesh-error", "request_too_large")]), None);
    }
}
