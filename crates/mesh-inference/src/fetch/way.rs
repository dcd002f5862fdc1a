//! The way to a server: straight, or over the proxy that the environment names.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower_service::Service;

use crate::backend::Secret;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The proxies of the environment, in the words of curl. They may hold passwords.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// For http URLs (`http_proxy`).
    pub http: Option<Secret>,
    /// For https URLs (`https_proxy`).
    pub https: Option<Secret>,
    /// For those of which the other two say nothing (`all_proxy`).
    pub all: Option<Secret>,
    /// Hosts that are asked straight, separated by commas (`no_proxy`). This machine always is.
    pub no: Option<String>,
}

/// Makes connections.
#[derive(Clone)]
pub(super) struct Way {
    tcp: HttpConnector,
    proxies: Arc<Matcher>,
}

impl Way {
    pub(super) fn new(proxies: &Proxies) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let text = |proxy: &Option<Secret>| {
            proxy.as_ref().map(|proxy| proxy.expose().trim().to_owned()).unwrap_or_default()
        };
        let proxies = Matcher::builder()
            .http(text(&proxies.http))
            .https(text(&proxies.https))
            .all(text(&proxies.all))
            .no(proxies.no.clone().unwrap_or_default())
            .build();
        Self { tcp, proxies: Arc::new(proxies) }
    }

    fn proxy(&self, to: &Uri) -> Option<Intercept> {
        let host = to.host()?.trim_start_matches('[').trim_end_matches(']');
        let is_here = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        self.proxies.intercept(to).filter(|_| !is_here)
    }

    /// Whether a proxy reads the request itself, as it does for http URLs: it then needs the whole URL, and this word from us.
    pub(super) fn reader(&self, to: &Uri) -> Option<Option<HeaderValue>> {
        let proxy = self
            .proxy(to)
            .filter(|proxy| to.scheme_str() == Some("http") && proxy.uri().scheme_str() == Some("http"))?;
        Some(proxy.basic_auth().cloned())
    }
}

impl Service<Uri> for Way {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let mut tcp = self.tcp.clone();
        let Some(proxy) = self.proxy(&to) else {
            return Box::pin(async move { Ok(tcp.call(to).await?) });
        };
        let at = proxy.uri().clone();
        let named = OverProxy(at.authority().map(ToString::to_string).unwrap_or_default());
        match at.scheme_str() {
            Some("http") if to.scheme_str() == Some("http") => {
                Box::pin(async move { tcp.call(at).await.map_err(|error| named.failed(error)) })
            }
            Some("http") => {
                let mut tunnel = Tunnel::new(at, tcp);
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                Box::pin(async move { tunnel.call(to).await.map_err(|error| named.failed(error)) })
            }
            Some(scheme @ ("socks5" | "socks5h")) => {
                let mut socks = SocksV5::new(at.clone(), tcp).local_dns(scheme == "socks5");
                if let Some((user, password)) = proxy.raw_auth() {
                    socks = socks.with_auth(user.to_owned(), password.to_owned());
                }
                Box::pin(async move { socks.call(to).await.map_err(|error| named.failed(error)) })
            }
            _ => Box::pin(async move { Err(named.failed("it has to be an http:// or socks5:// one")) }),
        }
    }
}

/// The proxy that was in the way, for people.
struct OverProxy(String);

impl OverProxy {
    fn failed(self, error: impl Into<BoxError>) -> BoxError {
        Box::new(ProxyError { proxy: self.0, source: error.into() })
    }
}

#[derive(Debug)]
struct ProxyError {
    proxy: String,
    source: BoxError,
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "over the proxy {}", self.proxy)
    }
}

impl std::error::Error for ProxyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

/// TLS that trusts whom browsers trust, and whom this machine's owner trusts besides: companies read what their proxies carry.
pub(super) fn tls() -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let own = rustls_native_certs::load_native_certs();
    for error in &own.errors {
        tracing::debug!(%error, "a part of this machine's certificates cannot be read");
    }
    roots.add_parsable_certificates(own.certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_is_excepted_and_this_machine_are_asked_straight() {
        let way = Way::new(&Proxies {
            http: Some(Secret::new("http://user:word@one.example:3128")),
            all: Some(Secret::new("socks5://two.example")),
            no: Some("intern.example, 10.0.0.0/8".to_owned()),
            ..Proxies::default()
        });
        let proxy = |to: &str| way.proxy(&to.parse().unwrap()).map(|proxy| proxy.uri().to_string());
        assert_eq!(proxy("http://hub.example/m").unwrap(), "http://one.example:3128/");
        assert_eq!(proxy("https://hub.example/m").unwrap(), "socks5://two.example/");
        for straight in [
            "http://intern.example/",
            "https://x.intern.example/",
            "http://10.1.2.3/",
            "http://localhost:9/",
            "http://[::1]/",
        ] {
            assert_eq!(proxy(straight), None, "{straight}");
        }
        let reader = |to: &str| way.reader(&to.parse().unwrap());
        assert!(reader("http://hub.example/").unwrap().unwrap().is_sensitive());
        assert!(reader("https://hub.example/").is_none() && reader("http://127.0.0.1/").is_none());
    }
}
