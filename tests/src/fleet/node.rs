//! One node as a process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use mesh_control::{Client, InviteRequest, JoinRequest};
use rustix::process::{Pid, Signal, kill_process};

use super::PATIENCE;
use crate::lab::{Host, Process};

/// Between two looks at a state.
const LOOK: Duration = Duration::from_millis(20);
/// Of those that name no folder of models themselves: none of the machine's.
const NO_MODELS: &str = "inference.model_dirs = []\n";
/// What all have in their configuration: links over QUIC to addresses alone, no fixed port.
const COMMON: &str = "api.port = 0\nmesh.enabled = true\nmesh.transport = \"iroh\"\n\
                      mesh.internet.relay_mode = \"disabled\"\n";

/// A node; killed when dropped.
pub struct Node {
    name: String,
    id: String,
    program: PathBuf,
    home: PathBuf,
    host: Option<Arc<Host>>,
    client: Client,
    process: Option<Process>,
}

impl Node {
    pub(super) fn new(
        number: usize,
        program: PathBuf,
        home: PathBuf,
        host: Option<Arc<Host>>,
        configuration: &str,
    ) -> Result<Self> {
        std::fs::create_dir_all(&home)?;
        let client = Client::for_home(&home);
        let name = format!("node{number}");
        let node = Self { name, id: String::new(), program, home, host, client, process: None };
        node.configure(configuration)?;
        Ok(node)
    }

    /// Its id; empty before its first start.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For questions of its owner.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Where it runs; none for this machine itself.
    pub fn host(&self) -> Option<&Host> {
        self.host.as_deref()
    }

    /// The folder with its files.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// What it wrote to standard error in all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }

    /// Of its process, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Whether it was started and not killed.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    pub(super) fn take_host(&mut self) -> Option<Arc<Host>> {
        self.host.take()
    }

    pub(super) fn configure(&self, more: &str) -> Result<()> {
        let models = if more.contains("inference.model_dirs") { "" } else { NO_MODELS };
        let text = format!("{models}{COMMON}mesh.node_name = \"{}\"\n{more}", self.name);
        Ok(std::fs::write(self.home.join("config.toml"), text)?)
    }

    /// Starts its process and waits for nothing.
    pub(super) fn run(&mut self) -> Result<()> {
        ensure!(self.program.is_file(), "{} is not there; build it first", self.program.display());
        let log = File::options().create(true).append(true).open(self.home.join("log"))?;
        let mut command = self.command();
        command.env("QMT_HOME", &self.home).env("HOME", &self.home).env("NO_COLOR", "1");
        command.env_remove("QMT_EPHEMERAL_KEY").env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(Process::start(&mut command));
        Ok(())
    }

    fn command(&self) -> Command {
        let program: &Path = &self.program;
        self.host.as_ref().map_or_else(|| Command::new(program), |host| host.command(program))
    }

    /// Waits until it answers its owner.
    pub(super) async fn answers(&mut self) -> Result<()> {
        let end = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < end {
            if let Ok(status) = self.client.status().await {
                self.id = status.node_id;
                return Ok(());
            }
            if let Some(ended) = self.process.as_mut().context("it was not started")?.ended() {
                bail!("{} ended at once, {ended}: {}", self.name, self.log());
            }
            tokio::time::sleep(LOOK).await;
        }
        bail!("{} does not answer: {}", self.name, self.log())
    }

    /// A token that admits any number of nodes.
    pub(super) async fn invite(&self) -> Result<String> {
        let any = InviteRequest { uses: Some(0), ..InviteRequest::default() };
        Ok(self.client.invite(&any).await?.token)
    }

    pub(super) async fn join(&self, token: &str) -> Result<()> {
        let joined = self.client.join(&JoinRequest { token: token.to_owned() }).await;
        joined.with_context(|| format!("{} does not join", self.name))?;
        Ok(())
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.process_id().with_context(|| format!("{} does not run", self.name))?;
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        kill_process(pid.context("an id")?, signal)?;
        Ok(())
    }
}

/// Unix milliseconds, by the clock that the nodes of this machine share.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
