//! OpenAI-compatible providers whose use is counted: the usage is read on its way, and its cost added where there is a price.
//! Everything else passes as it is.

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Deserialize;

use super::door::{Answered, Door, Rewrite, Stream, read_request, read_whole, whole};
use super::headers::{clean_answer, is_event_stream};
use super::relay::chain;
use super::survive::{Fields, data_of};
use crate::terms::{Counted, Spending};

#[derive(Deserialize)]
struct Used {
    #[serde(default)]
    usage: Option<Usage>,
    /// Where `/v1/responses` has it in a stream.
    #[serde(default)]
    response: Option<Inner>,
}

#[derive(Deserialize)]
struct Inner {
    #[serde(default)]
    usage: Option<Usage>,
}

/// As chat completions have it, or as `/v1/responses` does.
#[derive(Clone, Copy, Deserialize)]
struct Usage {
    #[serde(default, alias = "input_tokens")]
    prompt_tokens: u64,
    #[serde(default, alias = "output_tokens")]
    completion_tokens: u64,
    #[serde(default, alias = "input_tokens_details")]
    prompt_tokens_details: Option<Details>,
}

#[derive(Clone, Copy, Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl Usage {
    fn counted(self) -> Counted {
        let cached = self.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
        Counted { input: self.prompt_tokens, cached, output: self.completion_tokens }
    }
}

/// Asks the provider and passes its answer on.
pub(crate) async fn answer(door: Door, request: Request<Incoming>) -> Answered {
    match ask(door, request).await {
        Ok(answered) => answered,
        Err(why) => {
            let error = serde_json::json!({ "error": { "message": why, "type": "server_error", "param": null, "code": "provider_error" } });
            whole(StatusCode::BAD_GATEWAY, error.to_string())
        }
    }
}

async fn ask(door: Door, request: Request<Incoming>) -> Result<Answered, String> {
    let Door { pool, backend, mut spending } = door;
    let mut headers = request.headers().clone();
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let body = read_request(request).await?;
    let question_bytes = body.len();
    let counting = if uri.path().ends_with("/completions") { ask_for_usage(&body) } else { None };
    let is_added = counting.is_some();
    let mut request = Request::new(Full::new(counting.map_or(body, Bytes::from)));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    let mut lease = pool.fresh(&backend.url).await.map_err(|error| chain(&error))?;
    let (mut head, incoming) = lease.wire.send(request).await.map_err(|error| chain(&error))?.into_parts();
    clean_answer(&mut head.headers);
    if head.status.is_success() {
        spending.begin(question_bytes);
    }
    if is_event_stream(&head.headers) {
        let stream = Stream::new(lease, incoming, Meter { spending, is_added }).into_answer();
        return Ok(with_head(stream, head.status, head.headers));
    }
    let body = read_whole(&mut lease, incoming).await?;
    let body =
        if head.status.is_success() { counted(&body, &mut spending).map_or(body, Bytes::from) } else { body };
    Ok(with_head(whole(head.status, body), head.status, head.headers))
}

fn with_head(mut answered: Answered, status: StatusCode, headers: HeaderMap) -> Answered {
    *answered.status_mut() = status;
    *answered.headers_mut() = headers;
    answered
}

/// The question with the wish for its usage; None when it is there already, or no stream is asked for.
fn ask_for_usage(body: &[u8]) -> Option<Vec<u8>> {
    let mut fields = Fields::of(body)?;
    if fields.get::<bool>("stream") != Some(true) {
        return None;
    }
    let options: Option<serde_json::Map<String, serde_json::Value>> = fields.get("stream_options");
    let mut options = options.unwrap_or_default();
    if options.get("include_usage") == Some(&true.into()) {
        return None;
    }
    options.insert("include_usage".into(), true.into());
    fields.set("stream_options", serde_json::Value::Object(options).to_string());
    Some(fields.to_body())
}

/// Notes the usage that stands in an answer or a piece of one; returns it with the cost, where there is a price.
fn counted(json: &[u8], spending: &mut Spending) -> Option<Vec<u8>> {
    let used: Used = serde_json::from_slice(json).ok()?;
    if let Some(usage) = used.response.and_then(|inner| inner.usage) {
        spending.complete(usage.counted());
    }
    let counted = used.usage?.counted();
    spending.complete(counted);
    let price = spending.terms().price?;
    let mut fields = Fields::of(json)?;
    let raw = fields.raw("usage")?.to_owned();
    let mut usage = Fields::of(raw.as_bytes())?;
    usage.set("cost_micros", price.cost_micros(counted).to_string());
    let usage = String::from_utf8(usage.to_body()).ok()?;
    fields.set("usage", usage);
    Some(fields.to_body())
}

/// Counts what a stream says of its use.
struct Meter {
    spending: Spending,
    /// The caller has not asked for the usage, so it does not get it.
    is_added: bool,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<serde::de::IgnoredAny>,
}

impl Rewrite for Meter {
    fn event(&mut self, event: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        self.spending.note_text(event.len() / EVENT_BYTES_OF_ONE);
        let usage = event.windows(USAGE.len()).any(|window| window == USAGE);
        let Some(data) = data_of(event).filter(|_| usage) else {
            out.extend_from_slice(event);
            return Ok(());
        };
        let costed = counted(&data, &mut self.spending);
        let is_usage_alone = self.is_added
            && serde_json::from_slice::<Chunk>(&data).is_ok_and(|chunk| chunk.choices.is_empty());
        if is_usage_alone {
            return Ok(());
        }
        match costed {
            Some(json) => {
                out.extend_from_slice(b"data: ");
                out.extend_from_slice(&json);
                out.extend_from_slice(b"\n\n");
            }
            None => out.extend_from_slice(event),
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        false
    }

    fn rest(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        out.extend_from_slice(rest);
        Ok(())
    }
}

/// How the field looks in a chunk.
const USAGE: &[u8] = b"\"usage\"";
/// An event of a chat has about two hundred bytes around a token of four, for estimates without a count.
const EVENT_BYTES_OF_ONE: usize = 50;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::terms::{Api, Price, Quota, Terms};

    fn spending(price: Option<Price>) -> Spending {
        Spending::new(Arc::new(Terms::new(Api::OpenAi, Quota::default(), price)), None)
    }

    const PRICE: Price = Price { input: 1.0, output: 10.0, cached: Some(0.5) };

    #[test]
    fn the_usage_is_asked_for_where_it_is_not() {
        let asked = |body: &str| ask_for_usage(body.as_bytes()).map(|body| String::from_utf8(body).unwrap());
        assert_eq!(
            asked("{\"model\":\"m\", \"stream\":true}").as_deref(),
            Some("{\"model\":\"m\",\"stream\":true,\"stream_options\":{\"include_usage\":true}}")
        );
        assert_eq!(
            asked("{\"stream\":true,\"stream_options\":{\"x\":1,\"include_usage\":false}}").as_deref(),
            Some("{\"stream\":true,\"stream_options\":{\"include_usage\":true,\"x\":1}}")
        );
        assert_eq!(asked("{\"stream\":true,\"stream_options\":{\"include_usage\":true}}"), None);
        assert_eq!(asked("{\"model\":\"m\"}"), None);
    }

    #[test]
    fn all_but_the_usage_passes_byte_for_byte() {
        let events = [
            "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
            ": a comment\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":10, \"completion_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n",
            "data: [DONE]\n\n",
        ];
        let passed = |is_added: bool, price: Option<Price>| {
            let mut meter = Meter { spending: spending(price), is_added };
            let mut out = Vec::new();
            for event in events {
                meter.event(event.as_bytes(), &mut out).unwrap();
            }
            String::from_utf8(out).unwrap()
        };
        assert_eq!(passed(false, None), events.concat());
        assert_eq!(passed(true, None), [events[0], events[1], events[3]].concat());
        let with_cost = passed(false, Some(PRICE));
        assert!(with_cost.contains("\"cached_tokens\":4},\"cost_micros\":58}}\n\n"), "{with_cost}");
    }

    #[test]
    fn whole_answers_and_responses_are_counted() {
        let mut spending = spending(Some(PRICE));
        let whole = b"{\"id\":\"x\",\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":5}}";
        let with_cost = String::from_utf8(counted(whole, &mut spending).unwrap()).unwrap();
        assert_eq!(
            with_cost,
            "{\"id\":\"x\",\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":5,\"cost_micros\":60}}"
        );
        let responses = b"{\"usage\":{\"input_tokens\":1,\"output_tokens\":2}}";
        assert!(
            String::from_utf8(counted(responses, &mut spending).unwrap())
                .unwrap()
                .contains("\"cost_micros\":21")
        );
        assert_eq!(counted(b"[]", &mut spending), None);
    }
}
