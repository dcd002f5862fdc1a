//! `traceparent` (W3C Trace Context, Recommendation, level 1): which requests of which programs are one.
//!
//! A caller's trace is taken up, else one begins here. Each gateway and each attempt is a span of its own, and names itself as
//! the parent of what comes behind it. The ids are fields of the spans `inference.request` and `inference.attempt`, from where
//! log lines and whoever exports spans have them; a trace that its caller does not record has no field `span`.

use std::fmt;
use std::str::FromStr;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use tracing::Span;
use tracing::field::Empty;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Bytes of version 00; later versions may be longer, and begin with the same.
const LENGTH: usize = 55;
const SAMPLED: u8 = 1;

/// A trace and a span in it. Neither is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceContext {
    trace: u128,
    span: u64,
    /// Whether somebody records it.
    sampled: bool,
}

/// It is no `traceparent`, which then counts as absent (section 3.2).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl TraceContext {
    /// A request's own span: below the caller's, which is returned too, or the first of a trace. What was no `traceparent` goes,
    /// and what belonged to it; the span's own stands in its place. `draw` gives random numbers.
    pub(crate) fn begin(headers: &mut HeaderMap, mut draw: impl FnMut() -> u64) -> (Self, Option<u64>) {
        let caller = Self::of(headers);
        let own = match caller {
            Some(caller) => caller.child(draw()),
            None => {
                headers.remove(TRACESTATE);
                let trace = (u128::from(draw()) << 64 | u128::from(draw())).max(1);
                Self { trace, span: draw().max(1), sampled: true }
            }
        };
        own.write(headers);
        (own, caller.map(|caller| caller.span))
    }

    /// The one that these headers name.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let value = values.next().filter(|_| values.next().is_none())?;
        value.to_str().ok()?.parse().ok()
    }

    pub(crate) fn child(self, span: u64) -> Self {
        Self { span: span.max(1), ..self }
    }

    pub(crate) fn write(self, headers: &mut HeaderMap) {
        let value = HeaderValue::from_str(&self.to_string()).expect("digits and dashes are a header value");
        headers.insert(TRACEPARENT, value);
    }

    /// The span of one request, with fields for what is not yet known.
    pub(crate) fn request(self, parent: Option<u64>, id: &HeaderValue, peer: Option<String>) -> Span {
        let span = tracing::debug_span!(
            "inference.request",
            request = id.to_str().unwrap_or_default(),
            model = Empty,
            peer,
            trace = format!("{:032x}", self.trace),
            span = Empty,
            parent = parent.map(|parent| format!("{parent:016x}")),
            status = Empty,
        );
        if self.sampled {
            span.record("span", format!("{:016x}", self.span));
        }
        span
    }

    /// The span of one attempt at a target, below this one's.
    pub(crate) fn attempt(self, parent: u64, target: &str) -> Span {
        let span = tracing::debug_span!(
            "inference.attempt",
            target_node = target,
            trace = format!("{:032x}", self.trace),
            span = Empty,
            parent = format!("{parent:016x}"),
            error = Empty,
        );
        if self.sampled {
            span.record("span", format!("{:016x}", self.span));
        }
        span
    }

    pub(crate) fn span(self) -> u64 {
        self.span
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl FromStr for TraceContext {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let bytes = text.as_bytes();
        let version = bytes.get(..2).ok_or(Malformed)?;
        let is_long = version != b"00" && bytes.get(LENGTH) == Some(&b'-');
        let is_whole = bytes.len() == LENGTH || is_long;
        let is_lower = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if version == b"ff" || !is_whole || !version.iter().all(is_lower) {
            return Err(Malformed);
        }
        let field = |from: usize, to: usize| {
            let digits = bytes.get(from..to).filter(|digits| digits.iter().all(is_lower));
            let digits = digits.filter(|_| bytes.get(from - 1) == Some(&b'-')).ok_or(Malformed)?;
            let text = std::str::from_utf8(digits).map_err(|_| Malformed)?;
            u128::from_str_radix(text, 16).map_err(|_| Malformed)
        };
        let (trace, span, flags) = (field(3, 35)?, field(36, 52)?, field(53, LENGTH)?);
        let span = u64::try_from(span).map_err(|_| Malformed)?;
        if trace == 0 || span == 0 {
            return Err(Malformed);
        }
        Ok(Self { trace, span, sampled: flags & u128::from(SAMPLED) != 0 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_recommendations_example_is_read_and_written() {
        let read: TraceContext = GOOD.parse().unwrap();
        assert_eq!(
            (read.trace, read.span),
            (0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7)
        );
        assert!(read.sampled);
        assert_eq!(read.to_string(), GOOD);
        assert_eq!(GOOD.len(), LENGTH);
    }

    #[test]
    fn what_is_no_traceparent_counts_as_absent() {
        let none = [
            "",
            "00",
            "00-1-2-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0é-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ];
        for text in none {
            assert_eq!(text.parse::<TraceContext>(), Err(Malformed), "{text}");
        }
        // A later version: what is known of it is read.
        let later = format!("cc{}-more", &GOOD[2..]);
        assert_eq!(later.parse::<TraceContext>().unwrap().to_string(), GOOD);
        assert_eq!(format!("cc{}more", &GOOD[2..]).parse::<TraceContext>(), Err(Malformed));
    }

    #[test]
    fn a_callers_trace_goes_on_and_a_false_one_begins_anew_without_its_state() {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static(GOOD));
        headers.insert(TRACESTATE, HeaderValue::from_static("a=1"));
        let (own, parent) = TraceContext::begin(&mut headers, || 7);
        assert_eq!((own.span, parent), (7, Some(0x00f0_67aa_0ba9_02b7)));
        assert_eq!(headers[TRACEPARENT], "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000007-01");
        assert!(headers.contains_key(TRACESTATE));

        headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        let (own, parent) = TraceContext::begin(&mut headers, || 9);
        assert_eq!((own.trace, parent), (9 << 64 | 9, None), "two are none");
        assert!(!headers.contains_key(TRACESTATE));
        assert_eq!(TraceContext::of(&headers), Some(own));
        assert!(own.sampled);
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_again(trace in 1u128.., span in 1u64.., sampled: bool) {
            let one = TraceContext { trace, span, sampled };
            prop_assert_eq!(one.to_string().parse(), Ok(one));
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".*") {
            if let Ok(read) = text.parse::<TraceContext>() {
                prop_assert!(read.trace != 0 && read.span != 0);
            }
        }
    }
}
