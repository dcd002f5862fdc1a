//! The page: files that are part of the program. Nothing of it comes from another host.

use axum::Router;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode, header};

struct File {
    path: &'static str,
    media_type: &'static str,
    text: &'static str,
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! file {
    ($path:literal, $media_type:expr) => {
        File {
            path: concat!("/", $path),
            media_type: $media_type,
            text: include_str!(concat!("../../console/", $path)),
        }
    };
}

const FILES: &[File] = &[
    file!("style.css", "text/css; charset=utf-8"),
    file!("icon.svg", "image/svg+xml"),
    file!("app.js", SCRIPT),
    file!("api.js", SCRIPT),
    file!("dom.js", SCRIPT),
    file!("state.js", SCRIPT),
    file!("words.js", SCRIPT),
    file!("views/overview.js", SCRIPT),
    file!("views/topology.js", SCRIPT),
    file!("views/models.js", SCRIPT),
    file!("views/chat.js", SCRIPT),
    file!("views/sessions.js", SCRIPT),
    file!("views/invites.js", SCRIPT),
    file!("views/routes.js", SCRIPT),
    file!("views/audit.js", SCRIPT),
    file!("views/logs.js", SCRIPT),
    file!("views/doctor.js", SCRIPT),
];

const INDEX: &str = include_str!("../../console/index.html");
const STALE: &str = include_str!("../../console/stale.html");

pub(super) fn routes() -> Router {
    let index = Router::new().route("/", get(|| async { Html(INDEX) }));
    FILES.iter().fold(index, |router, file| {
        router.route(file.path, get(async move |headers: HeaderMap| answer(file, &headers)))
    })
}

/// What a link that was used, or is too old, shows.
pub(super) fn stale() -> Response {
    (StatusCode::GONE, Html(STALE)).into_response()
}

/// Asked for again, a file that has not changed costs a few bytes.
fn answer(file: &File, headers: &HeaderMap) -> Response {
    let tag = format!("\"{}\"", &blake3::hash(file.text.as_bytes()).to_hex()[..16]);
    let fixed = [(header::CACHE_CONTROL, "no-cache".to_owned()), (header::ETAG, tag.clone())];
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| *known == *tag) {
        return (StatusCode::NOT_MODIFIED, fixed).into_response();
    }
    (fixed, [(header::CONTENT_TYPE, file.media_type)], file.text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bound that the project sets itself, bytes.
    const WEIGHT_MAX: usize = 200_000;

    #[test]
    fn the_page_is_light_and_asks_no_other_host() {
        let all = FILES.iter().map(|file| file.text).chain([INDEX, STALE]);
        let weight: usize = all.clone().map(str::len).sum();
        assert!(weight <= WEIGHT_MAX, "{weight} bytes");
        for text in all {
            let foreign = text.match_indices("://").filter(|(at, _)| !text[..*at].ends_with("qmt"));
            let foreign: Vec<&str> =
                foreign.map(|(at, _)| &text[at.saturating_sub(8)..(at + 20).min(text.len())]).collect();
            // The one address is the name of SVG's own vocabulary, which nobody asks for.
            assert!(foreign.iter().all(|found| found.contains("www.w3.org")), "{foreign:?}");
            assert!(
                !text.contains("innerHTML") && !text.contains("eval("),
                "text from peers could become code"
            );
        }
    }
}
