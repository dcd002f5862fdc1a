//! HTTP as downloads need it: bounded redirects, a token that stays at its host, faults sorted by whether to try again.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower_service::Service;
use url::{Host, Url};

use super::chain;
use super::config::Config;
use super::digest::Sha256Hash;
use super::error::FetchError;
use super::source::shown;
use super::way::{Way, tls};

/// The hub itself needs three.
const REDIRECTS_MAX: usize = 10;
/// Largest read, bytes.
const BUFFER_MAX: usize = 256 * 1024;
const AGENT: &str = concat!("qmt-mesh/", env!("CARGO_PKG_VERSION"));

/// Asks servers for files. Holds no connection between two of them.
#[derive(Clone)]
pub(crate) struct Web {
    connector: HttpsConnector<Way>,
    way: Way,
    endpoint: Url,
    token: Option<HeaderValue>,
    connect_timeout: Duration,
    silence_timeout: Duration,
}

/// Why an answer is no good.
#[derive(Debug)]
pub(crate) enum WebFault {
    /// It may be better next time.
    Transient {
        why: String,
        /// When the server says so.
        after: Option<Duration>,
    },
    /// The file is another one than a moment ago.
    Changed,
    Final(FetchError),
}

/// The head of a good answer, and its body to come.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Where it came from in the end.
    pub(crate) url: Url,
    /// What the hub itself said of the file, on the way.
    pub(crate) linked: Linked,
    body: Incoming,
    silence: Duration,
    /// Drives the connection; aborted when the answer is dropped.
    _connection: JoinSet<()>,
}

/// What the hub says of a file that lies elsewhere.
#[derive(Debug, Clone, Default)]
pub(crate) struct Linked {
    pub(crate) sha256: Option<Sha256Hash>,
    pub(crate) bytes: Option<u64>,
    pub(crate) commit: Option<String>,
}

impl Web {
    pub(crate) fn new(config: &Config) -> Result<Self, rustls::Error> {
        let way = Way::new(&config.proxies);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls()?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(way.clone());
        let token = config.token.as_ref().and_then(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose().trim())).ok()?;
            value.set_sensitive(true);
            Some(value)
        });
        Ok(Self {
            connector,
            way,
            endpoint: config.endpoint.clone(),
            token,
            connect_timeout: config.connect_timeout,
            silence_timeout: config.silence_timeout,
        })
    }

    /// Asks, and follows where the answer leads. With HEAD, stops as soon as the hub has said what the file is.
    /// Cancel safe: a dropped future closes its connection.
    pub(crate) async fn ask(
        &self,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<Answer, WebFault> {
        let (mut at, mut linked, mut with_token) = (url.clone(), Linked::default(), false);
        for _ in 0..=REDIRECTS_MAX {
            let token = self.token_for(&at);
            with_token |= token.is_some();
            let uri: http::Uri =
                at.as_str().parse().map_err(|_| fault(&at, "its address cannot be asked for"))?;
            let reader = self.way.reader(&uri);
            let line = if reader.is_some() { whole(&at) } else { target(&at) };
            let mut request = Request::builder().method(method.clone()).uri(line);
            if let Some(all) = request.headers_mut() {
                all.extend(headers.clone());
                all.insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
                all.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
                all.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
                all.insert(header::HOST, host_header(&at)?);
                if let Some(token) = token {
                    all.insert(header::AUTHORIZATION, token.clone());
                }
                if let Some(Some(word)) = reader {
                    all.insert(header::PROXY_AUTHORIZATION, word);
                }
            }
            let request = request.body(Empty::new()).map_err(|error| fault(&at, &error.to_string()))?;
            let (response, connection) = self.send(uri, request).await?;
            if at.origin() == self.endpoint.origin() {
                linked.learn(response.headers());
            }
            let is_redirect =
                response.status().is_redirection() && response.status() != StatusCode::NOT_MODIFIED;
            let is_good = is_redirect || response.status().is_success();
            let is_known = method == Method::HEAD && linked.bytes.is_some() && is_good;
            if !is_redirect || is_known {
                let (parts, body) = response.into_parts();
                if !is_known {
                    judge(&parts.status, &parts.headers, url, &at, with_token)?;
                }
                return Ok(Answer {
                    status: parts.status,
                    headers: parts.headers,
                    url: at,
                    linked,
                    body,
                    silence: self.silence_timeout,
                    _connection: connection,
                });
            }
            at = next(&at, response.headers())?;
        }
        Err(fault(&at, "it redirects more than 10 times"))
    }

    /// The token, where it may go.
    fn token_for(&self, url: &Url) -> Option<&HeaderValue> {
        let is_local = match url.host()? {
            Host::Ipv4(ip) => ip.is_loopback(),
            Host::Ipv6(ip) => ip.is_loopback(),
            Host::Domain(name) => name == "localhost",
        };
        let may = url.origin() == self.endpoint.origin() && (url.scheme() == "https" || is_local);
        self.token.as_ref().filter(|_| may)
    }

    async fn send(
        &self,
        uri: http::Uri,
        request: Request<Empty<Bytes>>,
    ) -> Result<(http::Response<Incoming>, JoinSet<()>), WebFault> {
        let broken = |error: &dyn std::error::Error| WebFault::transient(chain(error));
        let mut connector = self.connector.clone();
        let connect = async { connector.call(uri).await.map_err(|error| broken(&*error)) };
        let io = timeout(self.connect_timeout, connect)
            .await
            .map_err(|_| WebFault::transient(format!("no connection within {:?}", self.connect_timeout)))??;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_MAX)
            .handshake(io)
            .await
            .map_err(|error| broken(&error))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ = connection.await; // the answer and its body report the same failure
        });
        let response = timeout(self.silence_timeout, sender.send_request(request))
            .await
            .map_err(|_| WebFault::transient(format!("no answer within {:?}", self.silence_timeout)))?;
        Ok((response.map_err(|error| broken(&error))?, tasks))
    }
}

impl WebFault {
    pub(crate) fn transient(why: impl Into<String>) -> Self {
        Self::Transient { why: why.into(), after: None }
    }
}

impl Answer {
    /// The next piece of the body; `None` at its end. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, WebFault> {
        loop {
            let frame = timeout(self.silence, self.body.frame())
                .await
                .map_err(|_| WebFault::transient(format!("nothing came for {:?}", self.silence)))?;
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Ok(Some(data)),
                    Err(_) => {} // trailers
                },
                Some(Err(error)) => {
                    return Err(WebFault::transient(format!("the connection broke: {}", chain(&error))));
                }
            }
        }
    }

    /// Length of the body, where the server says it.
    pub(crate) fn length(&self) -> Option<u64> {
        number(&self.headers, header::CONTENT_LENGTH.as_str())
    }

    /// What the server calls this version of the file.
    pub(crate) fn validator(&self) -> Option<String> {
        validator(&self.headers)
    }

    pub(crate) fn host(&self) -> String {
        host(&self.url)
    }
}

impl Linked {
    fn learn(&mut self, headers: &HeaderMap) {
        if let Some(bytes) = number(headers, "x-linked-size") {
            self.bytes = Some(bytes);
        }
        if let Some(commit) = text(headers, "x-repo-commit") {
            let is_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
            self.commit = is_commit.then(|| commit.to_owned()).or_else(|| self.commit.take());
        }
        // The hub calls large files by their SHA-256; other files by what is none and has 40 digits.
        let named = text(headers, "x-linked-etag").or_else(|| text(headers, "etag"));
        if let Some(hash) =
            named.and_then(|tag| Sha256Hash::from_hex(tag.trim_start_matches("W/").trim_matches('"')))
        {
            self.sha256 = Some(hash);
        }
    }
}

/// A strong ETag, else the time of the last change: what `If-Range` may carry.
pub(crate) fn validator(headers: &HeaderMap) -> Option<String> {
    let tag = text(headers, "etag").filter(|tag| tag.starts_with('"') && tag.len() <= 512);
    tag.or_else(|| text(headers, "last-modified")).map(str::to_owned)
}

/// Host and port of a URL.
pub(crate) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.trim().parse().ok()
}

/// Path and query, as they go into the request's first line.
fn target(url: &Url) -> String {
    match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    }
}

/// The whole of it, as a proxy reads it.
fn whole(url: &Url) -> String {
    format!("{}://{}{}", url.scheme(), host(url), target(url))
}

fn host_header(url: &Url) -> Result<HeaderValue, WebFault> {
    HeaderValue::from_str(&host(url)).map_err(|_| fault(url, "its host name cannot be sent"))
}

fn fault(url: &Url, why: &str) -> WebFault {
    WebFault::Final(FetchError::Server { host: host(url), why: why.to_owned() })
}

/// Where a redirect leads: never from https to http, and never away from http and https.
fn next(at: &Url, headers: &HeaderMap) -> Result<Url, WebFault> {
    let to = text(headers, header::LOCATION.as_str()).and_then(|to| at.join(to).ok());
    let to = to.ok_or_else(|| fault(at, "it redirects to nowhere"))?;
    let is_safe =
        to.has_host() && (to.scheme() == "https" || (to.scheme() == "http" && at.scheme() == "http"));
    if is_safe { Ok(to) } else { Err(fault(at, "it redirects to an address that is not encrypted")) }
}

/// What an answer that is no redirect means.
fn judge(
    status: &StatusCode,
    headers: &HeaderMap,
    asked: &Url,
    at: &Url,
    with_token: bool,
) -> Result<(), WebFault> {
    let (what, host) = (shown(asked), host(at));
    match status.as_u16() {
        200 | 206 => Ok(()),
        404 | 410 => Err(WebFault::Final(FetchError::NotFound { what, host })),
        status @ (401 | 403) => Err(WebFault::Final(FetchError::Denied { what, host, status, with_token })),
        416 => Err(WebFault::Changed),
        408 | 425 | 429 | 500..=599 => Err(WebFault::Transient {
            why: format!("it answered {status}"),
            after: text(headers, header::RETRY_AFTER.as_str()).and_then(retry_after),
        }),
        _ => Err(fault(at, &format!("it answered {status}"))),
    }
}

/// Seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    let text = text.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn the_token_goes_to_the_hub_and_nowhere_else() {
        let mut config = Config::new(Vec::new());
        config.token = Some(crate::backend::Secret::new("hf_secret\n"));
        let web = |endpoint: &str| {
            let mut config = config.clone();
            config.endpoint = url(endpoint);
            Web::new(&config).unwrap()
        };
        let to = |web: &Web, at: &str| web.token_for(&url(at)).is_some();
        let hub = web("https://hub.example");
        assert!(to(&hub, "https://hub.example/a") && to(&hub, "https://hub.example:443/a"));
        for at in ["https://cdn.hub.example/a", "http://hub.example/a", "https://hub.example:444/a"] {
            assert!(!to(&hub, at), "{at}");
        }
        assert!(!to(&web("http://mirror.example"), "http://mirror.example/a"), "readable on its way");
        assert!(to(&web("http://127.0.0.1:9"), "http://127.0.0.1:9/a"));
    }

    #[test]
    fn redirects_lead_nowhere_less_safe() {
        let to = |at: &str, to: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::LOCATION, to.parse().unwrap());
            next(&url(at), &headers).map(String::from).ok()
        };
        assert_eq!(to("https://a.example/x/y", "../z").unwrap(), "https://a.example/z");
        assert_eq!(to("http://a.example/x", "https://b.example/").unwrap(), "https://b.example/");
        for unsafe_one in ["http://b.example/", "file:///etc/passwd", "ftp://b.example/", "data:,x"] {
            assert_eq!(to("https://a.example/x", unsafe_one), None, "{unsafe_one}");
        }
    }

    #[test]
    fn a_wait_is_seconds_or_a_date() {
        assert_eq!(retry_after(" 7"), Some(Duration::from_secs(7)));
        assert_eq!(retry_after("soon"), None);
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!(retry_after(&later).unwrap() > Duration::from_secs(90));
    }

    #[test]
    fn a_hubs_words_for_a_file_are_read() {
        let mut headers = HeaderMap::new();
        let mut linked = Linked::default();
        headers.insert("etag", "\"6d8a\"".parse().unwrap());
        linked.learn(&headers);
        assert!(linked.sha256.is_none());
        headers.insert("x-linked-etag", format!("\"{}\"", "0f".repeat(32)).parse().unwrap());
        headers.insert("x-linked-size", "12".parse().unwrap());
        headers.insert("x-repo-commit", "../../../x".parse().unwrap());
        linked.learn(&headers);
        assert_eq!((linked.sha256.unwrap().0[0], linked.bytes, linked.commit), (0x0f, Some(12), None));
    }
}
