//! The task that owns a server's process: starts it, starts it again, ends it.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use rmcp::model::{
    ClientCapabilities, ClientConfig, ClientRequest, Implementation, PaginatedRequestParams, PingRequest,
};
use rmcp::service::{NotificationContext, Peer, RunningService, ServiceExt};
use rmcp::transport::async_rw::AsyncRwTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::transport::{StreamableHttpClientTransport, Transport};
use rmcp::{ClientHandler, RoleClient};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::guard::Guarded;
use super::super::output::HeadTail;
use super::transport::Narrow;
use super::web::Web;
use super::{Connected, McpAt, McpError, McpProgram, McpServer, Remote};
use crate::model::ToolSpec;

/// The first wait before a server that failed is started again; it doubles with each failure.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A caller waits as long for a server that rests; for longer it is told.
const RETRY_WAITED: Duration = Duration::from_secs(3);
/// A server that ran so long has not failed at its start.
const SETTLED: Duration = Duration::from_secs(60);
/// So much of what a server says on its standard error is kept, for when it fails, in bytes.
const LAST_WORDS: usize = 2048;
/// What the guard needs beyond the server's own grace.
const GUARD_MARGIN: Duration = Duration::from_secs(8);
/// Models take names up to 64 characters.
const NAME_MAX: usize = 64;
/// The longest description and schema of a tool in bytes: models are told them with every call.
const DESCRIPTION_MAX: usize = 4 * 1024;
const SCHEMA_MAX: usize = 32 * 1024;
/// The most pages of a list of tools that are asked for.
const PAGES_MAX: usize = 64;

#[derive(Debug)]
pub(super) enum Command {
    Connect(oneshot::Sender<Result<Connected, McpError>>),
    /// This start of the server does not answer.
    Restart(u64),
    Close(oneshot::Sender<()>),
}

pub(super) struct Driver {
    server: Arc<McpServer>,
    running: Option<Running>,
    generation: u64,
    failures: u32,
    retry_at: Option<Instant>,
    why: String,
}

/// A server's process and the connection to it.
struct Running {
    service: RunningService<RoleClient, Client>,
    /// None for one at an address.
    process: Option<Process>,
    tools: Arc<Vec<Arc<Remote>>>,
    has_changed: Arc<AtomicBool>,
    since: Instant,
}

struct Process {
    guard: Child,
    words: JoinHandle<()>,
    last_words: Arc<Mutex<HeadTail>>,
}

/// What the client is to the server.
#[derive(Debug, Clone)]
struct Client {
    has_changed: Arc<AtomicBool>,
}

impl ClientHandler for Client {
    fn get_info(&self) -> ClientConfig {
        let implementation = Implementation::new("qmt-mesh", env!("CARGO_PKG_VERSION"));
        ClientConfig::new(ClientCapabilities::default(), implementation)
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.has_changed.store(true, Ordering::Relaxed);
    }
}

impl Driver {
    pub(super) fn new(server: Arc<McpServer>) -> Self {
        Self { server, running: None, generation: 0, failures: 0, retry_at: None, why: String::new() }
    }

    /// Serves commands until it is closed or the last handle is dropped.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            match command {
                Command::Connect(reply) => {
                    let connected = self.connect().await;
                    let _ = reply.send(connected);
                }
                Command::Restart(generation) if generation == self.generation => {
                    self.fail("it did not answer".to_owned()).await;
                }
                Command::Restart(_) => {}
                Command::Close(done) => {
                    self.end().await;
                    let _ = done.send(());
                    return;
                }
            }
        }
        self.end().await;
    }

    async fn connect(&mut self) -> Result<Connected, McpError> {
        if self.running.as_ref().is_some_and(|running| running.service.is_transport_closed()) {
            self.fail("it ended".to_owned()).await;
        }
        if self.running.is_none() {
            self.rest().await?;
            self.generation += 1;
            match start(&self.server).await {
                Ok(running) => self.running = Some(running),
                Err(why) => {
                    self.put_off(why.clone());
                    return Err(McpError::NotStarted { server: self.server.name.clone(), why });
                }
            }
        }
        let Some(running) = &mut self.running else {
            return Err(McpError::Closed { server: self.server.name.clone() });
        };
        if running.has_changed.swap(false, Ordering::Relaxed) {
            let listed = timeout(self.server.limits.start, list(&self.server, running.service.peer())).await;
            match listed {
                Ok(Ok(tools)) => running.tools = Arc::new(tools),
                // The tools that it had before are tried; the call tells what is wrong.
                Ok(Err(_)) | Err(_) => running.has_changed.store(true, Ordering::Relaxed),
            }
        }
        Ok(Connected {
            peer: running.service.peer().clone(),
            tools: running.tools.clone(),
            generation: self.generation,
        })
    }

    /// Waits until the server may be started again, unless that is too far off.
    async fn rest(&mut self) -> Result<(), McpError> {
        let Some(at) = self.retry_at else { return Ok(()) };
        let left = at.saturating_duration_since(Instant::now());
        if left > RETRY_WAITED {
            return Err(McpError::Resting {
                server: self.server.name.clone(),
                seconds: left.as_secs() + 1,
                why: self.why.clone(),
            });
        }
        sleep_until(at).await;
        Ok(())
    }

    async fn fail(&mut self, why: String) {
        if self.running.as_ref().is_some_and(|running| running.since.elapsed() > SETTLED) {
            self.failures = 0;
        }
        let why = match self.end().await {
            words if words.is_empty() => why,
            words => format!("{why}; its last words: {words}"),
        };
        self.put_off(why);
    }

    fn put_off(&mut self, why: String) {
        tracing::warn!(server = self.server.name, why, "an MCP server failed");
        let wait = RETRY_FIRST.saturating_mul(2u32.saturating_pow(self.failures)).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(Instant::now() + wait);
        self.why = why;
    }

    /// Ends the server and gives its last words.
    async fn end(&mut self) -> String {
        let Some(mut running) = self.running.take() else { return String::new() };
        // It closes the server's standard input, by which the guard ends it.
        let _ = running.service.close_with_timeout(self.server.limits.grace).await;
        drop(running.service);
        match running.process {
            Some(process) => process.end(&self.server).await,
            None => String::new(),
        }
    }
}

impl Process {
    fn spawn(
        server: &McpServer,
        at: &McpProgram,
    ) -> std::io::Result<(Self, tokio::process::ChildStdout, tokio::process::ChildStdin)> {
        let how = Guarded { grace: server.limits.grace, talks: true, confinement: at.confinement.as_ref() };
        let mut command = at.guard.command(&how, at.program.as_os_str(), &at.arguments);
        command.current_dir(&at.folder).stdout(Stdio::piped()).stderr(Stdio::piped());
        at.environment.apply(&mut command);
        let mut guard = tokio::process::Command::from(command).spawn()?;
        let (stdin, stdout, stderr) = (guard.stdin.take(), guard.stdout.take(), guard.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(std::io::Error::other("no pipe to the server"));
        };
        let last_words = Arc::new(Mutex::new(HeadTail::new(LAST_WORDS)));
        let words = tokio::spawn(listen(stderr, last_words.clone()));
        Ok((Self { guard, words, last_words }, stdout, stdin))
    }

    /// Waits until the server, whose standard input is closed, is gone.
    async fn end(mut self, server: &McpServer) -> String {
        let patience = server.limits.grace + GUARD_MARGIN;
        if timeout(patience, self.guard.wait()).await.is_err() {
            let _ = self.guard.start_kill();
            let _ = self.guard.wait().await;
        }
        // What is gone has said all; something that escaped the guard may hold the pipe open.
        if timeout(Duration::from_secs(1), &mut self.words).await.is_err() {
            self.words.abort();
        }
        let mut kept = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        let words = std::mem::replace(&mut *kept, HeadTail::new(LAST_WORDS)).into_text();
        server.secrets.redact(words.trim()).into_owned()
    }
}

async fn listen(mut stderr: ChildStderr, kept: Arc<Mutex<HeadTail>>) {
    let mut buffer = vec![0; 4096];
    while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
        kept.lock().unwrap_or_else(PoisonError::into_inner).push(&buffer[..length]);
    }
}

/// Starts the server and asks for its tools; the error says why not, with its last words.
async fn start(server: &McpServer) -> Result<Running, String> {
    match &server.at {
        McpAt::Program(at) => {
            let started = Process::spawn(server, at);
            let (process, stdout, stdin) = started.map_err(|error| error.to_string())?;
            let transport = AsyncRwTransport::new(stdout, stdin);
            let transport = transport.with_max_line_length(server.limits.message_bytes);
            greet(server, transport, Some(process)).await
        }
        McpAt::Web(at) => {
            let web = Web::new(server.limits.message_bytes).map_err(|error| error.to_string())?;
            let mut config = StreamableHttpClientTransportConfig::with_uri(at.url.as_str());
            config.allow_stateless = true;
            for (name, value) in &at.headers {
                let bad = || format!("the header {name} is not valid");
                let parsed = (HeaderName::try_from(name), HeaderValue::try_from(value));
                let (Ok(name), Ok(mut value)) = parsed else { return Err(bad()) };
                value.set_sensitive(true);
                config.custom_headers.insert(name, value);
            }
            greet(server, StreamableHttpClientTransport::with_client(web, config), None).await
        }
    }
}

/// Shakes hands with the server behind a transport. On failure the transport is dropped, and with it a program's standard
/// input.
async fn greet<T>(server: &McpServer, transport: T, process: Option<Process>) -> Result<Running, String>
where
    T: Transport<RoleClient> + 'static,
{
    let has_changed = Arc::new(AtomicBool::new(false));
    let client = Client { has_changed: has_changed.clone() };
    let greeted = async {
        let service = client.serve(Narrow::new(transport)).await.map_err(|error| error.to_string())?;
        let tools = list(server, service.peer()).await?;
        Ok::<_, String>((service, tools))
    };
    let why = match timeout(server.limits.start, greeted).await {
        Ok(Ok((service, tools))) => {
            let since = Instant::now();
            return Ok(Running { service, process, tools: Arc::new(tools), has_changed, since });
        }
        Ok(Err(why)) => cut(&why, LAST_WORDS),
        Err(_) => format!("it was not ready within {} s", server.limits.start.as_secs()),
    };
    let words = match process {
        Some(process) => process.end(server).await,
        None => String::new(),
    };
    match words {
        words if words.is_empty() => Err(server.secrets.redact(&why).into_owned()),
        words => Err(format!("{}; its last words: {words}", server.secrets.redact(&why))),
    }
}

/// Whether the server answers a ping.
pub(super) async fn answers(peer: &Peer<RoleClient>, within: Duration) -> bool {
    let ping = peer.send_request(ClientRequest::PingRequest(PingRequest::default()));
    matches!(timeout(within, ping).await, Ok(Ok(_)))
}

/// The server's tools, as many as are taken.
async fn list(server: &McpServer, peer: &Peer<RoleClient>) -> Result<Vec<Arc<Remote>>, String> {
    let (mut tools, mut names, mut left_out) = (Vec::new(), BTreeSet::new(), 0u64);
    let mut cursor = None;
    for _ in 0..PAGES_MAX {
        let params = PaginatedRequestParams::default().with_cursor(cursor);
        let page = peer.list_tools(Some(params)).await.map_err(|error| error.to_string())?;
        for tool in page.tools {
            match remote(server, &tool).filter(|remote| names.insert(remote.spec.name.clone())) {
                Some(remote) if tools.len() < server.limits.tools => tools.push(Arc::new(remote)),
                _ => left_out += 1,
            }
        }
        cursor = page.next_cursor;
        if cursor.is_none() || tools.len() == server.limits.tools {
            break;
        }
    }
    if left_out > 0 || cursor.is_some() {
        let taken = tools.len();
        tracing::warn!(server = server.name, taken, left_out, "not all tools of an MCP server are taken");
    }
    Ok(tools)
}

/// A tool as models can be told of it; none when its schema is too large.
fn remote(server: &McpServer, tool: &rmcp::model::Tool) -> Option<Remote> {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let plain: String = tool.name.chars().map(|c| if is_plain(&c) { c } else { '_' }).collect();
    let mut name = format!("{}__{plain}", server.name);
    name.truncate(NAME_MAX);
    let mut parameters = Value::Object(tool.input_schema.as_ref().clone());
    if parameters.get("type").is_none() {
        parameters["type"] = "object".into();
    }
    if parameters.to_string().len() > SCHEMA_MAX {
        return None;
    }
    let description = cut(tool.description.as_deref().unwrap_or_default(), DESCRIPTION_MAX);
    let says_so = tool.annotations.as_ref().is_some_and(|hints| hints.read_only_hint == Some(true));
    Some(Remote {
        spec: ToolSpec { name, description, parameters },
        name: tool.name.clone().into_owned(),
        only_reads: server.trusts_hints && says_so,
    })
}

fn cut(text: &str, bytes_max: usize) -> String {
    text[..text.floor_char_boundary(bytes_max)].to_owned()
}
