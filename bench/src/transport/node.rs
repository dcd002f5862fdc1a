//! Real nodes, as processes in hosts of a lab.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use mesh_control::{Client, Event, EventKind, Events, InviteRequest, JoinRequest, PathKind, PingRequest};
use qmt_tests::lab::{Host, Process};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Longest wait for a node to answer its owner, or for another node to be known.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at a state.
const LOOK: Duration = Duration::from_millis(10);

/// A node; killed when dropped.
pub(super) struct Node {
    pub(super) id: String,
    client: Client,
    process: Process,
    begun: u64,
    _folder: TempDir,
}

impl Node {
    /// Starts it in a host with these lines of configuration, and waits until it answers its owner.
    pub(super) async fn start(bin_dir: &Path, host: &Host, name: &str, configuration: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let home = folder.path().join("home");
        std::fs::create_dir(&home)?;
        let text = format!("inference.model_dirs = []\nmesh.node_name = \"{name}\"\n{configuration}");
        std::fs::write(home.join("config.toml"), text)?;
        let log = folder.path().join("log");
        let mut command = host.command(bin_dir.join("qmt-node"));
        command.env("QMT_HOME", &home).env("HOME", folder.path()).env("NO_COLOR", "1");
        command.env_remove("QMT_EPHEMERAL_KEY").env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?);
        let begun = now_ms();
        let process = Process::start(&mut command);
        let client = Client::for_home(&home);
        let mut node = Self { id: String::new(), client, process, begun, _folder: folder };
        let answering = async {
            loop {
                match node.client.status().await {
                    Ok(status) => return status,
                    Err(_) => tokio::time::sleep(LOOK).await,
                }
            }
        };
        match tokio::time::timeout(PATIENCE, answering).await {
            Ok(status) => node.id = status.node_id,
            Err(_) => bail!("{name} does not start: {}", std::fs::read_to_string(&log).unwrap_or_default()),
        }
        Ok(node)
    }

    /// When its process was started, Unix milliseconds.
    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    /// Its events; none that happens from now on is missed.
    pub(super) async fn events(&self) -> Result<Events> {
        let mut events = self.client.events().await?;
        events.next().await?.context("a snapshot is the first event")?;
        Ok(events)
    }

    pub(super) async fn invite(&self) -> Result<String> {
        let any = InviteRequest { uses: Some(0), ..InviteRequest::default() };
        Ok(self.client.invite(&any).await?.token)
    }

    pub(super) async fn join(&self, token: &str) -> Result<()> {
        self.client.join(&JoinRequest { token: token.to_owned() }).await?;
        Ok(())
    }

    /// Whether another node answers one ping.
    pub(super) async fn reaches(&self, other: &str) -> bool {
        let request = PingRequest { node: other.to_owned(), count: Some(1) };
        self.client.ping(&request).await.is_ok_and(|pongs| !pongs.is_empty())
    }

    /// Waits until another node answers.
    pub(super) async fn wait_for(&self, other: &str) -> Result<()> {
        let answering = async {
            while !self.reaches(other).await {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::time::timeout(PATIENCE, answering).await.context("the other node does not answer")
    }

    /// Stops or continues its process.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("an id")?, signal)?;
        Ok(())
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }
}

/// The next change of the link to `peer` (to anybody without one): where it goes, and when that was.
pub(super) async fn next_link(events: &mut Events, peer: Option<&str>) -> Result<(PathKind, u64)> {
    loop {
        let Event { at_ms, kind, .. } = events.next().await?.context("the node has ended")?;
        if let EventKind::Link { id, path, .. } = kind
            && peer.is_none_or(|peer| peer == id)
        {
            return Ok((path, at_ms));
        }
    }
}

/// Unix milliseconds, by the clock that the nodes of this machine share.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
