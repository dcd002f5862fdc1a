//! Refusals and failures as HTTP says them.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// The request is none (400).
    BadRequest,
    /// The request says that it is from another node than its certificate (403).
    NotYou,
    /// The certificate's name is not in the registry (403).
    NotRegistered,
    /// The certificate gives no role, or one that may not do this (403).
    NotAllowed,
    /// No agent of this name is open to the caller (404).
    UnknownAgent,
    /// No such path (404).
    NotFound,
    /// The path is asked by another method (405).
    MethodNotAllowed,
    /// The same key came with another request, or its delegation was cancelled (409).
    Conflict,
    /// The body is longer than is read (413).
    TooLarge,
    /// The request took too long to arrive (408).
    TooSlow,
    /// The delegation is too deep, or comes back to an agent that waits for it (508).
    Loop,
    /// So many delegations are under way (429).
    Busy,
    /// The agent could not do it (502).
    AgentFailed,
    /// The agent was not done in time (504).
    TimedOut,
    /// The node cannot do it now (503).
    Unavailable,
    /// The node failed (500).
    Internal,
    /// Something that another build says.
    #[serde(other)]
    Other,
}

impl Code {
    /// Those that this build says, in the order in which they are declared.
    pub const ALL: [Self; 16] = [
        Self::BadRequest,
        Self::NotYou,
        Self::NotRegistered,
        Self::NotAllowed,
        Self::UnknownAgent,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::TooLarge,
        Self::TooSlow,
        Self::Loop,
        Self::Busy,
        Self::AgentFailed,
        Self::TimedOut,
        Self::Unavailable,
        Self::Internal,
    ];

    /// Its status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::NotYou | Self::NotRegistered | Self::NotAllowed => StatusCode::FORBIDDEN,
            Self::UnknownAgent | Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::AgentFailed => StatusCode::BAD_GATEWAY,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal | Self::Other => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn retry_after(self) -> Option<Duration> {
        matches!(self, Self::Busy | Self::Unavailable).then_some(Duration::from_secs(2))
    }
}

/// A refusal or a failure, for whoever asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What kind.
    pub code: Code,
    /// What it is, in a sentence.
    pub message: String,
    /// What to do about it; empty when there is nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mend: String,
}

impl Fault {
    /// A fault without a mend.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), mend: String::new() }
    }

    /// With what to do about it.
    #[must_use]
    pub fn with_mend(self, mend: impl Into<String>) -> Self {
        Self { mend: mend.into(), ..self }
    }
}

/// The body of every answer that is no success.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct FaultBody {
    pub(crate) error: Fault,
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let (code, status, retry_after) = (self.code, self.code.status(), self.code.retry_after());
        let mut response = (status, Json(FaultBody { error: self })).into_response();
        // For the server, which counts them.
        response.extensions_mut().insert(code);
        if let Some(after) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs()));
        }
        response
    }
}
