//! Failures as the control API says them.

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[doc = $doc:literal])* $variant:ident = $word:literal, $status:literal;)*) => {
        /// What went wrong, as a word that programs can branch on. Each has one HTTP status.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[doc = $doc])* $variant,)*
            /// A word that this version does not know, kept as it came.
            Other(String),
        }

        impl ErrorCode {
            /// Every code that this version knows.
            pub const KNOWN: &'static [ErrorCode] = &[$(Self::$variant),*];

            /// The word on the wire.
            pub fn as_str(&self) -> &str {
                match self { $(Self::$variant => $word,)* Self::Other(word) => word }
            }

            /// The HTTP status it is sent with; 500 for an unknown word.
            pub fn http_status(&self) -> u16 {
                match self { $(Self::$variant => $status,)* Self::Other(_) => 500 }
            }

            /// When it is said, as a sentence; nothing for an unknown word.
            pub fn meaning(&self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),*).trim_ascii(),)* Self::Other(_) => "" }
            }

            fn from_word(word: &str) -> Self {
                match word { $($word => Self::$variant,)* _ => Self::Other(word.to_owned()) }
            }
        }
    };
}

codes! {
    /// The request cannot be understood: body, type, value.
    BadRequest = "bad_request", 400;
    /// No such endpoint.
    NoSuchEndpoint = "no_such_endpoint", 404;
    /// The endpoint does not take this method.
    MethodNotAllowed = "method_not_allowed", 405;
    /// The request's body is longer than the node reads.
    TooLarge = "too_large", 413;
    /// The caller showed no right to ask (the console's token or cookie).
    Unauthorized = "unauthorized", 401;
    /// The node's role in the scope does not allow it.
    NotAllowed = "not_allowed", 403;
    /// No node by that id or name.
    UnknownNode = "unknown_node", 404;
    /// The node is in no scope by that id or name, or in none at all.
    UnknownScope = "unknown_scope", 404;
    /// No model by that name.
    UnknownModel = "unknown_model", 404;
    /// No invite by that id.
    UnknownInvite = "unknown_invite", 404;
    /// No session by that id or name, or none that the caller may know of.
    UnknownSession = "unknown_session", 404;
    /// No agent by that name, or none that the caller may begin sessions with.
    UnknownAgent = "unknown_agent", 404;
    /// The session has no such event.
    UnknownEvent = "unknown_event", 404;
    /// No such turn is under way.
    UnknownTurn = "unknown_turn", 409;
    /// No such call of a tool waits for a decision.
    UnknownCall = "unknown_call", 409;
    /// The session is archived: it can be read and forked.
    Archived = "archived", 409;
    /// The prefix or name fits several; the message lists them.
    Ambiguous = "ambiguous", 409;
    /// It contradicts the node's state.
    Conflict = "conflict", 409;
    /// The text is no invite.
    InviteMalformed = "invite_malformed", 400;
    /// The invite is of a version that this node does not read.
    InviteWrongVersion = "invite_wrong_version", 400;
    /// The invite's signature does not hold.
    InviteBadSignature = "invite_bad_signature", 400;
    /// The invite is for another scope.
    InviteWrongScope = "invite_wrong_scope", 409;
    /// The invite ended.
    InviteExpired = "invite_expired", 410;
    /// The invite was used as often as it may be.
    InviteUsedUp = "invite_used_up", 410;
    /// The invite, or who issued it, was revoked.
    InviteRevoked = "invite_revoked", 410;
    /// The invite's chain does not allow it, or the issuer refused.
    InviteRefused = "invite_refused", 403;
    /// No address of the issuer answered.
    IssuerUnreachable = "issuer_unreachable", 502;
    /// The node does not answer.
    NodeUnreachable = "node_unreachable", 502;
    /// It took longer than allowed.
    Timeout = "timeout", 504;
    /// Not now: the node starts or stops, or a bound is reached.
    Unavailable = "unavailable", 503;
    /// A file could not be downloaded: its server, or what it gives.
    Download = "download", 502;
    /// Something needed is missing on this machine, such as llama-server.
    Missing = "missing", 424;
    /// This version does not do it yet.
    NotImplemented = "not_implemented", 501;
    /// The node could not write its files, such as on a full disk; nothing was changed.
    Storage = "storage", 507;
    /// A fault of the node.
    Internal = "internal", 500;
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from_word(&String::deserialize(deserializer)?))
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// A failure that the node reports. Displayed as its message; print [`ApiError::mend`] below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[error("{message}")]
pub struct ApiError {
    /// What went wrong, for programs.
    pub code: ErrorCode,
    /// What went wrong, for people: one sentence without a full stop.
    pub message: String,
    /// What to do about it; none when there is nothing to advise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Body {
    error: ApiError,
}

impl ApiError {
    /// A failure without advice.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), mend: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }

    /// The HTTP status it is sent with.
    pub fn http_status(&self) -> u16 {
        self.code.http_status()
    }

    /// The body on the wire: `{"error":{...}}`.
    pub fn to_body(&self) -> String {
        serde_json::to_string(&Body { error: self.clone() }).expect("three strings always serialize")
    }

    /// Reads a failed answer. A body of another shape (a proxy's page, an older node) gives a code from the status and the
    /// start of the text as message.
    pub fn from_answer(status: u16, body: &[u8]) -> Self {
        if let Ok(Body { error }) = serde_json::from_slice(body) {
            return error;
        }
        let code = match status {
            401 => ErrorCode::Unauthorized,
            403 => ErrorCode::NotAllowed,
            404 => ErrorCode::NoSuchEndpoint,
            405 => ErrorCode::MethodNotAllowed,
            413 => ErrorCode::TooLarge,
            501 => ErrorCode::NotImplemented,
            503 => ErrorCode::Unavailable,
            504 => ErrorCode::Timeout,
            400..=499 => ErrorCode::BadRequest,
            _ => ErrorCode::Internal,
        };
        // 200 characters are enough to recognise what answered.
        let text: String = String::from_utf8_lossy(body).trim().chars().take(200).collect();
        let message = if text.is_empty() {
            format!("the node answered {status}")
        } else {
            format!("the node answered {status}: {text}")
        };
        Self::new(code, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire_and_is_an_error_status() {
        for code in ErrorCode::KNOWN {
            let sent = ApiError::new(code.clone(), "it did not work").with_mend("try again");
            let got = ApiError::from_answer(sent.http_status(), sent.to_body().as_bytes());
            assert_eq!(got, sent);
            assert!((400..600).contains(&sent.http_status()), "{code}");
        }
    }

    #[test]
    fn body_has_the_documented_shape() {
        let error = ApiError::new(ErrorCode::InviteExpired, "this invite ended 3 h ago")
            .with_mend("ask for a new one");
        assert_eq!(
            error.to_body(),
            r#"{"error":{"code":"invite_expired","message":"this invite ended 3 h ago","mend":"ask for a new one"}}"#
        );
        assert_eq!(
            ApiError::new(ErrorCode::Internal, "x").to_body(),
            r#"{"error":{"code":"internal","message":"x"}}"#
        );
    }

    #[test]
    fn unknown_code_is_kept_and_foreign_bodies_are_quoted() {
        let newer = ApiError::from_answer(
            418,
            br#"{"error":{"code":"teapot","message":"short and stout","extra":1}}"#,
        );
        assert_eq!(newer.code, ErrorCode::Other("teapot".into()));
        let foreign = ApiError::from_answer(502, b"<html>Bad gateway</html>");
        assert_eq!(
            (foreign.code.clone(), foreign.to_string().as_str()),
            (ErrorCode::Internal, "the node answered 502: <html>Bad gateway</html>")
        );
        assert_eq!(ApiError::from_answer(503, b"").code, ErrorCode::Unavailable);
    }
}
