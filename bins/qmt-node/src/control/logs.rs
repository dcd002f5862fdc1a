//! Endpoints of the log lines.

use std::convert::Infallible;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::Stream;
use futures_util::stream::unfold;
use http::{HeaderMap, header};
use mesh_control::{ApiError, Endpoint, ErrorCode, HEARTBEAT, HEARTBEAT_FRAME, LogQuery};

use super::router::{answer, failure};
use crate::node::Node;

pub(super) fn routes() -> Router<Node> {
    Router::new().route(Endpoint::Logs.path(), get(page)).route(Endpoint::LogEvents.path(), get(follow))
}

async fn page(State(node): State<Node>, Query(query): Query<LogQuery>) -> Response {
    answer(Ok(node.logs().page(&query)))
}

async fn follow(State(node): State<Node>, Query(mut query): Query<LogQuery>, headers: HeaderMap) -> Response {
    if let Some(id) = headers.get("last-event-id") {
        match id.to_str().unwrap_or_default().parse() {
            Ok(after) => query.after = Some(after),
            Err(_) => {
                let what = "Last-Event-ID must be the number of a line";
                return failure(&ApiError::new(ErrorCode::BadRequest, what));
            }
        }
    }
    let body = Body::from_stream(pages(node, query));
    ([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// Pages as server-sent events, the last lines first; `id` is what to go on behind. Ends with the node.
fn pages(node: Node, query: LogQuery) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    unfold((node, query, true), |(node, mut query, is_first)| async move {
        let text = loop {
            let page = node.logs().page(&query);
            query.after = Some(page.through);
            if is_first || !page.lines.is_empty() || page.lost > 0 {
                let Ok(data) = serde_json::to_string(&page) else { return None };
                break format!("id: {}\nevent: lines\ndata: {data}\n\n", page.through);
            }
            let stopped = node.stopping();
            let logs = node.logs();
            tokio::select! {
                () = stopped.cancelled() => return None,
                waited = tokio::time::timeout(HEARTBEAT, logs.wait_behind(page.through)) => {
                    if waited.is_err() {
                        break HEARTBEAT_FRAME.to_owned();
                    }
                }
            }
        };
        Some((Ok(Bytes::from(text)), (node, query, false)))
    })
}
