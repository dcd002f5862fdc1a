//! The endpoints.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use mesh_identity::{NodeId, UnixTime};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::desk::{Caller, Delegation, Desk, Standing};
use super::directory::{Directory, JoinError};
use super::fault::{Code, Fault, FaultBody};
use super::limits::Limits;
use super::message::{
    CHAIN_HEADER, KEY_BYTES_MAX, KEY_HEADER, ListedAgents, MessageRequest, MessageResponse, Ping, Status,
};
use super::metrics::Counters;
use super::once::{Once, Turn, UnderWay};
use super::tls::{Clock, Tls};
use super::work::{News, Reader, Terms};
use super::{a2a, claims};
use crate::chain::{Chain, ChainError, DEPTH_MAX, SignedChain};

/// What all requests share.
pub(crate) struct Api {
    pub(crate) tls: Tls,
    pub(crate) desk: Arc<dyn Desk>,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) limits: Limits,
    pub(crate) once: Arc<Once>,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<Counters>,
    /// Delegations under way.
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

type Shared = State<Arc<Api>>;
type Who = Extension<Caller>;

pub(crate) fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/api/mesh/ping", get(ping))
        .route("/api/mesh", get(registry))
        .route("/api/mesh/join", post(join))
        .route("/api/agents", get(agents))
        .route("/api/message", post(message))
        .route("/.well-known/agent-card.json", get(a2a::card))
        .route(a2a::PATH, post(a2a::call))
        .fallback(async || {
            Fault::new(Code::NotFound, "there is nothing here")
                .with_mend("docs/agent-channel.md lists the endpoints")
        })
        .method_not_allowed_fallback(async || {
            Fault::new(Code::MethodNotAllowed, "this path is asked by another method")
        })
        .with_state(api)
}

async fn ping(State(api): Shared, Extension(caller): Who, headers: HeaderMap) -> Result<Json<Ping>, Fault> {
    api.admit_anybody(&caller, &headers, "GET /api/mesh/ping")?;
    Ok(Json(Ping {
        status: "ok".to_owned(),
        ok: true,
        node: api.tls.leaf().name.to_string(),
        tls: true,
        cn: caller.leaf.name.to_string(),
    }))
}

async fn registry(
    State(api): Shared,
    Extension(caller): Who,
    headers: HeaderMap,
) -> Result<Json<Value>, Fault> {
    api.admit_anybody(&caller, &headers, "GET /api/mesh")?;
    Ok(Json(api.directory.view()))
}

async fn join(
    State(api): Shared,
    Extension(caller): Who,
    request: Request<Body>,
) -> Result<Json<Value>, Fault> {
    let (head, body) = request.into_parts();
    claims::header(&caller.leaf, &head.headers).map_err(|fault| api.refused(fault))?;
    let body = api.body(&head.headers, body).await?;
    let body: Value = serde_json::from_slice(&body).map_err(bad_json)?;
    let node = claims::joining(&caller.leaf, body).map_err(|fault| api.refused(fault))?;
    api.accepted(&caller, "POST /api/mesh/join");
    let registry = api.directory.join(&caller.leaf, node).await.map_err(|error| match error {
        JoinError::Malformed(why) => Fault::new(Code::BadRequest, why),
        JoinError::NotYours(why) => api.refused(Fault::new(Code::NotYou, why)),
        JoinError::Unavailable(why) => Fault::new(Code::Unavailable, why),
    })?;
    Ok(Json(registry))
}

async fn agents(
    State(api): Shared,
    Extension(caller): Who,
    headers: HeaderMap,
) -> Result<Json<ListedAgents>, Fault> {
    let standing = api.admit(&caller, &headers)?;
    api.accepted(&caller, "GET /api/agents");
    let agents = api.desk.agents(&caller, &standing).await?;
    Ok(Json(ListedAgents { node: api.tls.leaf().name.to_string(), agents }))
}

async fn message(
    State(api): Shared,
    Extension(caller): Who,
    request: Request<Body>,
) -> Result<Response, Fault> {
    let (Parts { headers, .. }, body) = request.into_parts();
    let standing = api.admit(&caller, &headers)?;
    let body = api.body(&headers, body).await?;
    let request: MessageRequest = serde_json::from_slice(&body).map_err(bad_json)?;
    let from =
        claims::agent(&caller.leaf, &request.from_agent).map_err(|fault| api.refused(fault))?.to_owned();
    if request.message.trim().is_empty() {
        return Err(Fault::new(Code::BadRequest, "the message is empty"));
    }
    let (chain, depth) = api.chain(&caller, &standing, &headers, &request)?;
    let key = key(&headers)?;
    let is_waited_for = request.wait_for_response.unwrap_or(true);
    let deadline = request.timeout_ms.map_or(api.limits.deadline, Duration::from_millis);
    let deadline = deadline.clamp(Duration::from_millis(1), api.limits.deadline_max);
    let to = match &request.to_agent {
        Some(to) => Some(claims::asked(&api.tls.leaf(), to)?.to_owned()),
        None => None,
    };
    let shown = to.clone().unwrap_or_default();
    tracing::info!(peer.cn = %caller.leaf.name, %from, to = %shown, "Received mesh delegation");
    api.counters.accepted();
    let reader = match api.once.enter(&caller.leaf.name, key.as_deref(), &body)? {
        Turn::Again(work) => work.read(),
        Turn::First(under_way) => {
            // Somebody waits from the first moment on.
            let reader = under_way.work.read();
            let terms = Terms {
                deadline,
                orphaned: is_waited_for.then_some(if key.is_some() {
                    api.limits.orphaned
                } else {
                    Duration::ZERO
                }),
                answer_bytes_max: api.limits.answer_bytes_max,
            };
            let delegation = Delegation {
                context: request.context_texts(),
                caller,
                standing,
                from_agent: from,
                to_agent: to,
                task: request.message,
                model: request.model,
                chain,
                depth,
                deadline,
            };
            api.begin(under_way, delegation, terms);
            reader
        }
    };
    if !is_waited_for {
        let accepted = MessageResponse {
            response: String::new(),
            agent: shown,
            duration_ms: 0,
            status: Status::Accepted,
        };
        return Ok((StatusCode::ACCEPTED, Json(accepted)).into_response());
    }
    if wants_stream(&headers) { Ok(streamed(reader, api.limits.heartbeat)) } else { whole(reader).await }
}

impl Api {
    /// The caller and what it is here, when it is in the registry and somebody to this node.
    pub(crate) fn admit(&self, caller: &Caller, headers: &HeaderMap) -> Result<Standing, Fault> {
        let admitted = claims::header(&caller.leaf, headers).and_then(|()| {
            if !self.directory.knows(&caller.leaf.name) {
                return Err(claims::not_registered(&caller.leaf.name));
            }
            self.desk.standing(&caller.leaf).ok_or_else(|| {
                Fault::new(Code::NotAllowed, "the certificate gives no role here").with_mend(
                    "the node that it names has to be in the mesh, or this node's `[agent_channel] role` has to say what callers are",
                )
            })
        });
        admitted.map_err(|fault| self.refused(fault))
    }

    fn admit_anybody(&self, caller: &Caller, headers: &HeaderMap, what: &'static str) -> Result<(), Fault> {
        claims::header(&caller.leaf, headers).map_err(|fault| self.refused(fault))?;
        self.accepted(caller, what);
        Ok(())
    }

    /// The line by which people find who asked.
    pub(crate) fn accepted(&self, caller: &Caller, what: &'static str) {
        tracing::info!(peer.cn = %caller.leaf.name, request = what, "Received mesh request");
        self.counters.accepted();
    }

    fn refused(&self, fault: Fault) -> Fault {
        tracing::debug!(code = ?fault.code, "a request is refused: {fault}");
        fault
    }

    pub(crate) async fn body(&self, headers: &HeaderMap, body: Body) -> Result<Bytes, Fault> {
        let bytes_max = self.limits.body_bytes_max;
        let too_large = || {
            Fault::new(Code::TooLarge, format!("a body has at most {bytes_max} bytes"))
                .with_mend("send less context")
        };
        let length = headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > bytes_max)) {
            return Err(too_large());
        }
        let read = Limited::new(body, bytes_max).collect();
        match tokio::time::timeout(self.limits.body, read).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(_)) => Err(Fault::new(Code::BadRequest, "the body broke off")),
            Err(_) => Err(Fault::new(Code::TooSlow, "the body did not arrive in time")),
        }
    }

    /// The chain that the request brings, believed, and how deep the delegation is.
    fn chain(
        &self,
        caller: &Caller,
        standing: &Standing,
        headers: &HeaderMap,
        request: &MessageRequest,
    ) -> Result<(Option<Chain>, usize), Fault> {
        let said = usize::try_from(request.chain_depth.unwrap_or_default()).unwrap_or(usize::MAX);
        let chain = match (headers.get(CHAIN_HEADER), caller.leaf.node) {
            (None, _) => None,
            (Some(_), None) => {
                let why = "a certificate that names no node brings no signed chain";
                return Err(Fault::new(Code::BadRequest, why)
                    .with_mend(format!("leave {CHAIN_HEADER} out; chainDepth says how deep it is")));
            }
            (Some(chain), Some(node)) => Some(self.believed(chain, &node, standing)?),
        };
        let signed = chain.as_ref().map_or(0, Chain::depth);
        let depth = signed.max(said.saturating_add(1));
        if depth > DEPTH_MAX {
            return Err(Fault::new(
                Code::Loop,
                format!("delegated {depth} deep; at most {DEPTH_MAX} is allowed"),
            )
            .with_mend("let the agent that was asked last do it by itself"));
        }
        Ok((chain, depth))
    }

    fn believed(&self, chain: &HeaderValue, from: &NodeId, standing: &Standing) -> Result<Chain, Fault> {
        let no_chain = || Fault::new(Code::BadRequest, format!("{CHAIN_HEADER} holds no delegation chain"));
        let signed: SignedChain =
            chain.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(no_chain)?;
        let (me, now): (NodeId, UnixTime) = (self.desk.me(), (self.clock)());
        let mut refused = None;
        for scope in &standing.scopes {
            match signed.clone().verify(scope, from, &me, now) {
                Ok(chain) => return Ok(chain),
                // What is wrong with it in every scope is said rather than that this is not its scope.
                Err(error @ ChainError::BadSignature { .. }) => refused = refused.or(Some(error)),
                Err(error) => refused = Some(error),
            }
        }
        let error = refused.ok_or_else(no_chain)?;
        let code = match error {
            ChainError::Loop { .. } | ChainError::TooDeep { .. } => Code::Loop,
            ChainError::Expired { .. } => Code::TimedOut,
            _ => Code::NotAllowed,
        };
        Err(self.refused(Fault::new(code, error.to_string())))
    }

    /// Has the delegation carried out, by a task of its own: several may wait for it, and who waits may change.
    pub(crate) fn begin(self: &Arc<Self>, under_way: UnderWay, delegation: Delegation, terms: Terms) {
        let api = self.clone();
        self.tasks.spawn(async move {
            let pieces = api.desk.deliver(delegation);
            under_way.work.carry_out(pieces, terms, &api.stop, &api.counters).await;
        });
    }
}

fn bad_json(error: serde_json::Error) -> Fault {
    Fault::new(Code::BadRequest, format!("the body is not what this path takes: {error}"))
}

fn key(headers: &HeaderMap) -> Result<Option<String>, Fault> {
    let Some(key) = headers.get(KEY_HEADER) else { return Ok(None) };
    match key.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= KEY_BYTES_MAX => Ok(Some(key.to_owned())),
        _ => Err(Fault::new(
            Code::BadRequest,
            format!("an Idempotency-Key has 1 to {KEY_BYTES_MAX} characters"),
        )),
    }
}

fn wants_stream(headers: &HeaderMap) -> bool {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    accept.flat_map(|accept| accept.split(',')).any(|one| {
        one.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
    })
}

async fn whole(reader: Reader) -> Result<Response, Fault> {
    Ok(Json(reader.outcome().await?).into_response())
}

/// An event for each piece of news, and a comment when there is none.
fn streamed(reader: Reader, heartbeat: Duration) -> Response {
    let events = stream::unfold(Some(reader), move |reader| async move {
        let mut reader = reader?;
        let (event, is_last) = match tokio::time::timeout(heartbeat, reader.next()).await {
            Err(_) => (Bytes::from_static(b": still at it\n\n"), false),
            Ok(News::Begun { agent, session }) => {
                (event("started", &json!({"agent": agent, "session": session})), false)
            }
            Ok(News::Text(text)) => (event("text", &json!({"text": text})), false),
            Ok(News::Over(Ok(response))) => (event("done", &response), true),
            Ok(News::Over(Err(error))) => (event("error", &FaultBody { error }), true),
        };
        Some((Ok::<_, Infallible>(event), (!is_last).then_some(reader)))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Body::from_stream(events)).into_response()
}

fn event(kind: &str, data: &impl serde::Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("what is sent here has texts as keys");
    format!("event: {kind}\ndata: {data}\n\n").into()
}
