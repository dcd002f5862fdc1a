//! Tools of servers that speak the Model Context Protocol, over standard input and output or over HTTP.
//!
//! A server is of the owner's choice: a program behind a [`Guard`], or an address. It is started when its tools are first asked
//! for and started again, later each time, when it dies. What it sends is bounded and waited for no longer than [`McpLimits`] says; a
//! server that talks nonsense, floods or hangs costs its own tools and nothing else. It is asked for tools only: it cannot
//! prompt a model, read files through the node or ask people for input.

mod driver;
mod transport;
mod web;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use rmcp::RoleClient;
use rmcp::model::{CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ResourceContents};
use rmcp::service::{Peer, ServiceError};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use self::driver::{Command, Driver};
use super::confinement::Confinement;
use super::environment::Environment;
use super::files::cancelled;
use super::guard::Guard;
use super::output::HeadTail;
use super::secrets::Secrets;
use crate::content::ToolOutcome;
use crate::model::{Shown, ToolSpec};
use crate::tool::{Ran, Tool, ToolRun};

/// Commands that wait for the driver; more than a node has turns at a time. Who comes later waits for room.
const COMMANDS: usize = 64;
/// So long a server that did not answer a call may take to show that it lives.
const PING: Duration = Duration::from_secs(5);

/// A server and how it is reached.
#[derive(Debug, Clone)]
pub struct McpServer {
    /// What its tools' names begin with: letters, digits, `_` and `-`, at most 32.
    pub name: String,
    /// Where it is.
    pub at: McpAt,
    /// What is taken out of its results.
    pub secrets: Secrets,
    /// Whether its word that a tool only reads is believed.
    pub trusts_hints: bool,
    /// How long and how much.
    pub limits: McpLimits,
}

/// Where a server is.
#[derive(Debug, Clone)]
pub enum McpAt {
    /// A program here, over its standard input and output.
    Program(McpProgram),
    /// At an address, over HTTP.
    Web(McpWeb),
}

/// A server that is a program.
#[derive(Debug, Clone)]
pub struct McpProgram {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where it starts.
    pub folder: PathBuf,
    /// The variables that it sees, keys that it needs included.
    pub environment: Environment,
    /// What it reaches of the disk; none for all that the node's user does.
    pub confinement: Option<Confinement>,
    /// Between the node and the server.
    pub guard: Guard,
}

/// A server at an address.
#[derive(Clone)]
pub struct McpWeb {
    /// Such as `https://example.org/mcp`.
    pub url: String,
    /// Sent with every request, keys that it needs included.
    pub headers: BTreeMap<String, String>,
}

/// Shows no value of a header: there the keys stand.
impl fmt::Debug for McpWeb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.headers.keys().collect();
        f.debug_struct("McpWeb").field("url", &self.url).field("headers", &names).finish()
    }
}

/// How long servers are waited for and how much they may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct McpLimits {
    /// To start and to list the tools. Default 30 s: some are downloaded at their first start.
    pub start: Duration,
    /// For a call. Default 5 min.
    pub call: Duration,
    /// From SIGTERM to SIGKILL. Default 2 s.
    pub grace: Duration,
    /// The longest message in bytes; longer ones count as not sent. Default 8 MiB: an image has room.
    pub message_bytes: usize,
    /// The longest text of a result in bytes. Default 48 KiB.
    pub result_bytes: usize,
    /// The most tools that are taken from a server. Default 128.
    pub tools: usize,
}

impl Default for McpLimits {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(30),
            call: Duration::from_secs(300),
            grace: Duration::from_secs(2),
            message_bytes: 8 * 1024 * 1024,
            result_bytes: 48 * 1024,
            tools: 128,
        }
    }
}

/// A server's tools cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum McpError {
    /// It could not be started, or did not speak the protocol. It is tried again with the next call.
    #[error("the MCP server {server} did not start: {why}")]
    NotStarted {
        /// Which.
        server: String,
        /// Why, with its last words.
        why: String,
    },
    /// It failed several times and rests.
    #[error("the MCP server {server} failed and is not started again for {seconds} s: {why}")]
    Resting {
        /// Which.
        server: String,
        /// How long still.
        seconds: u64,
        /// Why it failed.
        why: String,
    },
    /// [`Mcp::close`] was called.
    #[error("the MCP server {server} is closed")]
    Closed {
        /// Which.
        server: String,
    },
}

/// A handle of a server. The last one dropped ends the server.
#[derive(Debug, Clone)]
pub struct Mcp(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    server: Arc<McpServer>,
    commands: mpsc::Sender<Command>,
    driver: Mutex<Option<JoinHandle<()>>>,
}

/// A server that runs.
#[derive(Debug, Clone)]
struct Connected {
    peer: Peer<RoleClient>,
    tools: Arc<Vec<Arc<Remote>>>,
    /// Which of its starts this is.
    generation: u64,
}

/// A tool of a server.
#[derive(Debug)]
struct Remote {
    spec: ToolSpec,
    /// As the server calls it.
    name: String,
    only_reads: bool,
}

impl Mcp {
    /// A handle of a server that is not started yet.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(server: McpServer) -> Self {
        let server = Arc::new(server);
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let driver = tokio::spawn(Driver::new(server.clone()).run(inbox));
        Self(Arc::new(Shared { server, commands, driver: Mutex::new(Some(driver)) }))
    }

    /// The tools that the server has now; starts it when it does not run.
    ///
    /// # Errors
    /// [`McpError`]; nothing was changed.
    pub async fn tools(&self) -> Result<Vec<Arc<dyn Tool>>, McpError> {
        let connected = self.connected().await?;
        let tool = |remote: &Arc<Remote>| -> Arc<dyn Tool> {
            Arc::new(McpTool { mcp: self.clone(), remote: remote.clone() })
        };
        Ok(connected.tools.iter().map(tool).collect())
    }

    /// Ends the server and waits until it is gone. Its tools fail from now on.
    pub async fn close(&self) {
        let (done, is_done) = oneshot::channel();
        if self.0.commands.send(Command::Close(done)).await.is_ok() {
            let _ = is_done.await;
        }
        let driver = self.0.driver.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(driver) = driver {
            let _ = driver.await;
        }
    }

    async fn connected(&self) -> Result<Connected, McpError> {
        let closed = || McpError::Closed { server: self.0.server.name.clone() };
        let (reply, answer) = oneshot::channel();
        self.0.commands.send(Command::Connect(reply)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// A call was not answered: a server that does not answer a ping either is started anew.
    async fn suspect(&self, connected: &Connected) {
        if !driver::answers(&connected.peer, PING).await {
            let _ = self.0.commands.send(Command::Restart(connected.generation)).await;
        }
    }
}

/// A tool of a server, to a turn.
struct McpTool {
    mcp: Mcp,
    remote: Arc<Remote>,
}

impl Tool for McpTool {
    fn spec(&self) -> ToolSpec {
        self.remote.spec.clone()
    }

    fn only_reads(&self, _: &Value) -> bool {
        self.remote.only_reads
    }

    fn run(&self, run: ToolRun) -> BoxFuture<'static, Ran> {
        let (mcp, remote) = (self.mcp.clone(), self.remote.clone());
        Box::pin(async move {
            let cancel = run.cancel.clone();
            tokio::select! {
                biased;
                // Dropping the call tells the server that nobody waits for it.
                () = cancel.cancelled() => cancelled(),
                ran = mcp.call(&remote, run.arguments) => ran,
            }
        })
    }
}

impl Mcp {
    async fn call(&self, remote: &Remote, arguments: Value) -> Ran {
        let server = &self.0.server;
        let mut params = CallToolRequestParams::new(remote.name.clone());
        match arguments {
            Value::Object(arguments) => params = params.with_arguments(arguments),
            Value::Null => {}
            _ => return Ran::failed("the arguments are not a JSON object"),
        }
        let connected = match self.connected().await {
            Ok(connected) => connected,
            Err(error) => return Ran::failed(server.secrets.redact(&error.to_string())),
        };
        let called = connected.peer.call_tool_once(params);
        let answer = match tokio::time::timeout(server.limits.call, called).await {
            Ok(answer) => answer,
            Err(_) => {
                self.suspect(&connected).await;
                let seconds = server.limits.call.as_secs();
                return Ran::failed(format!("{} did not answer within {seconds} s", server.name));
            }
        };
        match answer {
            Ok(CallToolResponse::Complete(result)) => shown(server, result),
            Ok(_) => Ran::failed(format!("{} wants more than a call, which is not supported", server.name)),
            Err(ServiceError::TransportClosed) => {
                Ran::failed(format!("{} ended before it answered; it may have done its work", server.name))
            }
            Err(ServiceError::McpError(error)) => failed(server, &error.message),
            Err(error) => failed(server, &error.to_string()),
        }
    }
}

fn failed(server: &McpServer, why: &str) -> Ran {
    let mut kept = HeadTail::new(server.limits.result_bytes);
    kept.push(server.secrets.redact(why).as_bytes());
    Ran::failed(kept.into_text())
}

/// A server's result as a model is shown it.
fn shown(server: &McpServer, result: CallToolResult) -> Ran {
    let mut kept = HeadTail::new(server.limits.result_bytes);
    let mut images = Vec::new();
    let mut is_empty = true;
    let mut say = |text: &str| {
        if !is_empty {
            kept.push(b"\n");
        }
        is_empty = false;
        kept.push(server.secrets.redact(text).as_bytes());
    };
    let has_content = !result.content.is_empty();
    for block in result.content {
        match block {
            ContentBlock::Text(text) => say(&text.text),
            ContentBlock::Image(image) => match STANDARD.decode(&image.data) {
                Ok(bytes) => images.push(Shown::Image { media_type: image.mime_type, bytes: bytes.into() }),
                Err(_) => say("[an image that cannot be read]"),
            },
            ContentBlock::Resource(resource) => match resource.resource {
                ResourceContents::TextResourceContents { text, .. } => say(&text),
                _ => say("[a binary resource]"),
            },
            ContentBlock::ResourceLink(link) => say(&format!("[resource {}]", link.uri)),
            _ => say("[content of another kind]"),
        }
    }
    if let (false, Some(structured)) = (has_content, result.structured_content) {
        say(&structured.to_string());
    }
    let mut parts = Vec::new();
    if !is_empty || images.is_empty() {
        let text = kept.into_text();
        parts.push(Shown::Text(if text.is_empty() { "[no output]".to_owned() } else { text }));
    }
    parts.extend(images);
    let outcome = if result.is_error == Some(true) { ToolOutcome::Failed } else { ToolOutcome::Done };
    Ran { outcome, parts }
}
