//! A model whose answers are known beforehand: `say NAME TOKENS GAP` has it say `NAME.0 NAME.1 …`, GAP milliseconds apart; with
//! `do` it asks for a shell before, which writes a line NAME.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use crate::stand_in;

/// The one model that it has.
const MODEL: &str = "scripted";
/// Where the shell writes, in the agent's workspace.
pub(super) const EFFECTS: &str = "effects";

/// An OpenAI-compatible server; ends when dropped.
#[derive(Debug)]
pub struct Provider {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Provider {
    /// Serves on a socket, which may be one of another network than this process's. Within a runtime.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn start(listener: std::net::TcpListener) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let task = tokio::spawn(accept(TcpListener::from_std(listener)?));
        Ok(Self { addr, task })
    }

    /// The configuration of an agent that thinks with it and has a shell.
    pub fn agent(&self, id: &str, workspace: &Path) -> String {
        let addr = self.addr;
        format!(
            "[[providers]]\nname = \"script\"\nbase_url = \"http://{addr}/v1\"\nmodels = [\"{MODEL}\"]\n\
             [[agents]]\nid = \"{id}\"\nmodel = \"{MODEL}\"\nworkspace = {workspace:?}\ntools = [\"shell\"]\n\
             [[agents.policy]]\ntools = [\"*\"]\nthen = \"allow\"\n"
        )
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        connections.spawn(async move {
            // A caller that was killed is no event here.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(tcp), service_fn(answer)).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>) -> Result<Response<Body>> {
    if request.uri().path() == "/v1/models" {
        let list = json!({ "object": "list", "data": [{ "id": MODEL, "object": "model" }] }).to_string();
        return Ok(Response::new(Full::new(Bytes::from(list)).boxed_unsync()));
    }
    let body = request.into_body().collect().await?.to_bytes();
    let (choices, gap) = choices(&serde_json::from_slice(&body)?)?;
    let pieces = choices.into_iter().map(|choice| format!("data: {choice}\n\n"));
    let pieces = pieces.chain(std::iter::once("data: [DONE]\n\n".to_owned()));
    let pieces = stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(gap).await;
        Ok(Frame::data(Bytes::from(piece)))
    });
    let body = StreamBody::new(pieces).boxed_unsync();
    Ok(Response::builder().header("content-type", "text/event-stream").body(body)?)
}

/// What is said, piece by piece, and the time between two.
fn choices(asked: &Value) -> Result<(Vec<Value>, Duration)> {
    let messages = asked["messages"].as_array().context("no messages")?;
    let last = messages.last().context("no message")?;
    let spoken = messages.iter().rev().find(|message| message["role"] == "user").context("nobody spoke")?;
    let said = match &spoken["content"] {
        Value::String(text) => text.clone(),
        parts => parts.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str()).collect(),
    };
    let words: Vec<&str> = said.split(' ').collect();
    let [verb, name, tokens, gap] = words[..] else { anyhow::bail!("what is {said:?}?") };
    let gap = Duration::from_millis(gap.parse()?);
    let (deltas, reason) = if verb == "do" && last["role"] == "user" {
        let arguments = json!({ "command": format!("echo {name} >> {EFFECTS}") }).to_string();
        let function = json!({ "name": "shell", "arguments": arguments });
        let call =
            json!({ "index": 0, "id": format!("call-{name}"), "type": "function", "function": function });
        (vec![json!({ "tool_calls": [call] })], "tool_calls")
    } else {
        let token = |number| json!({ "content": stand_in::token(name, number) });
        ((0..tokens.parse()?).map(token).collect(), "stop")
    };
    let usage = json!({ "prompt_tokens": 2, "completion_tokens": deltas.len() });
    let mut choices: Vec<Value> =
        deltas.into_iter().map(|delta| json!({ "choices": [{ "index": 0, "delta": delta }] })).collect();
    let end = json!({ "index": 0, "delta": {}, "finish_reason": reason });
    choices.push(json!({ "choices": [end], "usage": usage }));
    Ok((choices, gap))
}
