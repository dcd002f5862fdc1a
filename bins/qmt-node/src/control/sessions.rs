//! Endpoints of agents and sessions.

use std::convert::Infallible;
use std::io;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream::unfold;
use futures_util::{Stream, TryStreamExt};
use http::{HeaderMap, StatusCode, header};
use mesh_control::{
    ApiError, BoardQuery, ContentQuery, EndReason, Endpoint, ErrorCode, EventsQuery, HEARTBEAT,
    HEARTBEAT_FRAME, MoveSession, OneQuery, OneSession, PROMPT_BODY_BYTES_MAX, SearchQuery, SessionQuery,
    StreamEnd,
};
use mesh_sessions::ids::EventNumber;
use mesh_sessions::proto::wire::Deed;
use tokio_util::io::{ReaderStream, StreamReader};

use super::router::{answer, asked, failure};
use crate::node::{Followed, Node};

/// Bytes of an export that wait for its reader.
const EXPORT_BYTES: usize = 64 * 1024;

pub(super) fn routes() -> Router<Node> {
    let prompts = Router::new()
        .route(Endpoint::Prompt.path(), asked(|node, body| async move { node.prompt_session(body).await }))
        .route(Endpoint::Steer.path(), asked(|node, body| async move { node.steer_session(body).await }))
        .route(
            Endpoint::PostOnBoard.path(),
            asked(|node, body| async move { node.post_on_board(body).await }),
        )
        .layer(DefaultBodyLimit::max(PROMPT_BODY_BYTES_MAX));
    let imports = Router::new()
        .route(Endpoint::ImportSession.path(), axum::routing::post(import))
        .layer(DefaultBodyLimit::disable());
    Router::new()
        .route(Endpoint::Agents.path(), get(agents))
        .route(
            Endpoint::Sessions.path(),
            get(list).merge(asked(|node, body| async move { node.create_session(body).await })),
        )
        .route(
            Endpoint::AgentRoutes.path(),
            get(agent_routes).merge(asked(|node, body| async move { node.set_agent_route(body).await })),
        )
        .route(Endpoint::ShowSession.path(), get(show))
        .route(Endpoint::SessionEvents.path(), get(events))
        .route(Endpoint::SessionContent.path(), get(content))
        .route(Endpoint::Cancel.path(), asked(|node, body| async move { node.cancel_turn(body).await }))
        .route(Endpoint::Decide.path(), asked(|node, body| async move { node.decide_tool(body).await }))
        .route(Endpoint::NameSession.path(), asked(|node, body| async move { node.name_session(body).await }))
        .route(
            Endpoint::LabelSession.path(),
            asked(|node, body| async move { node.label_session(body).await }),
        )
        .route(
            Endpoint::ShareSession.path(),
            asked(|node, body| async move { node.share_session(body).await }),
        )
        .route(Endpoint::ForkSession.path(), asked(|node, body| async move { node.fork_session(body).await }))
        .route(Endpoint::Suspend.path(), asked(|node, body| async move { node.suspend_session(body).await }))
        .route(
            Endpoint::Resume.path(),
            asked(|node, body: OneSession| async move { node.act(&body.session, Deed::Resume).await }),
        )
        .route(
            Endpoint::Archive.path(),
            asked(|node, body: OneSession| async move { node.act(&body.session, Deed::Archive).await }),
        )
        .route(
            Endpoint::MoveSession.path(),
            asked(|node, body: MoveSession| async move { node.move_session(body).await }),
        )
        .route(
            Endpoint::Boards.path(),
            get(boards).merge(asked(|node, body| async move { node.create_board(body).await })),
        )
        .route(Endpoint::ShowBoard.path(), get(show_board))
        .route(Endpoint::ExportSession.path(), get(export))
        .route(Endpoint::SearchSessions.path(), get(search))
        .merge(prompts)
        .merge(imports)
}

async fn agents(State(node): State<Node>) -> Response {
    answer(node.agent_views().await)
}

async fn agent_routes(State(node): State<Node>) -> Response {
    answer(node.agent_routes().await)
}

async fn list(State(node): State<Node>, Query(query): Query<SessionQuery>) -> Response {
    answer(node.session_page(query).await)
}

async fn boards(State(node): State<Node>, Query(query): Query<SessionQuery>) -> Response {
    answer(node.board_page(query).await)
}

async fn show_board(State(node): State<Node>, Query(query): Query<BoardQuery>) -> Response {
    answer(node.show_board(&query.board).await)
}

async fn show(State(node): State<Node>, Query(query): Query<OneQuery>) -> Response {
    answer(node.show_session(&query.session).await)
}

async fn search(State(node): State<Node>, Query(query): Query<SearchQuery>) -> Response {
    answer(node.search_sessions(query).await)
}

async fn content(State(node): State<Node>, Query(query): Query<ContentQuery>) -> Response {
    match node.session_content(query).await {
        Ok(bytes) => ([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response(),
        Err(error) => failure(&error),
    }
}

/// A failure in the middle ends the text early, which its import notices.
async fn export(State(node): State<Node>, Query(query): Query<OneQuery>) -> Response {
    let exported = match node.exported(&query.session).await {
        Ok(found) => found,
        Err(error) => return failure(&error),
    };
    let (mut to, from) = tokio::io::duplex(EXPORT_BYTES);
    let exporting = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = exported.write(&mut to).await {
            tracing::warn!(session = query.session, %error, "an export ended early");
        }
    }));
    let lines = ReaderStream::new(from).inspect_ok(move |_| {
        // It ends with its reader.
        let _ = &exporting;
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn import(State(node): State<Node>, body: Body) -> Response {
    let lines = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    answer(node.import_session(Box::pin(lines)).await)
}

async fn events(State(node): State<Node>, Query(query): Query<EventsQuery>, headers: HeaderMap) -> Response {
    let after = match headers.get("last-event-id").map(|id| id.to_str().unwrap_or_default().parse()) {
        None => query.after,
        Some(Ok(after)) => after,
        Some(Err(_)) => {
            let what = "Last-Event-ID must be the number of an event";
            return failure(&ApiError::new(ErrorCode::BadRequest, what));
        }
    };
    match node.follow_session(&query.session, EventNumber(after)).await {
        Ok(followed) => {
            let body = Body::from_stream(event_stream(Reader { followed, past: query.past, is_over: false }));
            let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
            (StatusCode::OK, headers, body).into_response()
        }
        Err(error) => failure(&error),
    }
}

struct Reader {
    followed: Followed,
    past: bool,
    is_over: bool,
}

/// Server-sent events for one reader, with exactly one end.
fn event_stream(reader: Reader) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    unfold(reader, |mut reader| async move {
        let text = reader.next().await?;
        Some((Ok(Bytes::from(text)), reader))
    })
}

impl Reader {
    async fn next(&mut self) -> Option<String> {
        if self.is_over {
            return None;
        }
        if let Some(end) = self.followed.end_at_once(self.past) {
            return Some(self.end(end));
        }
        match tokio::time::timeout(HEARTBEAT, self.followed.next()).await {
            Err(_) => Some(HEARTBEAT_FRAME.to_owned()),
            Ok(Err(end)) => Some(self.end(end)),
            Ok(Ok(event)) => {
                let Ok(data) = serde_json::to_value(&*event) else {
                    return Some(self.end(StreamEnd::new(EndReason::Failed)));
                };
                let kind = data.get("kind").and_then(|kind| kind.as_str()).unwrap_or("unknown");
                let kind: String = kind.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                Some(format!("id: {}\nevent: {kind}\ndata: {data}\n\n", event.number))
            }
        }
    }

    fn end(&mut self, end: StreamEnd) -> String {
        self.is_over = true;
        end.to_sse()
    }
}
