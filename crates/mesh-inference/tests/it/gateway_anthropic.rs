//! Providers that speak Anthropic's API, asked in OpenAI's; and what other nodes may use of a provider.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use mesh_inference::backend::{Backends, Secret, Share};
use mesh_inference::chat::{Call, Chat, ChatError, FinishReason, Piece, ToolCall, Usage};
use mesh_inference::gateway::{Gateway, NoPeers, Provider, ProviderConfig};
use mesh_inference::terms::{Api, Price, Quota};
use mesh_transport::testing::{Mesh, until};
use serde_json::{Value, json};

use crate::chat::{all, call, says};
use crate::gateway_mesh::Node;
use crate::gateway_support::*;

const KEY: &str = "sk-ant-hush";

fn provider(stub: &Stub, api: Api) -> ProviderConfig {
    ProviderConfig {
        name: "box".into(),
        base_url: format!("http://{}", stub.addr).parse().unwrap(),
        api_key: Some(Secret::new(KEY)),
        models: vec!["claude".into()],
        share: Share::Clients,
        refresh: Duration::from_secs(3600),
        timeout: Duration::from_secs(5),
        api,
        quota: Quota::default(),
        price: None,
    }
}

/// A gateway in front of one provider, once it was seen alive.
async fn front(config: ProviderConfig) -> (Gateway, Provider) {
    let backends = Backends::new();
    let provider = Provider::start(config, backends.clone()).unwrap();
    until("the provider answers", || async { backends.get("claude").iter().any(|one| one.is_ready()) }).await;
    let gateway = Gateway::start(self::config(), backends, Arc::new(NoPeers), None).await.unwrap();
    (gateway, provider)
}

/// What a stub answers to a question; lists of models are empty.
fn asked(
    answer: impl Fn(&Seen) -> Act + Send + Sync + 'static,
) -> impl Fn(&Seen) -> Act + Send + Sync + 'static {
    move |seen| if seen.line.starts_with("GET") { json("{\"data\":[]}") } else { answer(seen) }
}

fn event(data: &Value) -> Vec<u8> {
    chunk(format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap()).as_bytes())
}

fn start() -> Value {
    json!({ "type": "message_start", "message": { "id": "msg_1", "type": "message", "role": "assistant", "content": [],
        "model": "claude", "stop_reason": null, "stop_sequence": null, "usage": { "input_tokens": 25, "output_tokens": 1 } } })
}

fn text(text: &str) -> Value {
    json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": text } })
}

fn overloaded() -> Value {
    json!({ "type": "error", "error": { "type": "overloaded_error", "message": "Overloaded" } })
}

fn stream(list: &[Value]) -> Vec<u8> {
    [sse_head(), list.iter().flat_map(event).collect()].concat()
}

async fn chat(gateway: &Gateway, body: &Value) -> Answer {
    let mut caller = Caller::to(gateway.local_addr()).await;
    caller.send(&post("/v1/chat/completions", &body.to_string())).await;
    caller.answer().await
}

fn question() -> Value {
    json!({ "model": "claude", "messages": [{ "role": "user", "content": "hi" }] })
}

#[tokio::test]
async fn a_stream_with_thinking_and_tools_reaches_an_agent_whole() {
    let stub = Stub::start(asked(|_| {
        let list = [
            start(),
            json!({ "type": "ping" }),
            json!({ "type": "content_block_start", "index": 0, "content_block": { "type": "thinking", "thinking": "", "signature": "" } }),
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "thinking_delta", "thinking": "hm" } }),
            json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "signature_delta", "signature": "Eq" } }),
            json!({ "type": "content_block_stop", "index": 0 }),
            json!({ "type": "content_block_start", "index": 1, "content_block": { "type": "text", "text": "" } }),
            json!({ "type": "content_block_delta", "index": 1, "delta": { "type": "text_delta", "text": "I look." } }),
            json!({ "type": "content_block_stop", "index": 1 }),
            json!({ "type": "content_block_start", "index": 2, "content_block": { "type": "tool_use", "id": "toolu_1", "name": "look", "input": {} } }),
            json!({ "type": "content_block_delta", "index": 2, "delta": { "type": "input_json_delta", "partial_json": "{\"path\": \"a" } }),
            json!({ "type": "content_block_delta", "index": 2, "delta": { "type": "input_json_delta", "partial_json": ".rs\"}" } }),
            json!({ "type": "content_block_stop", "index": 2 }),
            json!({ "type": "message_delta", "delta": { "stop_reason": "tool_use" }, "usage": { "output_tokens": 40 } }),
            json!({ "type": "message_stop" }),
        ];
        let pieces = [sse_head()].into_iter().chain(list.iter().map(event)).chain([LAST_CHUNK.to_vec()]);
        Act::Pieces(pieces.collect())
    }))
    .await;
    let price = Price { input: 3.0, output: 15.0, cached: None };
    let (gateway, mut provider) =
        front(ProviderConfig { price: Some(price), ..provider(&stub, Api::Anthropic) }).await;
    let list = stub.last();
    assert_eq!(list.line, "GET /v1/models?limit=1000 HTTP/1.1");
    assert_eq!((list.header("x-api-key"), list.header("authorization")), (Some(KEY), None));
    let pieces = all(Chat::new(&gateway).call(call("claude")).await.unwrap()).await;
    let usage = Usage { input_tokens: 25, output_tokens: 40, cost_micros: Some(675) };
    assert_eq!(
        pieces,
        [
            Ok(Piece::Reasoning("hm".into())),
            Ok(Piece::Text("I look.".into())),
            Ok(Piece::ToolCall(ToolCall {
                id: "toolu_1".into(),
                name: "look".into(),
                arguments: json!({"path": "a.rs"})
            })),
            Ok(Piece::Finished { reason: FinishReason::Done, usage }),
        ]
    );
    let seen = stub.last();
    assert_eq!(seen.line, "POST /v1/messages HTTP/1.1");
    assert_eq!((seen.header("x-api-key"), seen.header("anthropic-version")), (Some(KEY), Some("2023-06-01")));
    assert_eq!(seen.header("authorization"), None);
    provider.shutdown().await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_whole_answer_and_its_errors_have_openais_shape() {
    let stub = Stub::start(asked(|seen| {
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        let error = |kind: &str| {
            json!({ "type": "error", "error": { "type": kind, "message": format!("bad {KEY}") } }).to_string()
        };
        match body["messages"][0]["content"][0]["text"].as_str().unwrap() {
            "400" => Act::Raw(answer(400, "application/json", &error("invalid_request_error"))),
            "401" => Act::Raw(answer(401, "application/json", &error("authentication_error"))),
            "500" => Act::Raw(answer(500, "application/json", &error("api_error"))),
            "529" => Act::Raw(answer(529, "application/json", &error("overloaded_error"))),
            "429" => {
                let error = error("rate_limit_error");
                let head = format!("HTTP/1.1 429 X\r\nretry-after: 7\r\ncontent-length: {}\r\n\r\n{error}", error.len());
                Act::Raw(head.into_bytes())
            }
            "nothing" => Act::RawThenClose(Vec::new()),
            "odd" => json("[1"),
            _ => json(&json!({ "id": "msg_1", "type": "message", "role": "assistant", "stop_reason": "end_turn",
                "content": [{ "type": "text", "text": "hello" }], "usage": { "input_tokens": 3, "output_tokens": 2 } }).to_string()),
        }
    }))
    .await;
    let (gateway, mut provider) = front(provider(&stub, Api::Anthropic)).await;
    let said = chat(&gateway, &question()).await;
    assert_eq!((said.status, said.complete), (200, true));
    let said = said.json();
    assert_eq!(said["choices"][0]["message"], json!({ "role": "assistant", "content": "hello" }));
    assert_eq!((&said["usage"]["total_tokens"], &said["object"]), (&json!(5), &json!("chat.completion")));
    let with = |text: &str| json!({ "model": "claude", "messages": [{ "role": "user", "content": text }] });
    // 401 means this node's key: nobody else has the model, so it is a failure of all.
    for (text, status) in
        [("400", 400), ("500", 500), ("429", 429), ("529", 503), ("401", 503), ("nothing", 503), ("odd", 503)]
    {
        let refused = chat(&gateway, &with(text)).await;
        assert_eq!(refused.status, status, "{text}: {refused:?}");
        assert!(refused.json()["error"]["message"].is_string());
        assert!(!format!("{refused:?}").contains(KEY) && !refused.text().contains(KEY), "{text}");
        assert_eq!(refused.header("retry-after").is_some(), status == 429 || status == 503, "{text}");
    }
    assert_eq!(chat(&gateway, &with("429")).await.header("retry-after"), Some("7"));
    let count = stub.count();
    let mut twice = question();
    twice["n"] = 2.into();
    assert_eq!(chat(&gateway, &twice).await.status, 400);
    assert_eq!(stub.count(), count, "what cannot be translated is not sent");
    provider.shutdown().await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn a_stream_that_fails_ends_in_one_declared_error() {
    let stub = Stub::start(asked(|seen| {
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        match body["messages"][0]["content"][0]["text"].as_str().unwrap() {
            "early" => Act::RawThenClose(
                [stream(&[start(), json!({ "type": "ping" }), overloaded()]), LAST_CHUNK.to_vec()].concat(),
            ),
            "late" => {
                Act::RawThenClose([stream(&[start(), text("a"), overloaded()]), LAST_CHUNK.to_vec()].concat())
            }
            "cut" => {
                Act::RawThenClose([stream(&[start(), text("a")]), b"40\r\nevent: cont".to_vec()].concat())
            }
            "ended" => Act::RawThenClose([stream(&[start(), text("a")]), LAST_CHUNK.to_vec()].concat()),
            "flood" => {
                let flood = chunk(&[b'x'; 64 * 1024]).repeat(40);
                Act::RawThenClose([stream(&[start(), text("a")]), flood].concat())
            }
            _ => Act::RawThenHang(stream(&[start(), text("a")])),
        }
    }))
    .await;
    let (gateway, mut provider) = front(provider(&stub, Api::Anthropic)).await;
    let with = |text: &str| json!({ "model": "claude", "stream": true, "messages": [{ "role": "user", "content": text }] });
    let early = chat(&gateway, &with("early")).await;
    assert_eq!(early.status, 503, "nothing was said yet, so another provider could be asked");
    for way in ["late", "cut", "ended", "flood"] {
        let said = chat(&gateway, &with(way)).await;
        assert!(said.status == 200 && said.complete, "{way}: {said:?}");
        let text = said.text();
        assert!(text.contains("\"content\":\"a\""), "{way}: {text}");
        assert_eq!(text.matches("\"error\"").count(), 1, "{way}: {text}");
        assert!(!text.contains("[DONE]"), "{way}: {text}");
        assert_eq!(text.contains("Overloaded"), way == "late", "{way}: {text}");
    }
    provider.shutdown().await;
    gateway.shutdown().await;
}

#[tokio::test]
async fn an_answer_that_is_dropped_ends_at_the_provider() {
    let mut stub = Stub::start(asked(|_| Act::RawThenHang(stream(&[start(), text("a")])))).await;
    let (gateway, mut provider) = front(provider(&stub, Api::Anthropic)).await;
    let mut answer = Chat::new(&gateway).call(call("claude")).await.unwrap();
    let first = futures_util::StreamExt::next(&mut answer.pieces).await;
    assert_eq!(first, Some(Ok(Piece::Text("a".into()))));
    drop(answer);
    stub.wait_left(1).await;
    provider.shutdown().await;
    gateway.shutdown().await;
}

/// Two nodes; the second shares a provider with the first.
async fn shared(config: ProviderConfig) -> (Mesh, Node, Node, Provider) {
    let mesh = Mesh::memory(2).await;
    let near = Node::start(&mesh[0], mesh.scope(), self::config(), Vec::new()).await;
    let backends = Backends::new();
    let provider = Provider::start(config, backends.clone()).unwrap();
    until("the provider answers", || async { backends.get("claude").iter().any(|one| one.is_ready()) }).await;
    let list = backends.list().iter().map(|one| (**one).clone()).collect();
    let far = Node::start(&mesh[1], mesh.scope(), self::config(), list).await;
    near.hears_of(&mesh, 1, "claude");
    (mesh, near, far, provider)
}

#[tokio::test]
async fn a_peers_request_cannot_choose_where_it_goes_or_see_a_key() {
    for api in [Api::OpenAi, Api::Anthropic] {
        let thief = Stub::start(|_| says("stolen")).await;
        let stub = Stub::start(asked(|_| {
            Act::Raw(answer(400, "application/json", "{\"error\":{\"message\":\"no\"}}"))
        }))
        .await;
        let (mesh, near, far, mut provider) = shared(provider(&stub, api)).await;
        let url = format!("http://{}", thief.addr);
        let mut asked = question();
        for key in ["base_url", "api_base", "url", "endpoint", "provider"] {
            asked[key] = url.as_str().into();
        }
        for key in ["api_key", "api_key_env", "authorization", "x-api-key"] {
            asked[key] = "mine".into();
        }
        let mut caller = Caller::to(near.gateway.local_addr()).await;
        let headers = [
            ("x-api-key", "mine"),
            ("x-mesh-base-url", &*url),
            ("x-base-url", &*url),
            ("authorization", "Bearer mine"),
        ];
        caller.send(&with_headers("POST", "/v1/chat/completions", &headers, &asked.to_string())).await;
        assert_eq!(caller.answer().await.status, 400);
        let seen = stub.last();
        let shown = match api {
            Api::Anthropic => seen.header("x-api-key"),
            _ => seen.header("authorization").and_then(|value| value.strip_prefix("Bearer ")),
        };
        assert_eq!(shown, Some(KEY));
        assert_eq!(thief.count(), 0);
        provider.shutdown().await;
        near.gateway.shutdown().await;
        far.gateway.shutdown().await;
        mesh.shutdown().await;
    }
}

#[tokio::test]
async fn each_node_has_its_quota_of_requests_and_this_one_has_none() {
    let stub = Stub::start(asked(|_| says("hi"))).await;
    let quota = Quota { requests_per_minute: NonZeroU64::new(2), tokens_per_day: None };
    let (mesh, near, far, mut provider) =
        shared(ProviderConfig { quota, ..provider(&stub, Api::OpenAi) }).await;
    for _ in 0..2 {
        assert_eq!(near.chat(&question().to_string()).await.status, 200);
    }
    let refused = near.chat(&question().to_string()).await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "quota_exceeded"));
    assert!(refused.text().contains("quota") && refused.header("retry-after").is_some(), "{refused:?}");
    let agent = Chat::new(&near.gateway).call(call("claude")).await.unwrap_err();
    assert!(matches!(agent, ChatError::Busy { retry_after: Some(_), .. }), "{agent}");
    for _ in 0..4 {
        assert_eq!(far.chat(&question().to_string()).await.status, 200, "the owner");
    }
    // The owner's agent that works for the other node draws on that one's quota.
    let own = Chat::new(&far.gateway);
    let on_behalf_of = |peer: usize| Call { on_behalf_of: Some(mesh[peer].id()), ..call("claude") };
    let for_near = own.call(on_behalf_of(0)).await.unwrap_err();
    assert!(
        matches!(&for_near, ChatError::Busy { why, .. } if why.contains("2 requests a minute")),
        "{for_near}"
    );
    all(own.call(on_behalf_of(1)).await.unwrap()).await;
    provider.shutdown().await;
    near.gateway.shutdown().await;
    far.gateway.shutdown().await;
    mesh.shutdown().await;
}

#[tokio::test]
async fn tokens_are_counted_though_the_caller_asks_for_no_usage() {
    let stub = Stub::start(asked(|_| says("hi"))).await;
    let quota = Quota { requests_per_minute: None, tokens_per_day: NonZeroU64::new(6) };
    let price = Some(Price { input: 1.0, output: 2.0, cached: None });
    let (mesh, near, far, mut provider) =
        shared(ProviderConfig { quota, price, ..provider(&stub, Api::OpenAi) }).await;
    let mut streamed = question();
    streamed["stream"] = true.into();
    let said = near.chat(&streamed.to_string()).await;
    assert_eq!(said.status, 200);
    assert!(!said.text().contains("usage") && said.text().ends_with("data: [DONE]\n\n"), "{said:?}");
    assert!(String::from_utf8(stub.last().body).unwrap().contains("include_usage"));
    // Three tokens were used, as many are left; an agent sees the cost of its three.
    let pieces = all(Chat::new(&near.gateway).call(call("claude")).await.unwrap()).await;
    let usage = Usage { input_tokens: 1, output_tokens: 2, cost_micros: Some(5) };
    assert_eq!(pieces[1], Ok(Piece::Finished { reason: FinishReason::Done, usage }));
    until("the tokens are counted", || async { near.chat(&question().to_string()).await.status == 429 })
        .await;
    assert_eq!(far.chat(&question().to_string()).await.status, 200, "the owner");
    provider.shutdown().await;
    near.gateway.shutdown().await;
    far.gateway.shutdown().await;
    mesh.shutdown().await;
}
