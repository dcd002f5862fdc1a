//! `acp`: an agent of the mesh as an agent of the Agent Client Protocol (version 1) over standard input and output, so that an
//! editor uses one of another node as a local one.
//!
//! The editor's sessions are sessions of the agent's node: turns go on when the editor is closed, and it can load them again.

mod conversation;
mod prompt;
mod rpc;
mod update;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use mesh_control::{Address, Client, CreateSession, SessionQuery, SessionState};
use mesh_identity::UnixTime;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use self::conversation::Conversation;
use self::rpc::{Fault, INVALID_PARAMS, INVALID_REQUEST, LINE_BYTES_MAX, Line, Lines, Message, NO_METHOD};
use crate::failure::Failure;
use crate::session::turn::{address, at_first, new_id};

/// The version of the protocol that is spoken.
const VERSION: u16 = 1;
/// Lines that wait to be written; who has more to say waits for the editor to read.
const OUT_MAX: usize = 256;
/// Sessions of one page.
const LISTED_MAX: u32 = 100;
/// Sessions that are open and requests that are under way, at most: an editor has a few.
const OPEN_MAX: usize = 64;

/// Where lines go.
#[derive(Clone)]
struct Out(mpsc::Sender<Value>);

impl Out {
    async fn send(&self, line: Value) {
        let _ = self.0.send(line).await; // an editor that reads no more ends the loop by itself
    }
}

/// A question to the editor, and where its answer goes: none when it is an error.
struct Asking {
    params: Value,
    answer: oneshot::Sender<Option<Value>>,
}

/// Serves until standard input ends.
pub(crate) async fn serve(client: &Client, agent: String) -> Result<(), Failure> {
    let fault =
        |error: io::Error| Failure::new("input", format!("standard input or output is not usable: {error}"));
    let input = io::stdin().as_fd().try_clone_to_owned().map_err(fault)?;
    let output = io::stdout().as_fd().try_clone_to_owned().map_err(fault)?;
    let lines = Lines::new(BufReader::new(tokio::fs::File::from_std(File::from(input))), LINE_BYTES_MAX);
    let (out, written) = mpsc::channel(OUT_MAX);
    let mut writer = tokio::spawn(write(tokio::fs::File::from_std(File::from(output)), written));
    let server = Server::new(client.clone(), agent, Out(out));
    let served = tokio::select! {
        served = server.run(lines) => served.map_err(fault),
        _ = &mut writer => return Ok(()), // nobody reads any more
    };
    // What was answered is written before the program ends.
    let _ = writer.await;
    served
}

async fn write(mut output: tokio::fs::File, mut lines: mpsc::Receiver<Value>) {
    while let Some(line) = lines.recv().await {
        let text = format!("{line}\n");
        let written = async {
            output.write_all(text.as_bytes()).await?;
            output.flush().await
        };
        if written.await.is_err() {
            return;
        }
    }
}

struct Server {
    client: Client,
    agent: String,
    out: Out,
    open: HashMap<String, Conversation>,
    asking: mpsc::Sender<Asking>,
    asked: mpsc::Receiver<Asking>,
    /// The questions to the editor that it has not answered, by their ids.
    unanswered: HashMap<u64, oneshot::Sender<Option<Value>>>,
    last_id: u64,
    requests: JoinSet<Option<Opened>>,
    readers: JoinSet<()>,
}

/// A session that a request opened, and the answer to the request: whoever gets it may use the session at once.
struct Opened {
    answer: Value,
    request: Value,
    id: String,
    conversation: Conversation,
    live: conversation::Live,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfSession {
    session_id: String,
}

#[derive(Deserialize)]
struct ListParams {
    #[serde(default)]
    cwd: Option<String>,
    #[serde(default)]
    cursor: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PromptParams {
    session_id: String,
    prompt: Vec<Value>,
}

impl Server {
    fn new(client: Client, agent: String, out: Out) -> Self {
        let (asking, asked) = mpsc::channel(OPEN_MAX);
        Self {
            client,
            agent,
            out,
            open: HashMap::new(),
            asking,
            asked,
            unanswered: HashMap::new(),
            last_id: 0,
            requests: JoinSet::new(),
            readers: JoinSet::new(),
        }
    }

    async fn run(mut self, mut lines: Lines<BufReader<tokio::fs::File>>) -> io::Result<()> {
        loop {
            tokio::select! {
                line = lines.next() => match line? {
                    Line::End => return Ok(()),
                    Line::TooLong => {
                        let message = format!("a line is longer than {LINE_BYTES_MAX} bytes");
                        self.answer(Value::Null, Err(Fault::new(INVALID_REQUEST, message))).await;
                    }
                    Line::Whole(line) => match rpc::parse(&line) {
                        Ok(message) => self.take(message).await,
                        Err(fault) => self.answer(Value::Null, Err(fault)).await,
                    },
                },
                Some(ended) = self.requests.join_next() => {
                    if let Ok(Some(opened)) = ended {
                        self.opened(opened).await;
                    }
                }
                Some(asking) = self.asked.recv() => {
                    self.last_id += 1;
                    self.unanswered.retain(|_, answer| !answer.is_closed());
                    self.unanswered.insert(self.last_id, asking.answer);
                    let request = rpc::request(self.last_id, "session/request_permission", asking.params);
                    self.out.send(request).await;
                }
                Some(_) = self.readers.join_next() => {}
            }
        }
    }

    async fn answer(&self, id: Value, result: Result<Value, Fault>) {
        self.out.send(rpc::answer(id, result)).await;
    }

    async fn opened(&mut self, opened: Opened) {
        let Opened { answer, request, id, conversation, live } = opened;
        if self.open.contains_key(&id) {
            return self.answer(request, Err(is_open())).await;
        }
        self.open.insert(id, conversation.clone());
        self.answer(request, Ok(answer)).await;
        self.readers.spawn(conversation.run(live, self.out.clone(), self.asking.clone()));
    }

    async fn take(&mut self, message: Message) {
        match message {
            Message::Answer { id, result } => {
                if let Some(answer) = id.as_u64().and_then(|id| self.unanswered.remove(&id)) {
                    let _ = answer.send(result); // the turn that asked may have ended meanwhile
                }
            }
            Message::Notice { method, params } => {
                if method == "session/cancel"
                    && let Ok(OfSession { session_id }) = understood(params)
                    && let Some(conversation) = self.open.get(&session_id).cloned()
                    && self.requests.len() < OPEN_MAX
                {
                    self.requests.spawn(async move {
                        conversation.cancel().await;
                        None
                    });
                }
            }
            Message::Request { id, method, params } => match self.begin(&id, &method, params) {
                Ok(Some(result)) => self.answer(id, Ok(result)).await,
                Ok(None) => {} // its task answers
                Err(fault) => self.answer(id, Err(fault)).await,
            },
        }
    }

    /// Does what is quick at once, and begins the rest.
    fn begin(&mut self, id: &Value, method: &str, params: Value) -> Result<Option<Value>, Fault> {
        match method {
            "initialize" => return Ok(Some(initialized())),
            "authenticate" => return Ok(Some(json!({}))),
            "session/new" | "session/load" | "session/prompt" | "session/list"
                if self.requests.len() >= OPEN_MAX =>
            {
                return Err(Fault::new(
                    INVALID_REQUEST,
                    format!("{OPEN_MAX} requests are under way already"),
                ));
            }
            "session/new" | "session/load" if self.open.len() >= OPEN_MAX => {
                return Err(Fault::new(INVALID_REQUEST, format!("{OPEN_MAX} sessions are open already")));
            }
            _ => {}
        }
        let (client, out, id) = (self.client.clone(), self.out.clone(), id.clone());
        match method {
            "session/new" => {
                let agent = self.agent.clone();
                self.requests
                    .spawn(async move { opening(id, &out, begin_session(client, agent).await).await });
            }
            "session/load" => {
                let OfSession { session_id } = understood(params)?;
                if self.open.contains_key(&session_id) {
                    return Err(is_open());
                }
                let agent = self.agent.clone();
                self.requests.spawn(async move {
                    let loaded = load_session(client, agent, session_id, &out).await;
                    opening(id, &out, loaded).await
                });
            }
            "session/list" => {
                let params: ListParams = understood(params)?;
                let agent = self.agent.clone();
                self.requests.spawn(async move {
                    out.send(rpc::answer(id, list_sessions(client, agent, params).await)).await;
                    None
                });
            }
            "session/prompt" => {
                let PromptParams { session_id, prompt } = understood(params)?;
                let unknown = || Fault::new(INVALID_PARAMS, format!("no session {session_id} is open"));
                let conversation = self.open.get(&session_id).cloned().ok_or_else(unknown)?;
                let parts = prompt::parts(&prompt)?;
                self.requests.spawn(async move {
                    out.send(rpc::answer(id, conversation.prompt(parts).await)).await;
                    None
                });
            }
            _ => return Err(Fault::new(NO_METHOD, format!("there is no method {method:?}"))),
        }
        Ok(None)
    }
}

/// Answers a request whose session could not be opened; one that could is handed on.
async fn opening(request: Value, out: &Out, opened: Result<Opened, Fault>) -> Option<Opened> {
    match opened {
        Ok(opened) => Some(Opened { request, ..opened }),
        Err(fault) => {
            out.send(rpc::answer(request, Err(fault))).await;
            None
        }
    }
}

fn is_open() -> Fault {
    Fault::new(INVALID_PARAMS, "the session is open already")
}

fn initialized() -> Value {
    json!({
        "protocolVersion": VERSION,
        "agentCapabilities": {
            "loadSession": true,
            "sessionCapabilities": {"list": {}},
            "promptCapabilities": {"image": true, "audio": false, "embeddedContext": true},
        },
        "agentInfo": {"name": "qmt-cli", "title": "QMT mesh", "version": env!("CARGO_PKG_VERSION")},
        "authMethods": [],
    })
}

async fn begin_session(client: Client, agent: String) -> Result<Opened, Fault> {
    let new = CreateSession { id: new_id(), agent, labels: BTreeMap::new(), ..CreateSession::default() };
    let view = at_first(|_| (), || client.create_session(&new)).await?;
    let id = address(&view.id, &view.node);
    let conversation = Conversation::new(client, &id);
    let live = conversation.live(view.last);
    Ok(Opened { answer: json!({"sessionId": id}), request: Value::Null, id, conversation, live })
}

/// The sessions with the agent, the newest first. They belong to no folder of the editor's machine, and are said to be of the one
/// that it asks about.
async fn list_sessions(client: Client, agent: String, params: ListParams) -> Result<Value, Fault> {
    let Address { what, node } = Address::of(&agent);
    let query = SessionQuery {
        agent: Some(what.to_owned()),
        node: node.map(str::to_owned),
        before: params.cursor,
        limit: Some(LISTED_MAX),
        ..SessionQuery::default()
    };
    let page = at_first(|_| (), || client.sessions(&query)).await?;
    let cwd = params.cwd.unwrap_or_else(|| "/".to_owned());
    let listed = page.sessions.iter().filter(|view| view.state != SessionState::Archived).map(|view| {
        json!({
            "sessionId": address(&view.id, &view.node), "cwd": cwd, "title": view.name,
            "updatedAt": UnixTime(view.updated_ms / 1000).to_string(), "_meta": {"state": view.state},
        })
    });
    let mut answer = json!({"sessions": listed.collect::<Vec<_>>()});
    // Full pages alone have a next one.
    if page.sessions.len() >= LISTED_MAX as usize
        && let Some(next) = page.next
    {
        answer["nextCursor"] = json!(next);
    }
    Ok(answer)
}

async fn load_session(client: Client, agent: String, id: String, out: &Out) -> Result<Opened, Fault> {
    let view = at_first(|_| (), || client.session(&id)).await?;
    if view.agent != Address::of(&agent).what {
        let message = format!("the session is one with {}, not with {agent}", view.agent);
        return Err(Fault::new(INVALID_PARAMS, message));
    }
    // The editor goes on calling it what it called it.
    let conversation = Conversation::new(client, &id);
    let live = conversation.replay(out, view.last).await?;
    Ok(Opened { answer: json!({}), request: Value::Null, id, conversation, live })
}

fn understood<T: DeserializeOwned>(params: Value) -> Result<T, Fault> {
    serde_json::from_value(params).map_err(|error| Fault::new(INVALID_PARAMS, error.to_string()))
}
