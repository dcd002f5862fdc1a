//! Which headers cross the gateway, in each direction.

use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Carries the request's id from the caller through every node and back.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The code of an error that a gateway made itself, so that the gateway before it can tell it from a backend's.
pub(crate) const MESH_ERROR: HeaderName = HeaderName::from_static("x-mesh-error");

/// What a gateway says of its load for the asked model, to the gateway that asks; see [`mesh_routing::Load`]. It ends at
/// this hop.
pub(crate) const MESH_LOAD: HeaderName = HeaderName::from_static("x-mesh-load");

/// In a request between gateways: only a backend that can go on with an answer may serve it. In an answer between
/// gateways: such a backend made it. It ends at this hop.
pub(crate) const MESH_CONTINUES: HeaderName = HeaderName::from_static("x-mesh-continues");

/// Asks for an answer that can be resumed: `1`.
pub(crate) const MESH_RESUMABLE: HeaderName = HeaderName::from_static("x-mesh-resumable");
/// Names an answer that can be resumed.
pub(crate) const MESH_RESPONSE_ID: HeaderName = HeaderName::from_static("x-mesh-response-id");
/// The last event that a caller has, when it resumes an answer.
pub(crate) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Request headers that any backend may see. A list of what passes, not of what does not: credentials, cookies,
/// hop-by-hop headers and what browsers say of themselves stay here whatever their name. `accept-encoding` is absent
/// so that answers come as they are sent on, unpacked.
const PASSED: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::ACCEPT,
    header::USER_AGENT,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("openai-beta"),
];

/// Longest `x-request-id` taken from a caller, in bytes.
const REQUEST_ID_MAX: usize = 128;

/// Returns the caller's request id when it is short and printable, else a new one: the time and `draw`, which must
/// differ from call to call.
pub(crate) fn request_id(headers: &HeaderMap, draw: u64) -> HeaderValue {
    if let Some(id) = headers.get(&REQUEST_ID)
        && (1..=REQUEST_ID_MAX).contains(&id.len())
        && id.as_bytes().iter().all(u8::is_ascii_graphic)
    {
        return id.clone();
    }
    let mut text = [0u8; uuid::fmt::Simple::LENGTH];
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let millis = u64::try_from(millis).unwrap_or(u64::MAX);
    let [first, rest @ ..] = draw.to_be_bytes();
    // Bytes 0 and 2 are in part the UUID's version and variant.
    let mut unique = [0; 10];
    unique[1] = first;
    unique[3..].copy_from_slice(&rest);
    let id = uuid::Builder::from_unix_timestamp_millis(millis, &unique).into_uuid();
    let text = id.simple().encode_lower(&mut text);
    HeaderValue::from_str(text).expect("hexadecimal digits are a header value")
}

/// Returns the headers that go upstream with a request. `to_peer` adds the mesh's own (`x-mesh-*`).
pub(crate) fn upstream(from: &HeaderMap, request_id: &HeaderValue, to_peer: bool) -> HeaderMap {
    let mut out = HeaderMap::with_capacity(10);
    for name in &PASSED {
        if let Some(value) = from.get(name) {
            out.insert(name.clone(), value.clone());
        }
    }
    if to_peer {
        for (name, value) in from {
            if name.as_str().starts_with("x-mesh-") {
                out.append(name.clone(), value.clone());
            }
        }
    }
    out.insert(REQUEST_ID, request_id.clone());
    out
}

/// Removes from a backend's answer what ends at this hop or would open this origin to other sites.
///
/// `Content-Length` goes too: the body's own length sets it again.
pub(crate) fn clean_answer(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::CONTENT_LENGTH,
        header::SET_COOKIE,
        header::STRICT_TRANSPORT_SECURITY,
        header::ALT_SVC,
        header::SERVER,
        MESH_LOAD,
        MESH_CONTINUES,
    ] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    let foreign: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
    for name in foreign {
        headers.remove(name);
    }
}

/// Whether an answer is a stream of server-sent events.
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn credentials_and_hop_by_hop_headers_stay_here() {
        let from = map(&[
            ("authorization", "Bearer secret"),
            ("x-api-key", "secret"),
            ("api-key", "secret"),
            ("cookie", "a=b"),
            ("connection", "x-odd"),
            ("x-odd", "1"),
            ("host", "localhost"),
            ("origin", "http://localhost"),
            ("content-type", "application/json"),
            ("traceparent", "00-1-2-01"),
            ("x-mesh-resumable", "1"),
        ]);
        let id = HeaderValue::from_static("r1");
        let mut names: Vec<_> = upstream(&from, &id, false).keys().map(|name| name.to_string()).collect();
        names.sort();
        assert_eq!(names, ["content-type", "traceparent", "x-request-id"]);
        assert!(upstream(&from, &id, true).contains_key("x-mesh-resumable"));
    }

    #[test]
    fn answers_lose_cors_cookies_and_named_hop_headers() {
        let mut headers = map(&[
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("set-cookie", "a=b"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("content-length", "5"),
            ("content-type", "application/json"),
            ("x-kept", "1"),
        ]);
        clean_answer(&mut headers);
        let mut names: Vec<_> = headers.keys().map(|name| name.to_string()).collect();
        names.sort();
        assert_eq!(names, ["content-type", "x-kept"]);
    }

    #[test]
    fn odd_request_ids_are_replaced() {
        assert_eq!(request_id(&map(&[("x-request-id", "abc-1")]), 0), "abc-1");
        assert_eq!(request_id(&map(&[("x-request-id", "a b")]), 0).len(), 32);
        let made = |draw| request_id(&HeaderMap::new(), draw);
        let mut ids: Vec<_> = (0..64).map(|bit| made(1 << bit)).chain([made(0), made(u64::MAX)]).collect();
        ids.sort_by(|a, b| a.as_bytes()[12..].cmp(&b.as_bytes()[12..]));
        assert!(
            ids.windows(2).all(|two| two[0].as_bytes()[12..] != two[1].as_bytes()[12..]),
            "every bit counts"
        );
    }
}
