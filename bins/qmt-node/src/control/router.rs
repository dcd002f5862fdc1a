//! Endpoints of the control API, each a call of the node's own method.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use http::{Method, StatusCode, Uri, header};
use mesh_control::{ApiError, AuditQuery, ConsoleClosed, Endpoint, ErrorCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::events::event_stream;
use crate::node::Node;

/// Longest request body where nothing is said to an agent, bytes: the longest request is a join with a token of a few hundred
/// characters.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// The control API of `node`. Whoever serves it decides who may connect: the Unix socket by its file mode.
pub fn router(node: Node) -> Router {
    Router::new()
        .route(Endpoint::Status.path(), get(status))
        .route(Endpoint::Nodes.path(), get(nodes))
        .route(
            Endpoint::Invites.path(),
            get(invites).merge(asked(|node, request| async move { node.invite(request).await })),
        )
        .route(Endpoint::Revoke.path(), asked(|node, request| async move { node.revoke(request).await }))
        .route(Endpoint::Recover.path(), asked(|node, request| async move { node.recover(request).await }))
        .route(Endpoint::Admins.path(), asked(|node, request| async move { node.appoint(request).await }))
        .route(Endpoint::Join.path(), asked(|node, request| async move { node.join(request).await }))
        .route(Endpoint::Leave.path(), asked(|node, request| async move { node.leave(request).await }))
        .route(Endpoint::Ping.path(), asked(|node, request| async move { node.ping(request).await }))
        .route(Endpoint::Models.path(), get(models))
        .route(Endpoint::Load.path(), asked(|node, request| async move { node.load(request).await }))
        .route(Endpoint::Drop.path(), asked(|node, request| async move { node.drop_model(request).await }))
        .route(Endpoint::Pull.path(), asked(|node, request| async move { node.pull(request) }))
        .route(Endpoint::StopPull.path(), asked(|node, request| async move { node.stop_pull(request) }))
        .route(Endpoint::Pulls.path(), get(pulls))
        .route(Endpoint::Plan.path(), asked(|node, request| async move { node.plan(request).await }))
        .route(Endpoint::Routes.path(), get(routes))
        .route(Endpoint::Audit.path(), get(audit))
        .route(Endpoint::Doctor.path(), get(doctor))
        .route(Endpoint::Events.path(), get(events))
        .route(
            Endpoint::ConsoleLink.path(),
            asked(|node, request| async move { node.console_link(&request) }),
        )
        .route(
            Endpoint::CloseConsole.path(),
            asked(|node, _: ConsoleClosed| async move { node.close_console().await }),
        )
        .route(Endpoint::Metrics.path(), get(metrics))
        .merge(super::logs::routes())
        .merge(super::sessions::routes())
        .fallback(no_such_endpoint)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(node)
}

async fn status(State(node): State<Node>) -> Response {
    json(StatusCode::OK, &node.status().await)
}

async fn nodes(State(node): State<Node>) -> Response {
    json(StatusCode::OK, &node.nodes())
}

async fn invites(State(node): State<Node>) -> Response {
    answer(node.invites().await)
}

async fn models(State(node): State<Node>) -> Response {
    json(StatusCode::OK, &node.models())
}

async fn pulls(State(node): State<Node>) -> Response {
    json(StatusCode::OK, &node.pulls())
}

#[derive(Deserialize)]
struct RouteQuery {
    model: Option<String>,
    node: Option<String>,
}

async fn routes(State(node): State<Node>, Query(query): Query<RouteQuery>) -> Response {
    match (query.model, query.node) {
        (model, None) => answer(node.routes(model.as_deref())),
        (None, Some(peer)) => answer(node.routes_for_peer(&peer)),
        (Some(_), Some(_)) => failure(&ApiError::new(
            ErrorCode::BadRequest,
            "routes are for a model or for a node, not for both",
        )),
    }
}

async fn audit(State(node): State<Node>, Query(query): Query<AuditQuery>) -> Response {
    answer(node.audit(query).await)
}

async fn doctor(State(node): State<Node>) -> Response {
    json(StatusCode::OK, &node.doctor().await)
}

async fn events(State(node): State<Node>) -> Response {
    let body = Body::from_stream(event_stream(node));
    ([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// Prometheus' text format, version 0.0.4.
pub(crate) async fn metrics(State(node): State<Node>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], node.metrics_text())
        .into_response()
}

async fn no_such_endpoint(uri: Uri) -> Response {
    let message = format!("the control API has no endpoint {}", uri.path());
    failure(&ApiError::new(ErrorCode::NoSuchEndpoint, message))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not take {method}", uri.path());
    failure(&ApiError::new(ErrorCode::MethodNotAllowed, message))
}

/// An endpoint that takes a body: what `call` makes of it.
pub(super) fn asked<Q, A, F>(
    call: impl Fn(Node, Q) -> F + Clone + Send + Sync + 'static,
) -> MethodRouter<Node>
where
    Q: DeserializeOwned + Send + 'static,
    A: Serialize,
    F: Future<Output = Result<A, ApiError>> + Send,
{
    post(async move |State(node): State<Node>, body: Result<Bytes, BytesRejection>| match read(body) {
        Ok(request) => answer(call(node, request).await),
        Err(error) => failure(&error),
    })
}

fn read<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, ApiError> {
    let body = body.map_err(|error| {
        if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let what = "the request's body is longer than this node reads";
            return ApiError::new(ErrorCode::TooLarge, what);
        }
        ApiError::new(ErrorCode::BadRequest, format!("the request's body could not be read: {error}"))
    })?;
    parse(&body)
}

/// What is wrong is said with the field it is wrong in.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut reader).map_err(|error| error.to_string());
    let whole = parsed.and_then(|value| reader.end().map(|()| value).map_err(|error| error.to_string()));
    whole.map_err(|error| {
        ApiError::new(ErrorCode::BadRequest, format!("the request's body is not understood: {error}"))
    })
}

pub(super) fn answer<T: Serialize>(result: Result<T, ApiError>) -> Response {
    match result {
        Ok(value) => json(StatusCode::OK, &value),
        Err(error) => failure(&error),
    }
}

pub(crate) fn failure(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, "application/json")], error.to_body()).into_response()
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            failure(&ApiError::new(ErrorCode::Internal, format!("the answer could not be written: {error}")))
        }
    }
}
