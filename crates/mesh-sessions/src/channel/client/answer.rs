//! What comes back of a delegation, whole or in pieces.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use hyper::body::Incoming;
use serde::Deserialize;

use super::super::fault::{Code, Fault, FaultBody};
use super::super::message::{MessageResponse, Status};
use super::pool::Key;
use super::wire::Wire;
use super::{ANSWER_BYTES_MAX, AskError, Client, read, refusal};

/// The longest event of a stream in bytes: the last one repeats the whole answer.
const EVENT_BYTES_MAX: usize = ANSWER_BYTES_MAX;
/// What follows the last event says nothing, and is there already.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// A delegation under way at another node. Dropped, it is cancelled there.
pub struct Answering {
    client: Client,
    key: Key,
    /// None once the answer is over.
    wire: Option<Wire>,
    body: Incoming,
    is_stream: bool,
    silence: Duration,
    /// Bytes of events that have not ended, and up to where no end was found.
    pending: Vec<u8>,
    searched: usize,
    /// How it ended, once that is known.
    end: Option<Result<Heard, AskError>>,
}

/// What is heard of a delegation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The agent is at work.
    Begun {
        /// Which.
        agent: String,
        /// Its session there.
        session: Option<String>,
    },
    /// More of its answer.
    Text(String),
    /// It is done; nothing comes after this.
    Done(MessageResponse),
}

impl Answering {
    pub(super) fn new(
        client: Client,
        key: Key,
        wire: Wire,
        body: Incoming,
        headers: HeaderMap,
        silence: Duration,
    ) -> Self {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let is_stream = kind.trim_start().starts_with("text/event-stream");
        Self {
            client,
            key,
            wire: Some(wire),
            body,
            is_stream,
            silence,
            pending: Vec::new(),
            searched: 0,
            end: None,
        }
    }

    /// What is new, once there is something. A node that does not stream answers with [`Heard::Done`] alone. Cancel safe.
    ///
    /// # Errors
    /// [`AskError`]: the delegation has failed, and nothing comes after it.
    pub async fn next(&mut self) -> Result<Heard, AskError> {
        loop {
            if self.end.is_some() {
                self.finish().await;
                return self.end.take().unwrap_or_else(|| Err(over()));
            }
            if !self.is_stream {
                self.whole().await?;
                continue;
            }
            if let Some(event) = self.event() {
                if let Some(heard) = self.understood(&event)? {
                    return Ok(heard);
                }
            } else if !self.add().await? {
                return Err(AskError::BrokenOff("it ended without its end".to_owned()));
            }
        }
    }

    /// What comes of it, whatever comes before.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn outcome(mut self) -> Result<MessageResponse, AskError> {
        loop {
            if let Heard::Done(response) = self.next().await? {
                return Ok(response);
            }
        }
    }

    pub(super) async fn refusal(mut self, status: StatusCode) -> AskError {
        let Some(mut wire) = self.wire.take() else { return over() };
        match tokio::time::timeout(self.silence, read(&mut wire, &mut self.body)).await {
            Ok(Ok(body)) => {
                self.client.shared.pool.keep(self.key.clone(), wire);
                refusal(status, &body)
            }
            Ok(Err(error)) => error,
            Err(_) => AskError::TimedOut(self.silence),
        }
    }

    /// An answer without news until its end. What has been read is kept, so that it is cancel safe.
    async fn whole(&mut self) -> Result<(), AskError> {
        while self.add().await? {}
        let body = std::mem::take(&mut self.pending);
        let response =
            serde_json::from_slice(&body).map_err(|error| AskError::Malformed(error.to_string()))?;
        self.end = Some(done(response));
        Ok(())
    }

    /// Gives the connection back, once it has said all that it has to.
    async fn finish(&mut self) {
        let Some(wire) = &mut self.wire else { return };
        let rest = async { while let Some(Ok(_)) = wire.frame(&mut self.body).await {} };
        let has_ended = tokio::time::timeout(LAST_BYTES, rest).await.is_ok();
        if let Some(wire) = self.wire.take().filter(|_| has_ended) {
            self.client.shared.pool.keep(self.key.clone(), wire);
        }
    }

    /// Reads on; false at the end.
    async fn add(&mut self) -> Result<bool, AskError> {
        let Some(wire) = &mut self.wire else { return Err(over()) };
        let frame = tokio::time::timeout(self.silence, wire.frame(&mut self.body)).await;
        let data = match frame.map_err(|_| AskError::TimedOut(self.silence))? {
            None => return Ok(false),
            Some(Err(error)) => return Err(AskError::BrokenOff(error.to_string())),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        };
        if self.pending.len() + data.len() > EVENT_BYTES_MAX {
            return Err(AskError::Malformed(format!("it is longer than {EVENT_BYTES_MAX} bytes")));
        }
        self.pending.extend_from_slice(&data);
        Ok(true)
    }

    /// The next whole event.
    fn event(&mut self) -> Option<String> {
        let from = self.searched.saturating_sub(1);
        let end = self.pending[from..].windows(2).position(|two| two == b"\n\n");
        match end {
            None => {
                self.searched = self.pending.len();
                None
            }
            Some(end) => {
                let event: Vec<u8> = self.pending.drain(..from + end + 2).collect();
                self.searched = 0;
                Some(String::from_utf8_lossy(&event).into_owned())
            }
        }
    }

    /// None for what means nothing, heartbeats among it.
    fn understood(&mut self, event: &str) -> Result<Option<Heard>, AskError> {
        let mut kind = "";
        let mut data = String::new();
        for line in event.lines() {
            if let Some(value) = line.strip_prefix("event:") {
                kind = value.trim();
            } else if let Some(value) = line.strip_prefix("data:") {
                data.push_str(value.strip_prefix(' ').unwrap_or(value));
            }
        }
        match kind {
            "started" => {
                let Begun { agent, session } = parsed(&data)?;
                Ok(Some(Heard::Begun { agent, session }))
            }
            "text" => Ok(Some(Heard::Text(parsed::<Text>(&data)?.text))),
            "done" => {
                self.end = Some(done(parsed(&data)?));
                Ok(None)
            }
            "error" => {
                let fault = parsed::<FaultBody>(&data)?.error;
                self.end = Some(Err(AskError::Refused { status: fault.code.status().as_u16(), fault }));
                Ok(None)
            }
            _ => Ok(None),
        }
    }
}

impl std::fmt::Debug for Answering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answering").field("to", &self.key).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Begun {
    #[serde(default)]
    agent: String,
    #[serde(default)]
    session: Option<String>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
}

fn parsed<T: for<'a> Deserialize<'a>>(data: &str) -> Result<T, AskError> {
    serde_json::from_str(data).map_err(|error| AskError::Malformed(error.to_string()))
}

/// One that says that it failed, with whatever status, has failed.
fn done(response: MessageResponse) -> Result<Heard, AskError> {
    match response.status {
        Status::Completed | Status::Accepted => Ok(Heard::Done(response)),
        Status::Other => {
            let fault = Fault::new(Code::AgentFailed, response.response);
            Err(AskError::Refused { status: StatusCode::OK.as_u16(), fault })
        }
    }
}

fn over() -> AskError {
    AskError::BrokenOff("it is over".to_owned())
}
