//! Answers that their callers can resume, at this gateway or at another one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::response::Parts;
use http::{Response, StatusCode};
use mesh_identity::Role;

use super::continuation::Continuation;
use super::delivery::{Delivery, Logged};
use super::go_on::GoOn;
use super::told::Told;
use super::{Asked, Made, Survivor};
use crate::gateway::body::TakenBody;
use crate::gateway::error::ApiError;
use crate::gateway::headers::{LAST_EVENT_ID, MESH_RESPONSE_ID, MESH_RESUMABLE};
use crate::gateway::relay::Relay;
use crate::gateway::replica::{
    AnswerId, EventId, Found, Holder, Log, Lost, Question, Replica, ResponseId, Turn,
};
use crate::gateway::reply::Reply;
use crate::gateway::serve::Core;
use crate::gateway::stats::Stats;

/// Members asked to keep a copy, nearest first, before an answer goes without: those that keep none say so at once.
const HOLDERS_ASKED_MAX: usize = 16;
/// How long one of them is waited for. A member that hangs is to cost a caller little, and there are others.
const ASKED_FOR: Duration = Duration::from_secs(1);
/// How long all of them are waited for.
const ALL_ASKED_FOR: Duration = Duration::from_secs(3);

impl Core {
    /// An answer that may change its backend, and its gateway if the caller asked for that.
    pub(crate) async fn survivor(
        self: &Arc<Self>,
        mut head: Parts,
        asked: Asked,
        relay: Relay,
    ) -> Response<Reply> {
        let wants = asked.headers.get(MESH_RESUMABLE).is_some_and(|value| value == "1");
        let survivor = match wants.then(|| self.begin_log(&asked)).flatten() {
            Some((answer, turn)) => {
                let copy = Box::pin(self.copied(answer, &question_of(&asked), None)).await;
                let holder = copy.as_ref().map(|(_, holder)| *holder);
                name(&mut head.headers, ResponseId { answer, holder });
                let log = Logged::new(self.clone(), answer, turn, holder);
                let log = match copy {
                    Some((replica, holder)) => log.with_copy(replica, holder),
                    None => log.without_copy(),
                };
                let core = self.clone();
                Survivor::made(Made::new(|out| {
                    GoOn::new(core, asked, Told::default(), Delivery::logged(out, log)).run_whole(relay)
                }))
            }
            None => Survivor::new(self.clone(), asked, relay),
        };
        Response::from_parts(head, Reply::survivor(survivor))
    }

    /// None when the answer cannot be gone on with, or there is no room to keep it.
    fn begin_log(&self, asked: &Asked) -> Option<(AnswerId, Turn)> {
        Continuation::of(asked.endpoint, &asked.body.bytes).ok()?;
        let answer = AnswerId::random()?;
        let turn = self.replicas.insert(answer, question_of(asked), None)?;
        Stats::add(&self.stats.resumable);
        Some((answer, turn))
    }

    /// Has the nearest member that accepts it keep a copy; `lost` is not asked again.
    pub(super) async fn copied(
        &self,
        answer: AnswerId,
        question: &Question,
        lost: Option<Holder>,
    ) -> Option<(Replica, Holder)> {
        let transport = self.transport.as_ref().filter(|_| self.config.replicas.make)?;
        let mut links = transport.links();
        links.retain(|link| {
            link.peer.role == Role::Member && lost.is_none_or(|lost| lost.node != link.peer.id)
        });
        links.sort_by_key(|link| link.peer.id);
        links.dedup_by_key(|link| link.peer.id);
        links.sort_by_key(|link| (link.path.rtt.is_none(), link.path.rtt));
        let asked = async {
            for link in links.iter().take(HOLDERS_ASKED_MAX) {
                let holder = Holder { scope: link.peer.scope, node: link.peer.id };
                let kept = Replica::keep(transport, holder, answer, question);
                match tokio::time::timeout(ASKED_FOR, kept).await {
                    Ok(Ok(replica)) => return Some((replica, holder)),
                    Ok(Err(error)) => {
                        tracing::debug!(peer = holder.node.short(), %error, "a member keeps no copy");
                    }
                    Err(_) => tracing::debug!(peer = holder.node.short(), "a member is silent"),
                }
            }
            None
        };
        tokio::time::timeout(ALL_ASKED_FOR, asked).await.ok().flatten()
    }

    /// The rest of an answer, from the event behind the last one that the caller has.
    pub(crate) async fn resume(
        self: &Arc<Self>,
        text: &str,
        headers: &HeaderMap,
        request: &HeaderValue,
    ) -> Result<Response<Reply>, ApiError> {
        let named: ResponseId = text.parse().map_err(|()| ApiError::unknown_response())?;
        let seen: EventId = match headers.get(LAST_EVENT_ID) {
            None => EventId { number: 0, holder: None },
            Some(value) => {
                value.to_str().ok().and_then(|value| value.parse().ok()).ok_or_else(ApiError::bad_event_id)?
            }
        };
        // The event is the later word on who has the copy.
        let id = ResponseId { holder: seen.holder.or(named.holder), ..named };
        let seen = seen.number;
        let (log, logged) = Box::pin(self.reclaim(id, named.holder)).await?;
        if seen > log.events.len() {
            return Err(ApiError::bad_event_id());
        }
        Stats::add(&self.stats.resumed);
        let asked = self.asked_again(&log.question, request)?;
        let core = self.clone();
        let made = Made::new(|out| async move {
            let delivery = Delivery::logged(out, logged);
            if delivery.replay(&log.events[seen..], seen + 1).await.is_err() {
                return;
            }
            let mut told = Told::default();
            log.events.iter().for_each(|event| told.hear(event));
            if !told.over {
                GoOn::new(core, asked, told, delivery)
                    .run("its caller came back for the rest".into(), None)
                    .await;
            }
        });
        let mut response = Response::new(Reply::survivor(Survivor::made(made)));
        *response.status_mut() = StatusCode::OK;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        name(headers, id);
        Ok(response)
    }

    /// The log of an answer, from here or from its holder, and the right to write it. `named`: the holder in the response id
    /// that the caller has.
    async fn reclaim(
        self: &Arc<Self>,
        id: ResponseId,
        named: Option<Holder>,
    ) -> Result<(Log, Logged), ApiError> {
        let answer = id.answer;
        if let Some((mut log, turn)) = self.replicas.take(&answer, None) {
            let mut logged = Logged::new(self.clone(), answer, turn, named);
            let copy = if log.over { None } else { self.fetch(id, log.events.len() as u64).await };
            if let Some((found, holder)) = copy {
                // Another gateway has gone on with it meanwhile.
                if !found.events.is_empty() {
                    let added = self.replicas.append(&answer, turn, found.events.clone());
                    added.map_err(|_| ApiError::no_memory())?;
                    log.events.extend(found.events);
                }
                logged = logged.with_copy(found.replica, holder);
            }
            return Ok((log, logged));
        }
        let (found, holder) = self.fetch(id, 0).await.ok_or_else(ApiError::unknown_response)?;
        let turn = self.replicas.insert(answer, found.question, None).ok_or_else(ApiError::no_memory)?;
        let logged = Logged::new(self.clone(), answer, turn, named).with_copy(found.replica, holder);
        self.replicas.append(&answer, turn, found.events).map_err(|_| ApiError::no_memory())?;
        if found.over {
            self.replicas.over(&answer, turn);
        }
        let (log, turn) = self.replicas.take(&answer, None).ok_or_else(ApiError::no_memory)?;
        Ok((log, logged.with_turn(turn)))
    }

    async fn fetch(&self, id: ResponseId, from: u64) -> Option<(Found, Holder)> {
        let holder = id.holder?;
        let transport = self.transport.as_ref().filter(|transport| transport.node_id() != holder.node)?;
        match Replica::take(transport, holder, id.answer, from).await {
            Ok(found) => Some((found, holder)),
            Err(error @ (Lost::Holder(_) | Lost::Superseded)) => {
                tracing::debug!(peer = holder.node.short(), %error, "no copy of an answer");
                None
            }
        }
    }

    fn asked_again(&self, question: &Question, request: &HeaderValue) -> Result<Asked, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        let share = self.bodies.share(question.body.len())?;
        Ok(Asked {
            endpoint: question.endpoint,
            headers,
            id: request.clone(),
            body: TakenBody::new(question.body.clone(), share),
            model: question.model.clone(),
            maker: None,
            own: None,
        })
    }
}

fn question_of(asked: &Asked) -> Question {
    let body = Bytes::clone(&asked.body.bytes);
    Question { endpoint: asked.endpoint, model: asked.model.clone(), body }
}

fn name(headers: &mut HeaderMap, id: ResponseId) {
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(MESH_RESPONSE_ID, value);
    }
}
