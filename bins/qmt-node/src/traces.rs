//! Spans of requests, sent to a collector of traces as OTLP over HTTP, in its JSON encoding (OpenTelemetry protocol 1.x,
//! "OTLP/HTTP"; the field names are those of opentelemetry-proto's `trace.proto`).
//!
//! A span goes out that has the fields `trace` and `span`: those of the gateway. What it carries are names, times and numbers, and
//! never a prompt or an answer. Only with `[telemetry] otlp_endpoint` is anything gathered or sent.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// Spans that wait for the collector: some seconds of a busy gateway, a megabyte. What comes on top is dropped and counted.
const WAITING_MAX: usize = 4_096;
/// Spans of one request to the collector.
const BATCH_MAX: usize = 512;
/// They wait for others for so long.
const BATCH_EVERY: Duration = Duration::from_secs(1);
/// For one request to the collector.
const DEADLINE: Duration = Duration::from_secs(5);
/// For what is left when the node ends.
const LAST_DEADLINE: Duration = Duration::from_secs(1);
/// Fields of a span, and bytes of each.
const FIELDS_MAX: usize = 16;
const FIELD_BYTES_MAX: usize = 256;
/// OTLP's kinds: a request that is answered, and one that is asked.
const SERVER: u8 = 2;
const CLIENT: u8 = 3;
/// OTLP's status of what failed.
const FAILED: u8 = 2;

/// Spans on their way to a collector; a handle.
#[derive(Clone, Default)]
pub struct Traces(Arc<Shared>);

#[derive(Default)]
struct Shared {
    waiting: Mutex<VecDeque<Done>>,
    /// A batch is full.
    full: Notify,
    sent: AtomicU64,
    lost: AtomicU64,
}

/// A span that is over.
struct Done {
    name: &'static str,
    begun: SystemTime,
    ended: SystemTime,
    facts: Facts,
}

/// A span under way.
struct Open {
    begun: SystemTime,
    facts: Facts,
}

#[derive(Default)]
struct Facts {
    trace: String,
    span: String,
    parent: String,
    rest: Vec<(&'static str, Value)>,
}

/// Where spans go, and in whose name.
#[derive(Debug, Clone)]
pub(crate) struct Collector {
    /// `http`, with an authority: [`crate::config`] has seen to it.
    pub(crate) endpoint: Uri,
    /// The short form of the node's id.
    pub(crate) node: String,
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Traces(..)")
    }
}

impl Traces {
    /// The layer that gathers spans; put it in only where they are sent.
    pub fn layer(&self) -> Gather {
        Gather(self.clone())
    }

    /// Spans that a collector took, and those that were dropped.
    pub(crate) fn counts(&self) -> [u64; 2] {
        [&self.0.sent, &self.0.lost].map(|count| count.load(Ordering::Relaxed))
    }

    fn add(&self, done: Done) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= WAITING_MAX {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.push_back(done);
        if waiting.len() >= BATCH_MAX {
            self.0.full.notify_one();
        }
    }

    fn take(&self) -> Vec<Done> {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.len().min(BATCH_MAX);
        waiting.drain(..count).collect()
    }

    /// Sends what is gathered until it is cancelled, and then what is left. A collector that is away costs its spans and one
    /// warning, until it is back.
    pub(crate) async fn send_all(self, collector: Collector, stop: CancellationToken) {
        let mut is_away = false;
        loop {
            let ends = tokio::select! {
                () = self.0.full.notified() => false,
                () = tokio::time::sleep(BATCH_EVERY) => false,
                () = stop.cancelled() => true,
            };
            let limit = if ends { LAST_DEADLINE } else { DEADLINE };
            loop {
                let batch = self.take();
                if batch.is_empty() {
                    break;
                }
                let sent = tokio::time::timeout(limit, send(&collector, &batch)).await;
                let sent = sent.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs())));
                let count = if sent.is_ok() { &self.0.sent } else { &self.0.lost };
                count.fetch_add(batch.len() as u64, Ordering::Relaxed);
                match sent {
                    Ok(()) => is_away = false,
                    Err(why) if !is_away => {
                        is_away = true;
                        let collector = collector.endpoint.to_string();
                        tracing::warn!(
                            collector,
                            why,
                            "traces are lost: the collector of [telemetry] takes none"
                        );
                    }
                    Err(_) => {}
                }
                if is_away && ends {
                    return;
                }
            }
            if ends {
                return;
            }
        }
    }
}

async fn send(collector: &Collector, batch: &[Done]) -> Result<(), String> {
    let text = |error: &dyn fmt::Display| error.to_string();
    let authority = collector.endpoint.authority().ok_or("its URL names no host")?;
    let at = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(at).await.map_err(|error| text(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    let path = format!("{}/v1/traces", collector.endpoint.path().trim_end_matches('/'));
    let request = Request::post(path)
        .header("host", authority.as_str())
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(encoded(batch, &collector.node).to_string())))
        .map_err(|error| text(&error))?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(|error| text(&error))?;
        let status = answer.status();
        // Read, so that the connection ends in order.
        let _ = answer.into_body().collect().await;
        Ok::<_, String>(status)
    };
    let status: StatusCode = tokio::select! {
        status = answered => status?,
        Err(error) = connection => return Err(text(&error)),
    };
    if status.is_success() { Ok(()) } else { Err(format!("it answers {status}")) }
}

/// An `ExportTraceServiceRequest`.
fn encoded(batch: &[Done], node: &str) -> Value {
    let spans: Vec<Value> = batch.iter().map(encoded_span).collect();
    json!({ "resourceSpans": [{
        "resource": { "attributes": [
            attribute("service.name", json!("qmt-node")),
            attribute("service.version", json!(env!("CARGO_PKG_VERSION"))),
            attribute("service.instance.id", json!(node)),
        ] },
        "scopeSpans": [{ "scope": { "name": "qmt" }, "spans": spans }],
    }] })
}

fn encoded_span(done: &Done) -> Value {
    let facts = &done.facts;
    let nanos = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
    let failed = facts.rest.iter().any(|(name, value)| {
        *name == "error" || (*name == "status" && value.as_u64().is_some_and(|status| status >= 500))
    });
    let mut span = json!({
        "traceId": facts.trace,
        "spanId": facts.span,
        "name": done.name,
        "kind": if done.name == "inference.attempt" { CLIENT } else { SERVER },
        "startTimeUnixNano": nanos(done.begun),
        "endTimeUnixNano": nanos(done.ended),
        "attributes": facts.rest.iter().map(|(name, value)| attribute(name, value.clone())).collect::<Vec<_>>(),
        "status": if failed { json!({ "code": FAILED }) } else { json!({}) },
    });
    if !facts.parent.is_empty() {
        span["parentSpanId"] = json!(facts.parent);
    }
    span
}

fn attribute(name: &str, value: Value) -> Value {
    let value = match value {
        Value::Number(number) => json!({ "intValue": number.to_string() }),
        Value::Bool(is) => json!({ "boolValue": is }),
        Value::String(text) => json!({ "stringValue": text }),
        other => json!({ "stringValue": other.to_string() }),
    };
    json!({ "key": name, "value": value })
}

/// Gathers spans; see [`Traces::layer`].
#[derive(Debug)]
pub struct Gather(Traces);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Gather {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut facts = Facts::default();
        attributes.record(&mut facts);
        if !facts.trace.is_empty() {
            span.extensions_mut().insert(Open { begun: SystemTime::now(), facts });
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(open) = span.extensions_mut().get_mut::<Open>() {
            values.record(&mut open.facts);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(Open { begun, facts }) = span.extensions_mut().remove::<Open>() else { return };
        // Without it, its caller does not record this trace.
        if !facts.span.is_empty() {
            self.0.add(Done { name: span.name(), begun, ended: SystemTime::now(), facts });
        }
    }
}

impl Facts {
    fn text(&mut self, field: &Field, text: &str) {
        let text = &text[..text.floor_char_boundary(FIELD_BYTES_MAX)];
        match field.name() {
            "trace" => text.clone_into(&mut self.trace),
            "span" => text.clone_into(&mut self.span),
            "parent" => text.clone_into(&mut self.parent),
            name => self.add(name, json!(text)),
        }
    }

    fn add(&mut self, name: &'static str, value: Value) {
        if self.rest.len() < FIELDS_MAX {
            self.rest.push((name, value));
        }
    }
}

impl Visit for Facts {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn gathered(work: impl FnOnce()) -> Vec<Done> {
        let traces = Traces::default();
        let subscriber = tracing_subscriber::registry().with(traces.layer());
        tracing::subscriber::with_default(subscriber, work);
        traces.take()
    }

    #[test]
    fn a_span_goes_out_with_what_was_said_of_it() {
        let done = gathered(|| {
            let span = tracing::info_span!(
                "inference.request",
                trace = "0a",
                span = tracing::field::Empty,
                parent = tracing::field::Empty,
                model = "m",
                status = tracing::field::Empty,
            );
            span.record("span", "0b");
            span.record("status", 503_u16);
            // Neither of a trace, nor recorded by its caller.
            drop(tracing::info_span!("other", model = "m"));
            drop(tracing::info_span!("inference.request", trace = "0c"));
        });
        assert_eq!(done.len(), 1);
        let body = encoded(&done, "abc");
        let span = &body["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!(
            (&span["traceId"], &span["spanId"], &span["kind"]),
            (&json!("0a"), &json!("0b"), &json!(SERVER))
        );
        assert_eq!(span["status"], json!({ "code": FAILED }));
        assert!(span.get("parentSpanId").is_none());
        let attributes = json!([
            { "key": "model", "value": { "stringValue": "m" } },
            { "key": "status", "value": { "intValue": "503" } },
        ]);
        assert_eq!(span["attributes"], attributes);
        let (begun, ended) = (&span["startTimeUnixNano"], &span["endTimeUnixNano"]);
        assert!(begun.as_str() <= ended.as_str() && begun.is_string(), "{span}");
        let instance = &body["resourceSpans"][0]["resource"]["attributes"][2];
        assert_eq!(instance["value"]["stringValue"], "abc");
    }

    #[test]
    fn a_collector_that_is_slow_costs_spans_and_no_memory() {
        let traces = Traces::default();
        let subscriber = tracing_subscriber::registry().with(traces.layer());
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..WAITING_MAX + 7 {
                drop(tracing::info_span!("inference.request", trace = "0a", span = "0b"));
            }
        });
        assert_eq!(traces.counts(), [0, 7]);
    }
}
