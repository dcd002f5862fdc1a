//! Providers that speak Anthropic's Messages API, as if they spoke OpenAI's chat completions.
//!
//! `docs/protocols/anthropic.md` has the tables of what becomes what.

mod answer;
mod request;
mod stream;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;

use super::door::{Answered, Door, Stream, read_request, read_whole, whole};
use super::endpoint::below;
use super::headers::is_event_stream;
use super::pool::Lease;
use super::relay::chain;
use crate::backend::Secret;
use answer::Failure;
use request::{Translated, translate};
use stream::Chunks;

/// The version of the API that is spoken, and its only one since 2023.
const VERSION: &str = "2023-06-01";
/// Largest error read, in bytes.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// Questions above this are translated on a blocking thread: about a millisecond of work.
const TRANSLATE_HERE_MAX: usize = 256 * 1024;

/// The headers that show a key, and the version. None when the key is no header value.
pub(crate) fn headers(key: Option<&Secret>) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static("anthropic-version"), HeaderValue::from_static(VERSION));
    if let Some(key) = key {
        let mut value = HeaderValue::from_str(key.expose()).ok()?;
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static("x-api-key"), value);
    }
    Some(headers)
}

/// The list of models, as many at a time as the API gives.
pub(crate) fn models_at(base: &Uri) -> Uri {
    below(base, "/models?limit=1000")
}

/// Answers one request in OpenAI's shape.
pub(crate) async fn answer(door: Door, request: Request<Incoming>) -> Answered {
    let secret = door.backend.auth.clone();
    match ask(door, request).await {
        Ok(answered) => answered,
        Err(Refused { failure, retry_after }) => {
            let json = failure.json(secret.as_ref().map(Secret::expose));
            let mut answered = whole(failure.status, json.to_string());
            if let Some(after) = retry_after {
                answered.headers_mut().insert(header::RETRY_AFTER, after);
            }
            answered
        }
    }
}

/// Why there is no answer.
struct Refused {
    failure: Failure,
    retry_after: Option<HeaderValue>,
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self { failure, retry_after: None }
    }
}

impl Refused {
    fn gateway(why: impl Into<String>) -> Self {
        Failure::new(StatusCode::BAD_GATEWAY, why).into()
    }
}

async fn ask(door: Door, request: Request<Incoming>) -> Result<Answered, Refused> {
    let Door { pool, backend, mut spending } = door;
    if !request.uri().path().ends_with("/chat/completions") {
        let why = format!("The model `{}` answers /v1/chat/completions only.", backend.model);
        return Err(Failure::new(StatusCode::NOT_FOUND, why).into());
    }
    let body = read_request(request).await.map_err(Refused::gateway)?;
    let question_bytes = body.len();
    let translated = if question_bytes <= TRANSLATE_HERE_MAX {
        translate(&body)
    } else {
        let translated = tokio::task::spawn_blocking(move || translate(&body)).await;
        translated.map_err(|_| Refused::gateway("this node is shutting down"))?
    };
    let Translated { body, asked } = translated.map_err(|why| Failure::new(StatusCode::BAD_REQUEST, why))?;
    let mut request = Request::new(Full::new(Bytes::from(body)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = below(&backend.url, "/messages");
    let mut headers = headers(backend.auth.as_ref())
        .ok_or_else(|| Refused::gateway("its API key is not a header value"))?;
    let host = backend.url.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    headers.insert(header::HOST, host.ok_or_else(|| Refused::gateway("its URL has no host"))?);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *request.headers_mut() = headers;
    let mut lease = pool.fresh(&backend.url).await.map_err(|error| Refused::gateway(chain(&error)))?;
    let answer = lease.wire.send(request).await.map_err(|error| Refused::gateway(chain(&error)))?;
    let (head, incoming) = answer.into_parts();
    if head.status != StatusCode::OK {
        return Err(refusal(head.status, &head.headers, lease, incoming).await);
    }
    spending.begin(question_bytes);
    if asked.stream != is_event_stream(&head.headers) {
        return Err(Refused::gateway(
            "It answers a stream where none was asked for, or the other way round.",
        ));
    }
    if !asked.stream {
        let body = read_whole(&mut lease, incoming).await.map_err(Refused::gateway)?;
        let (json, counted) =
            answer::whole(&body, &asked, spending.terms().price).map_err(Refused::gateway)?;
        spending.complete(counted);
        return Ok(whole(StatusCode::OK, json.to_string()));
    }
    let mut stream = Stream::new(lease, incoming, Chunks::new(asked, backend.auth.clone(), spending));
    stream.until_said().await.map_err(Refused::gateway)?;
    match stream.rewrite().early_failure() {
        Some(failure) => Err(failure.clone().into()),
        None => Ok(stream.into_answer()),
    }
}

async fn refusal(status: StatusCode, headers: &HeaderMap, mut lease: Lease, incoming: Incoming) -> Refused {
    let body = super::door::read_up_to(ERROR_BYTES_MAX, &mut lease, incoming).await.unwrap_or_default();
    Refused {
        failure: Failure::of_status(status, &body),
        retry_after: headers.get(header::RETRY_AFTER).cloned(),
    }
}
