//! Who may speak to the gateway over TCP: Host, Origin and API key.
//!
//! A web page can make a browser send requests to 127.0.0.1. Its `Origin` gives it away, and a page that rebinds its
//! own name to 127.0.0.1 is given away by `Host`.

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap};
use http::uri::Authority;

/// Why a caller is refused before its request is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// `Host` is missing, doubled or unreadable.
    BadHost,
    /// `Host` names neither loopback nor the bound address.
    Host,
    /// `Origin` is another site's.
    Origin,
}

/// The names under which this gateway may be addressed.
#[derive(Debug, Clone)]
pub(crate) struct OwnNames {
    bound: IpAddr,
    extra: Vec<String>,
}

impl OwnNames {
    pub(crate) fn new(bound: SocketAddr, extra: &[String]) -> Self {
        Self { bound: bound.ip(), extra: extra.iter().map(|name| name.to_ascii_lowercase()).collect() }
    }

    /// Checks `Host` (and the authority of an absolute request target) and `Origin`.
    pub(crate) fn check(&self, target: Option<&Authority>, headers: &HeaderMap) -> Result<(), Foreign> {
        let host = one(headers, &header::HOST)?.ok_or(Foreign::BadHost)?;
        let host: Authority = host.parse().map_err(|_| Foreign::BadHost)?;
        if !self.is_own(&host) || target.is_some_and(|target| !self.is_own(target)) {
            return Err(Foreign::Host);
        }
        let cross_site = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
        let Some(origin) = one(headers, &header::ORIGIN).map_err(|_| Foreign::Origin)? else {
            return if cross_site { Err(Foreign::Origin) } else { Ok(()) };
        };
        let same =
            origin.strip_prefix("http://").is_some_and(|origin| origin.eq_ignore_ascii_case(host.as_str()));
        if same && !cross_site { Ok(()) } else { Err(Foreign::Origin) }
    }

    fn is_own(&self, host: &Authority) -> bool {
        if host.as_str().contains('@') {
            return false;
        }
        let name = host.host().to_ascii_lowercase();
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            // An address cannot be rebound by a foreign name server, so a gateway that listens beyond loopback takes any.
            return ip.is_loopback() || ip == self.bound || !self.bound.is_loopback();
        }
        let name = name.strip_suffix('.').unwrap_or(&name);
        name == "localhost" || name.ends_with(".localhost") || self.extra.iter().any(|extra| extra == name)
    }
}

/// Whether the caller shows the key, compared in time that does not depend on how much of it is right.
pub(crate) fn shows_key(headers: &HeaderMap, key: &[u8]) -> bool {
    let Ok(Some(value)) = one(headers, &header::AUTHORIZATION) else {
        return false;
    };
    let Some((scheme, shown)) = value.split_once(' ') else {
        return false;
    };
    scheme.eq_ignore_ascii_case("bearer") && same_bytes(shown.trim().as_bytes(), key)
}

fn same_bytes(shown: &[u8], key: &[u8]) -> bool {
    let mut difference = u8::from(shown.len() != key.len());
    for (at, byte) in key.iter().enumerate() {
        difference |= std::hint::black_box(byte ^ shown.get(at).copied().unwrap_or(!*byte));
    }
    std::hint::black_box(difference) == 0
}

fn one<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Result<Option<&'a str>, Foreign> {
    let mut all = headers.get_all(name).iter();
    let first = all.next();
    if all.next().is_some() {
        return Err(Foreign::BadHost);
    }
    first.map(|value| value.to_str().map_err(|_| Foreign::BadHost)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn check(bound: &str, host: &str, origin: Option<&str>) -> Result<(), Foreign> {
        let names = OwnNames::new(bound.parse().unwrap(), &["box.lan".to_owned()]);
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        }
        names.check(None, &headers)
    }

    #[test]
    fn loopback_names_and_the_bound_address_are_own() {
        for host in [
            "localhost",
            "localhost:9337",
            "LOCALHOST",
            "127.0.0.1:9337",
            "127.9.9.9",
            "[::1]:9337",
            "a.localhost",
            "box.lan:1",
        ] {
            assert_eq!(check("127.0.0.1:9337", host, None), Ok(()), "{host}");
        }
        assert_eq!(check("192.168.1.5:9337", "192.168.1.5:9337", None), Ok(()));
        assert_eq!(check("0.0.0.0:9337", "192.168.1.5", None), Ok(()));
    }

    #[test]
    fn foreign_hosts_are_refused() {
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "192.168.1.5",
            "a@localhost",
            "8.8.8.8:9337",
        ] {
            assert_eq!(check("127.0.0.1:9337", host, None), Err(Foreign::Host), "{host}");
        }
        assert_eq!(check("0.0.0.0:9337", "evil.example", None), Err(Foreign::Host));
        assert_eq!(check("127.0.0.1:9337", "a b", None), Err(Foreign::BadHost));
    }

    #[test]
    fn only_the_same_host_is_an_origin() {
        let bound = "127.0.0.1:9337";
        assert_eq!(check(bound, "localhost:9337", Some("http://localhost:9337")), Ok(()));
        for origin in [
            "null",
            "http://evil.example",
            "http://localhost:3131",
            "https://localhost:9337",
            "http://localhost",
            "file://",
            "",
        ] {
            assert_eq!(check(bound, "localhost:9337", Some(origin)), Err(Foreign::Origin), "{origin}");
        }
    }

    #[test]
    fn keys_must_match_whole() {
        let shows = |value: &'static str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
            shows_key(&headers, b"k-123")
        };
        assert!(shows("Bearer k-123") && shows("bearer  k-123"));
        for value in ["Bearer k-12", "Bearer k-1234", "Basic k-123", "k-123", "Bearer ", "Bearer"] {
            assert!(!shows(value), "{value}");
        }
        assert!(!shows_key(&HeaderMap::new(), b"k-123"));
    }
}
