//! What stands at both ends of the mesh in these examples: a server that says back what it was asked, and its caller.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use axum::{Json, Router, response::IntoResponse as _, routing::post};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use mesh_inference::backend::{Backend, BackendKind, BackendState, Share};
use serde_json::{Value, json};
use tokio::sync::watch;

/// An OpenAI-compatible server on a free port of this machine, as Ollama or vLLM would be one, and how a gateway is told
/// of it.
pub(crate) async fn serve(model: &str) -> Result<Backend> {
    let answer = |Json(asked): Json<Value>| async move {
        let last = asked["messages"].as_array().and_then(|messages| messages.last());
        let said = last.map(|last| &last["content"]).unwrap_or(&Value::Null);
        let said = said.as_str().or_else(|| said[0]["text"].as_str()).unwrap_or_default();
        let text = json!({"role": "assistant", "content": format!("You said: {said}")});
        if asked["stream"] != true {
            return Json(json!({"choices": [{"index": 0, "message": text}]})).into_response();
        }
        let piece = json!({"choices": [{"index": 0, "delta": text, "finish_reason": "stop"}]});
        ([("content-type", "text/event-stream")], format!("data: {piece}\n\ndata: [DONE]\n\n"))
            .into_response()
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?).parse()?;
    let server = axum::serve(listener, Router::new().route("/v1/chat/completions", post(answer)));
    let (told, state) = watch::channel(BackendState::Ready);
    tokio::spawn(async move {
        let ended = server.await;
        let reason = format!("the server ended: {ended:?}");
        told.send_replace(BackendState::Failed { reason })
    });
    Ok(Backend {
        model: model.to_owned(),
        url,
        upstream_model: None,
        auth: None,
        share: Share::Members,
        state,
        slots: None,
        kind: BackendKind::Provider,
        terms: None,
    })
}

/// One question to a gateway, as any client of OpenAI's API would put it.
pub(crate) async fn ask(gateway: SocketAddr, model: &str, text: &str) -> Result<String> {
    let body = json!({"model": model, "messages": [{"role": "user", "content": text}]});
    let request = http::Request::post(format!("http://{gateway}/v1/chat/completions"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let answer = Client::builder(TokioExecutor::new()).build_http().request(request).await?;
    let answer: Value = serde_json::from_slice(&answer.into_body().collect().await?.to_bytes())?;
    let text = answer["choices"][0]["message"]["content"].as_str();
    Ok(text.with_context(|| format!("no answer: {answer}"))?.to_owned())
}
