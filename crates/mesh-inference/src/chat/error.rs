//! Why a model was not asked, or did not answer to the end, sorted by what to do.

use std::time::Duration;

use http::StatusCode;
use http::header::{self, HeaderMap};
use serde::Deserialize;

use crate::gateway::MESH_ERROR;

/// Longest message taken over from an answer, in characters.
const MESSAGE_MAX: usize = 2000;
/// Longest wait that is believed: a day.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);

/// A model was not asked, or did not answer to the end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The question is wrong, or the model is unknown: repeating it is of no use.
    #[error("the model refused the call: {0}")]
    Refused(String),
    /// Full, still loading, or a quota is used up; ask no sooner than this, when it is known.
    #[error("the model is busy: {why}")]
    Busy {
        /// What is full.
        why: String,
        /// The wait that was asked for.
        retry_after: Option<Duration>,
    },
    /// Nobody could be reached who has the model, or it failed: worth another try.
    #[error("the model could not be reached: {0}")]
    Unavailable(String),
    /// The answer broke off: worth another try, from its beginning.
    #[error("the answer broke off: {0}")]
    BrokenOff(String),
}

/// An error in OpenAI's shape, as far as it is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Told {
    message: Option<String>,
    r#type: Option<String>,
}

#[derive(Deserialize)]
struct Shape {
    error: Told,
}

impl ChatError {
    /// From an answer other than 200.
    pub(super) fn of_status(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let told: Told = serde_json::from_slice(body).map(|Shape { error }| error).unwrap_or_default();
        let code = headers.get(MESH_ERROR).and_then(|code| code.to_str().ok()).unwrap_or_default();
        let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = seconds.map(Duration::from_secs).filter(|wait| *wait <= RETRY_AFTER_MAX);
        let why = told.message.as_deref().map_or_else(|| format!("status {}", status.as_u16()), short);
        match (status.as_u16(), code) {
            (429, _) | (503, "model_not_ready" | "too_busy" | "request_memory_full") => {
                Self::Busy { why, retry_after }
            }
            (408 | 409 | 425 | 500..=599, _) => Self::Unavailable(why),
            (400..=499, _) => Self::Refused(why),
            (other, _) => Self::Unavailable(format!("unexpected status {other}")),
        }
    }

    /// From an error told in the middle of an answer.
    pub(super) fn of_event(told: &Told) -> Self {
        let why = told.message.as_deref().map_or_else(|| "no reason was told".to_owned(), short);
        match told.r#type.as_deref() {
            Some("invalid_request_error") => Self::Refused(why),
            Some("rate_limit_error" | "overloaded_error") => Self::Busy { why, retry_after: None },
            _ => Self::BrokenOff(why),
        }
    }
}

fn short(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(MESSAGE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(status: u16, code: &'static str, after: &'static str) -> ChatError {
        let mut headers = HeaderMap::new();
        headers.insert(MESH_ERROR, HeaderValue::from_static(code));
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(after));
        ChatError::of_status(
            StatusCode::from_u16(status).unwrap(),
            &headers,
            b"{\"error\":{\"message\":\"so\\n\"}}",
        )
    }

    #[test]
    fn answers_are_sorted_by_what_to_do() {
        let busy = |seconds| ChatError::Busy { why: "so".into(), retry_after: seconds };
        assert_eq!(of(429, "", "7"), busy(Some(Duration::from_secs(7))));
        assert_eq!(of(429, "full", "soon"), busy(None));
        assert_eq!(of(429, "full", "999999999"), busy(None));
        assert_eq!(of(503, "model_not_ready", "2"), busy(Some(Duration::from_secs(2))));
        for status in [500, 502, 503, 504, 529, 408] {
            assert_eq!(of(status, "upstream_failed", "2"), ChatError::Unavailable("so".into()), "{status}");
        }
        for status in [400, 401, 403, 404, 413, 422] {
            assert_eq!(of(status, "", ""), ChatError::Refused("so".into()), "{status}");
        }
        assert!(matches!(of(302, "", ""), ChatError::Unavailable(_)));
        let long = format!("{{\"error\":{{\"message\":\"{}\"}}}}", "x".repeat(10_000));
        let error = ChatError::of_status(StatusCode::BAD_REQUEST, &HeaderMap::new(), long.as_bytes());
        assert_eq!(error, ChatError::Refused("x".repeat(MESSAGE_MAX)));
    }
}
