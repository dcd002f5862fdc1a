//! Questions to the node's OpenAI-compatible gateway, answered as a stream.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_control::sse::Parser;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::answer::{Answer, Declared, Piece};
use crate::failure::Failure;

/// The gateway is local.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// For the first and for each further piece of an answer; the node's own limit for a whole request is the same 300 s.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// Longest event and longest error that are read, bytes; events hold a few tokens each.
const EVENT_BYTES_MAX: usize = 1024 * 1024;

/// One message of a conversation.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Turn {
    role: &'static str,
    content: String,
}

impl Turn {
    pub(super) fn system(content: String) -> Self {
        Self { role: "system", content }
    }

    pub(super) fn user(content: String) -> Self {
        Self { role: "user", content }
    }

    pub(super) fn assistant(content: String) -> Self {
        Self { role: "assistant", content }
    }
}

/// A conversation that waits for its next answer.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) model: String,
    pub(super) turns: Vec<Turn>,
    /// Continue the text of the conversation, without a chat template.
    pub(super) complete: bool,
    pub(super) max_tokens: Option<u32>,
    pub(super) temperature: Option<f64>,
}

/// The node's gateway. Each question has a connection of its own, which closes, and frees the model's slot, when the answer is
/// dropped.
#[derive(Debug)]
pub(super) struct Gateway {
    /// Host and port.
    authority: String,
    api_key: Option<String>,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    #[serde(flatten)]
    input: Input<'a>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Input<'a> {
    Messages(&'a [Turn]),
    Prompt(String),
}

impl Input<'_> {
    fn path(&self) -> &'static str {
        match self {
            Self::Messages(_) => "/v1/chat/completions",
            Self::Prompt(_) => "/v1/completions",
        }
    }
}

impl Gateway {
    /// The gateway at the URL that the node's status names.
    pub(super) fn new(url: Option<&str>, api_key: Option<String>) -> Result<Self, Failure> {
        let url = url.ok_or_else(|| Failure::new("no_gateway", "the node runs no gateway"))?;
        let authority = url.strip_prefix("http://").map(|rest| rest.split('/').next().unwrap_or(rest));
        match authority {
            Some(authority) => Ok(Self { authority: authority.to_owned(), api_key }),
            None => Err(Failure::new("no_gateway", format!("the node's gateway at {url} is not understood"))),
        }
    }

    /// Asks, and gathers the answer while `write` gets its pieces. A model whose server refuses to chat for want of a template
    /// is asked to continue the text of the conversation.
    ///
    /// Cancel safe: when the future is dropped, `answer` holds what came, and the model stops.
    pub(super) async fn ask(
        &self,
        question: &Question,
        answer: &mut Answer,
        write: &mut impl FnMut(Piece<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if !question.complete {
            match self.stream(question, Input::Messages(&question.turns), answer, write).await {
                Err(failure) if lacks_template(&failure) && answer.text.is_empty() => {}
                result => return result,
            }
        }
        let texts: Vec<&str> = question.turns.iter().map(|turn| turn.content.as_str()).collect();
        self.stream(question, Input::Prompt(texts.join("\n")), answer, write).await
    }

    async fn stream(
        &self,
        question: &Question,
        input: Input<'_>,
        answer: &mut Answer,
        write: &mut impl FnMut(Piece<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let path = input.path();
        let body = Body {
            model: &question.model,
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            max_tokens: question.max_tokens,
            temperature: question.temperature,
            input,
        };
        let body = serde_json::to_vec(&body)
            .map_err(|error| Failure::usage(format!("the question cannot be sent: {error}")))?;
        let mut connection = JoinSet::new(); // dropped, and with it the connection, when the answer is
        let mut body = self.post(path, body, &mut connection).await?.into_body();
        let mut parser = Parser::new(EVENT_BYTES_MAX);
        while let Some(frame) = within(SILENCE_MAX, async { Ok(body.frame().await) }).await? {
            let frame = frame.map_err(|error| broken(&error))?;
            let Ok(bytes) = frame.into_data() else { continue };
            let mut events: Vec<Vec<u8>> = Vec::new();
            parser
                .push(&bytes, &mut events)
                .map_err(|error| Failure::new("too_long", format!("the gateway's answer: {error}")))?;
            for event in events {
                answer.take(&event, write)?;
            }
        }
        answer.finish()
    }

    async fn post(
        &self,
        path: &str,
        body: Vec<u8>,
        connection: &mut JoinSet<()>,
    ) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::post(path)
            .header(header::HOST, &self.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "text/event-stream");
        if let Some(key) = &self.api_key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|_| Failure::usage("the key of the gateway holds characters that no header takes"))?;
        let stream = within(CONNECT_DEADLINE, async {
            TcpStream::connect(&self.authority).await.map_err(|error| {
                Failure::new(
                    "connect",
                    format!("the gateway at {} cannot be reached: {error}", self.authority),
                )
            })
        })
        .await?;
        let (mut sender, driver) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
        connection.spawn(async move {
            let _ = driver.await; // the sender and the body report the same failure
        });
        let send = async { sender.send_request(request).await.map_err(|error| broken(&error)) };
        let response = within(SILENCE_MAX, send).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = Limited::new(response.into_body(), EVENT_BYTES_MAX).collect();
        let body = within(SILENCE_MAX, async { Ok(body.await) }).await?;
        Err(refusal(status.as_u16(), &body.map(|body| body.to_bytes()).unwrap_or_default()))
    }
}

#[derive(Deserialize)]
struct Refusal {
    error: Declared,
}

/// A failure out of an answer with an error status; what is no OpenAI error is quoted.
fn refusal(status: u16, body: &[u8]) -> Failure {
    let failure = match serde_json::from_slice::<Refusal>(body) {
        Ok(Refusal { error }) => Failure::new(error.word(), error.message.as_str()),
        Err(_) => {
            let text: String = String::from_utf8_lossy(body).chars().take(200).collect();
            Failure::new("gateway", format!("the gateway answered {status}: {}", text.trim()))
        }
    };
    match status {
        401 => failure.with_mend("set QMT_API_KEY to api_key in [api] of the node's configuration"),
        404 => failure.with_mend("`qmt-cli models` lists what there is"),
        429 => failure.with_mend("try again when others are done"),
        503 => failure.with_mend("see `qmt-cli models`, and `qmt-cli doctor`"),
        _ => failure,
    }
}

/// Servers that insist on a chat template say so in the message alone, each in its own words.
fn lacks_template(failure: &Failure) -> bool {
    let message = failure.message().to_lowercase();
    message.contains("chat template") || message.contains("chat_template")
}

fn broken(error: &hyper::Error) -> Failure {
    Failure::new("broken", format!("the connection to the gateway broke: {error}"))
}

async fn within<T>(after: Duration, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    timeout(after, work).await.unwrap_or_else(|_| {
        Err(Failure::new("timeout", format!("the gateway was silent for {} s", after.as_secs())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_the_servers_words() {
        let body = br#"{"error":{"message":"no model \"x\"","type":"t","code":"model_not_found"}}"#;
        let failure = refusal(404, body);
        assert_eq!((failure.code(), failure.message()), ("model_not_found", "no model \"x\""));
        assert!(failure.mend().is_some_and(|mend| mend.contains("qmt-cli models")));
        assert_eq!(refusal(400, br#"{"error":{"message":"m","code":400}}"#).code(), "gateway");
        assert_eq!(refusal(502, b"<html>").message(), "the gateway answered 502: <html>");
    }

    #[test]
    fn the_url_may_end_in_any_path() {
        for url in ["http://127.0.0.1:9337", "http://127.0.0.1:9337/", "http://127.0.0.1:9337/v1"] {
            assert_eq!(Gateway::new(Some(url), None).expect("a gateway").authority, "127.0.0.1:9337");
        }
        assert!(Gateway::new(None, None).is_err() && Gateway::new(Some("unix:/x"), None).is_err());
    }
}
