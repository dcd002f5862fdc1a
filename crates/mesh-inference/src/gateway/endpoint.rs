//! The requests that the gateway knows, by method and path.

use http::Method;
use http::uri::{PathAndQuery, Uri};

use super::error::ApiError;
use super::relay::StreamForm;

/// A request that goes to a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
    Embeddings,
    Responses,
}

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    Health,
    Models,
    Model(String),
    Complete(Endpoint),
    /// The rest of an answer, by its response id.
    Resume(String),
}

impl Endpoint {
    fn below_v1(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Completions => "/completions",
            Self::Embeddings => "/embeddings",
            Self::Responses => "/responses",
        }
    }

    pub(crate) fn is_chat(self) -> bool {
        self == Self::Chat
    }

    /// Whether its answers are text that can be gone on with.
    pub(crate) fn is_text(self) -> bool {
        matches!(self, Self::Chat | Self::Completions)
    }

    pub(crate) fn stream_form(self) -> StreamForm {
        match self {
            Self::Responses => StreamForm::Responses,
            Self::Chat | Self::Completions | Self::Embeddings => StreamForm::Completions,
        }
    }

    /// The path of this endpoint at a backend. Made of the backend's own URL and a constant, so nothing in a request
    /// can change where it goes.
    pub(crate) fn path_at(self, base: &Uri) -> Uri {
        below(base, self.below_v1())
    }
}

/// A path below the API root of `base`: the base's own path when it has one (`/v1`, `/openai/v1`), else `/v1`.
pub(crate) fn below(base: &Uri, path: &str) -> Uri {
    let root = match base.path().trim_end_matches('/') {
        "" => "/v1",
        root => root,
    };
    let joined: Result<PathAndQuery, _> = format!("{root}{path}").parse();
    joined.map(Uri::from).unwrap_or_else(|_| Uri::from_static("/"))
}

/// Reads a request line. `path` is the path of the request target; its query is ignored.
pub(crate) fn ask(method: &Method, path: &str) -> Result<Ask, ApiError> {
    let (ask, allowed) = match path {
        "/health" => (Ask::Health, Method::GET),
        "/v1/models" => (Ask::Models, Method::GET),
        "/v1/chat/completions" => (Ask::Complete(Endpoint::Chat), Method::POST),
        "/v1/completions" => (Ask::Complete(Endpoint::Completions), Method::POST),
        "/v1/embeddings" => (Ask::Complete(Endpoint::Embeddings), Method::POST),
        "/v1/responses" => (Ask::Complete(Endpoint::Responses), Method::POST),
        _ => {
            let model = path.strip_prefix("/v1/models/").and_then(unescape).map(Ask::Model);
            let resumed = || path.strip_prefix("/v1/resume/").and_then(unescape).map(Ask::Resume);
            (model.or_else(resumed).ok_or_else(|| ApiError::unknown_path(path))?, Method::GET)
        }
    };
    if *method == allowed {
        Ok(ask)
    } else {
        Err(ApiError::wrong_method(if allowed == Method::GET { "GET" } else { "POST" }))
    }
}

/// Undoes percent-encoding; model names may hold slashes, escaped or not.
fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_join_below_the_api_root() {
        let at = |base: &str| Endpoint::Chat.path_at(&base.parse().unwrap()).to_string();
        assert_eq!(at("http://127.0.0.1:8080"), "/v1/chat/completions");
        assert_eq!(at("http://127.0.0.1:8080/"), "/v1/chat/completions");
        assert_eq!(at("https://host/v1/"), "/v1/chat/completions");
        assert_eq!(at("https://host/openai/v1"), "/openai/v1/chat/completions");
    }

    #[test]
    fn request_lines_are_read_exactly() {
        assert_eq!(ask(&Method::POST, "/v1/chat/completions").unwrap(), Ask::Complete(Endpoint::Chat));
        assert_eq!(ask(&Method::GET, "/v1/models/org/a%2Fb%20c").unwrap(), Ask::Model("org/a/b c".into()));
        assert_eq!(ask(&Method::OPTIONS, "/v1/chat/completions").unwrap_err().status, 405);
        assert_eq!(ask(&Method::GET, "/v1/chat/completions").unwrap_err().status, 405);
        for path in [
            "/",
            "/v1",
            "/v1/chat/completions/",
            "/v1/models/",
            "/v1/models/%zz",
            "/v1/../v1/models",
            "//v1/models",
        ] {
            assert_eq!(ask(&Method::GET, path).unwrap_err().status, 404, "{path}");
        }
    }
}
