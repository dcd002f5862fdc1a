//! The gateway's own answers when it cannot pass a request on, in OpenAI's error shape.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use mesh_identity::NodeId;
use serde::Serialize;

use super::headers::MESH_ERROR;
use super::model_field::ModelFieldError;
use super::origin::Foreign;
use super::reply::Reply;

/// Models named in one error, so that a mesh of a thousand models does not answer with a book.
const KNOWN_MODELS_SHOWN: usize = 50;

/// The code of a quota that is used up.
pub(crate) const QUOTA_EXCEEDED: &str = "quota_exceeded";
/// Between gateways: somebody had the request and was lost before the first byte of an answer.
pub(crate) const HOST_LOST: &str = "host_lost";
const UPSTREAM_FAILED: &str = "upstream_failed";

/// One refusal: HTTP status, OpenAI's `type` and `code`, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    param: Option<&'static str>,
    retry_after: Option<Duration>,
}

#[derive(Serialize)]
struct Shape<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'static str>,
    code: &'static str,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after: None }
    }

    pub(crate) fn unknown_model(model: &str, known: &[String]) -> Self {
        let message = if known.is_empty() {
            format!("The model `{model}` does not exist here, and no other is known yet.")
        } else {
            let shown =
                known.iter().take(KNOWN_MODELS_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = known.len().saturating_sub(KNOWN_MODELS_SHOWN);
            let more = if more > 0 { format!(" and {more} more (GET /v1/models)") } else { String::new() };
            format!("The model `{model}` does not exist here. Known models: {shown}{more}.")
        };
        Self { param: Some("model"), ..Self::new(StatusCode::NOT_FOUND, "model_not_found", message) }
    }

    pub(crate) fn unknown_at(model: &str, node: NodeId) -> Self {
        let message = format!("Node {} serves no model `{model}` to this one.", node.short());
        Self { param: Some("model"), ..Self::new(StatusCode::NOT_FOUND, "model_not_found", message) }
    }

    pub(crate) fn not_ready(model: &str, reason: &str, retry_after: Duration) -> Self {
        let message = format!("The model `{model}` is not ready: {reason}.");
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "model_not_ready", message)
        }
    }

    pub(crate) fn full(what: &str, retry_after: Duration) -> Self {
        let message = format!("{what} has all the requests it can hold.");
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::TOO_MANY_REQUESTS, "full", message) }
    }

    pub(crate) fn over_quota(model: &str, why: &str, retry_after: Duration) -> Self {
        let message = format!("No provider of `{model}` answers now: {why}.");
        Self {
            retry_after: Some(retry_after + Duration::from_millis(999)),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, QUOTA_EXCEEDED, message)
        }
    }

    pub(crate) fn all_failed(model: &str, tried: &[String]) -> Self {
        let message = format!("No provider of `{model}` answered. Tried: {}.", tried.join("; "));
        Self {
            retry_after: Some(Duration::from_secs(2)),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, UPSTREAM_FAILED, message)
        }
    }

    /// As [`ApiError::all_failed`], where one of them had the request and was lost before the first byte of its answer.
    pub(crate) fn host_lost(model: &str, tried: &[String]) -> Self {
        Self { code: HOST_LOST, ..Self::all_failed(model, tried) }
    }

    /// Whether the same request may well be answered in a moment.
    pub(crate) fn is_host_lost(&self) -> bool {
        self.code == HOST_LOST
    }

    /// As a caller reads it, to whom it is one failure among others.
    pub(crate) fn for_caller(self) -> Self {
        let code = if self.is_host_lost() { UPSTREAM_FAILED } else { self.code };
        Self { code, ..self }
    }

    pub(crate) fn stopping() -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "This node is shutting down.")
        }
    }

    pub(crate) fn too_large(limit_bytes: usize) -> Self {
        let message = format!("The request body is larger than the limit of {limit_bytes} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
    }

    pub(crate) fn no_memory() -> Self {
        Self {
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "request_memory_full",
                "The bodies of requests in flight fill the memory set aside for them.",
            )
        }
    }

    pub(crate) fn slow_body() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "The request body did not arrive in time.")
    }

    pub(crate) fn broken_body() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_body", "The request body broke off or was malformed.")
    }

    pub(crate) fn unknown_response() -> Self {
        let message = "No answer of this response id is kept any more where it could be asked.";
        Self::new(StatusCode::NOT_FOUND, "response_not_found", message)
    }

    pub(crate) fn bad_event_id() -> Self {
        let message = "Last-Event-ID must be the number of an event of this answer.";
        Self::new(StatusCode::BAD_REQUEST, "invalid_event_id", message)
    }

    pub(crate) fn wrong_method(allowed: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            format!("Only {allowed} is possible here."),
        )
    }

    pub(crate) fn unknown_path(path: &str) -> Self {
        let path: String = path.chars().take(100).collect();
        Self::new(StatusCode::NOT_FOUND, "unknown_url", format!("Unknown request URL: {path}."))
    }

    pub(crate) fn bad_key() -> Self {
        let message = "This gateway asks for its API key: send it as `Authorization: Bearer KEY`.";
        Self::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
    }

    /// OpenAI's `type`, from the status.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500..=599 => "server_error",
            _ => "invalid_request_error",
        }
    }

    pub(crate) fn json(&self) -> Vec<u8> {
        let inner = Inner { message: &self.message, r#type: self.kind(), param: self.param, code: self.code };
        serde_json::to_vec(&Shape { error: inner }).unwrap_or_default()
    }

    /// The last event of a stream that broke off: the one declared error, and no `[DONE]` after it.
    pub(crate) fn last_event(&self, form: super::relay::StreamForm) -> Bytes {
        let json = String::from_utf8(self.json()).unwrap_or_default();
        match form {
            super::relay::StreamForm::Completions => format!("data: {json}\n\n"),
            super::relay::StreamForm::Responses => {
                let flat = serde_json::json!({
                    "type": "error", "code": self.code, "message": self.message, "param": null,
                });
                format!("event: error\ndata: {flat}\n\n")
            }
        }
        .into()
    }

    /// The mid-stream loss of a backend or of the node that ran it.
    pub(crate) fn upstream_lost(why: &str) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "upstream_lost", format!("The answer broke off: {why}."))
    }

    pub(crate) fn into_response(self) -> Response<Reply> {
        let mut response = Response::new(Reply::whole(self.json()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(MESH_ERROR, HeaderValue::from_static(self.code));
        if let Some(after) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<ModelFieldError> for ApiError {
    fn from(error: ModelFieldError) -> Self {
        let code = match error {
            ModelFieldError::NotJson(_) => "invalid_json",
            ModelFieldError::Missing => "missing_required_parameter",
            ModelFieldError::Twice => "duplicate_parameter",
            ModelFieldError::NotAName => "invalid_type",
        };
        let param = (code != "invalid_json").then_some("model");
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, code, format!("Bad request: {error}.")) }
    }
}

impl From<Foreign> for ApiError {
    fn from(foreign: Foreign) -> Self {
        match foreign {
            Foreign::BadHost => {
                Self::new(StatusCode::BAD_REQUEST, "bad_host", "One readable Host header is needed.")
            }
            Foreign::Host => Self::new(
                StatusCode::FORBIDDEN,
                "foreign_host",
                "The Host header names neither this machine's loopback nor the bound address.",
            ),
            Foreign::Origin => Self::new(
                StatusCode::FORBIDDEN,
                "foreign_origin",
                "Web pages of other origins may not call this gateway.",
            ),
        }
    }
}

/// Every refusal of the gateway, made as the gateway makes it, with placeholders for what varies: status, code, whether it has
/// `Retry-After`, message. For the reference in the documentation.
#[cfg(any(test, feature = "testing"))]
pub fn refusals() -> Vec<(u16, &'static str, bool, String)> {
    let (soon, tried) = (Duration::from_secs(1), ["NODE: WHY".to_owned()]);
    let all = [
        ApiError::unknown_model("MODEL", &["NAME".to_owned()]),
        ApiError::not_ready("MODEL", "REASON", soon),
        ApiError::full("NODE", soon),
        ApiError::over_quota("MODEL", "WHY", soon),
        ApiError::all_failed("MODEL", &tried),
        ApiError::upstream_lost("WHY"),
        ApiError::stopping(),
        ApiError::too_large(super::GatewayConfig::default().body_bytes_max),
        ApiError::no_memory(),
        ApiError::slow_body(),
        ApiError::broken_body(),
        ApiError::from(ModelFieldError::NotJson("WHERE".to_owned())),
        ModelFieldError::Missing.into(),
        ModelFieldError::Twice.into(),
        ModelFieldError::NotAName.into(),
        ApiError::unknown_response(),
        ApiError::bad_event_id(),
        ApiError::wrong_method("POST"),
        ApiError::unknown_path("PATH"),
        ApiError::bad_key(),
        Foreign::BadHost.into(),
        Foreign::Host.into(),
        Foreign::Origin.into(),
    ];
    let row =
        |error: ApiError| (error.status.as_u16(), error.code, error.retry_after.is_some(), error.message);
    all.map(row).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_among_the_refusals() {
        let source = include_str!("error.rs").split("pub fn refusals").next().unwrap();
        let is_code =
            |word: &str| word.contains('_') && word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        let kinds = [
            "authentication_error",
            "permission_error",
            "rate_limit_error",
            "server_error",
            "invalid_request_error",
        ];
        let known = refusals();
        let codes =
            source.split('"').skip(1).step_by(2).filter(|word| is_code(word) && !kinds.contains(word));
        // Between gateways alone: callers read `upstream_failed`.
        for code in codes.filter(|code| *code != HOST_LOST) {
            assert!(known.iter().any(|(_, known, ..)| *known == code), "{code} is not among the refusals");
        }
    }

    #[test]
    fn errors_have_openais_shape() {
        let error = ApiError::unknown_model("x\"y", &["a".into(), "b".into()]);
        let json: serde_json::Value = serde_json::from_slice(&error.json()).unwrap();
        assert_eq!(json["error"]["code"], "model_not_found");
        assert_eq!(json["error"]["type"], "invalid_request_error");
        assert_eq!(json["error"]["param"], "model");
        assert_eq!(json["error"]["message"], "The model `x\"y` does not exist here. Known models: a, b.");
        let response = ApiError::not_ready("m", "loading 40 %", Duration::from_millis(100)).into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
    }

    #[test]
    fn long_lists_of_models_are_cut() {
        let known: Vec<String> = (0..60).map(|n| format!("m{n}")).collect();
        assert!(ApiError::unknown_model("x", &known).message.ends_with("m49 and 10 more (GET /v1/models)."));
    }
}
