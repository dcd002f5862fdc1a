//! What is let through: requests of this page alone, with a cookie, and those of watchers only to look.
//!
//! A web page of anybody can make a browser send requests to this port. Its `Origin` gives it away, and one that rebinds
//! its own name to 127.0.0.1 is given away by `Host`.

use std::net::SocketAddr;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use mesh_control::{ApiError, ErrorCode};
use mesh_identity::UnixTime;

use super::Doors;
use super::door::{Access, COOKIE_SECS};
use crate::control::failure;

/// No script, style, picture or connection but from here; no frame around it; nothing of it elsewhere.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const MEND: &str = "open the console by a link of its own: `qmt-cli console` prints one";

/// The names of this console: of the same machine, at its port.
#[derive(Debug, Clone)]
pub(super) struct Own {
    hosts: [String; 3],
    cookie: String,
}

impl Own {
    pub(super) fn new(addr: SocketAddr) -> Self {
        let port = addr.port();
        Self {
            hosts: [format!("127.0.0.1:{port}"), format!("localhost:{port}"), format!("[::1]:{port}")],
            // Browsers do not tell cookies of different ports apart: two nodes of one machine would take each other's.
            cookie: format!("qmt_console_{port}"),
        }
    }

    pub(super) fn set_cookie(&self, value: &str) -> String {
        format!("{}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={COOKIE_SECS}", self.cookie)
    }

    pub(super) fn clear_cookie(&self) -> String {
        format!("{}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0", self.cookie)
    }

    fn cookies<'a>(&'a self, headers: &'a HeaderMap) -> impl Iterator<Item = &'a str> {
        let pairs = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        pairs.flat_map(|text| text.split(';')).filter_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            (name == self.cookie).then_some(value)
        })
    }

    /// Whether a page of ours, or a person by a link, asks for this.
    fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
        let host = one(headers, &header::HOST).filter(|host| self.hosts.iter().any(|own| own == host));
        let Some(host) = host else { return Err("this is not the name of a console") };
        if uri.authority().is_some_and(|target| target.as_str() != host) {
            return Err("this is not the name of a console");
        }
        if headers.contains_key(header::ORIGIN) {
            let same =
                one(headers, &header::ORIGIN).and_then(|origin| origin.strip_prefix("http://")) == Some(host);
            return if same { Ok(()) } else { Err("another site asks for this") };
        }
        let is_read = method == Method::GET || method == Method::HEAD;
        let site = one(headers, &HeaderName::from_static("sec-fetch-site"));
        match site {
            // A link in a mail or a terminal: a page to look at, nothing of which the other site sees.
            Some("cross-site" | "same-site") => {
                let navigates = one(headers, &HeaderName::from_static("sec-fetch-mode")) == Some("navigate");
                if is_read && navigates { Ok(()) } else { Err("another site asks for this") }
            }
            _ if is_read => Ok(()),
            _ => Err("a request that changes something must name its origin"),
        }
    }
}

/// The only value of a header; none when it is missing, doubled or no text.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    let first = all.next()?;
    if all.next().is_some() { None } else { first.to_str().ok() }
}

/// Around everything: only our own page and a person's own browser get an answer, and every answer says what it may do.
pub(super) async fn own_page(State(own): State<Own>, request: Request, next: Next) -> Response {
    let mut response = match own.check(request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(why) => failure(&ApiError::new(ErrorCode::NotAllowed, why).with_mend(MEND)),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// Around the API: whoever has a cookie, and what changes something only with one for everything.
pub(super) async fn admitted(State(doors): State<Doors>, mut request: Request, next: Next) -> Response {
    let now = UnixTime::now();
    let access = doors.own.cookies(request.headers()).find_map(|cookie| doors.door.check(cookie, now));
    let Some(access) = access else {
        return failure(
            &ApiError::new(ErrorCode::Unauthorized, "this browser is not signed in").with_mend(MEND),
        );
    };
    if !(request.method() == Method::GET || request.method() == Method::HEAD) {
        if access == Access::Watch {
            let what = "this browser was let in to watch, and may not change anything";
            return failure(
                &ApiError::new(ErrorCode::NotAllowed, what)
                    .with_mend("`qmt-cli console` prints a link for everything"),
            );
        }
        if !has_own_type(request.headers()) {
            let what = "the body's content-type must be application/json, application/x-ndjson or text/x-qmt";
            return failure(&ApiError::new(ErrorCode::BadRequest, what));
        }
    }
    request.extensions_mut().insert(access);
    next.run(request).await
}

/// Types that no form of another site can send without asking first.
fn has_own_type(headers: &HeaderMap) -> bool {
    let Some(text) = one(headers, &header::CONTENT_TYPE) else { return false };
    let essence = text.split(';').next().unwrap_or_default().trim();
    ["application/json", "application/x-ndjson", "text/x-qmt"]
        .iter()
        .any(|own| essence.eq_ignore_ascii_case(own))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn checked(method: Method, headers: &[(&'static str, &str)]) -> Result<(), &'static str> {
        let own = Own::new("127.0.0.1:3131".parse().unwrap());
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect();
        own.check(&method, &"/api/status".parse().unwrap(), &headers)
    }

    #[test]
    fn only_the_consoles_own_names_are_answered() {
        for host in ["127.0.0.1:3131", "localhost:3131", "[::1]:3131"] {
            assert_eq!(checked(Method::GET, &[("host", host)]), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:3131",
            "127.0.0.1:9337",
            "127.0.0.1",
            "127.0.0.1:3131.evil.example",
            "",
        ] {
            assert!(checked(Method::GET, &[("host", host)]).is_err(), "{host}");
        }
        assert!(checked(Method::GET, &[]).is_err());
    }

    #[test]
    fn another_origin_gets_nothing_and_a_change_must_name_its_own() {
        let host = ("host", "localhost:3131");
        assert_eq!(checked(Method::POST, &[host, ("origin", "http://localhost:3131")]), Ok(()));
        for origin in [
            "null",
            "http://evil.example",
            "https://localhost:3131",
            "http://localhost:9337",
            "http://127.0.0.1:3131",
        ] {
            for method in [Method::GET, Method::POST] {
                assert!(checked(method, &[host, ("origin", origin)]).is_err(), "{origin}");
            }
        }
        assert!(checked(Method::POST, &[host]).is_err());
        assert!(checked(Method::POST, &[host, ("sec-fetch-site", "same-origin")]).is_err());
        assert_eq!(checked(Method::GET, &[host, ("sec-fetch-site", "same-origin")]), Ok(()));
    }

    #[test]
    fn a_link_from_elsewhere_may_be_followed_and_nothing_embedded() {
        let host = ("host", "localhost:3131");
        let from = ("sec-fetch-site", "cross-site");
        assert_eq!(checked(Method::GET, &[host, from, ("sec-fetch-mode", "navigate")]), Ok(()));
        assert!(checked(Method::GET, &[host, from, ("sec-fetch-mode", "no-cors")]).is_err());
        assert!(checked(Method::GET, &[host, from]).is_err());
        assert!(checked(Method::POST, &[host, from, ("sec-fetch-mode", "navigate")]).is_err());
    }

    #[test]
    fn no_form_can_send_our_types() {
        let typed = |value: &str| {
            has_own_type(&HeaderMap::from_iter([(
                header::CONTENT_TYPE,
                HeaderValue::from_str(value).unwrap(),
            )]))
        };
        assert!(
            typed("application/json")
                && typed("Application/JSON; charset=utf-8")
                && typed("application/x-ndjson")
        );
        for form in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
        {
            assert!(!typed(form), "{form}");
        }
        assert!(!has_own_type(&HeaderMap::new()));
    }
}
