//! `qmt-cli ca revoke` at the CA's node, until the connections of the certificate are closed at every node.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustls::ClientConfig;
use tokio::task::JoinSet;

use super::asking::Connection;
use super::rig::client_config;
use crate::processes::{Node, wait_for_long};
use crate::report::{Goal, Lacking, Report};
use crate::stats::estimate;

/// What the specification asks for.
const CLOSED_MS_MAX: f64 = 2_000.0;
/// The first one has the CA.
const NAMES: [&str; 3] = ["desk", "lap", "tab"];
/// From a start to a certificate by the mesh.
const CERTIFIED: Duration = Duration::from_secs(60);
/// Against hanging for ever; the goal is far below.
const CLOSED: Duration = Duration::from_secs(30);

const WHAT: &str = "`qmt-cli ca revoke` to its connections closed at all of three nodes";

pub(crate) fn lacking() -> Lacking {
    vec![(WHAT.to_owned(), "ms", Goal::AtMost(CLOSED_MS_MAX))]
}

pub(crate) fn measure(report: &mut Report, bin_dir: &Path, rounds: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mesh = Mesh::start(bin_dir, folder.path())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let times: Result<Vec<f64>> =
        (0..rounds).map(|round| runtime.block_on(mesh.revocation(&format!("caller-{round}")))).collect();
    report.row(WHAT, "ms", Goal::AtMost(CLOSED_MS_MAX), estimate(&times?));
    report.note(format!(
        "revocation over a mesh: {rounds} rounds; three nodes as processes, of which two got their certificates over their links from the first. Somebody with a certificate of his own has a connection \
         open to each; the time is from the start of the command to the last of them being closed, as he sees it."
    ));
    Ok(())
}

struct Mesh {
    desk: Arc<Node>,
    ca: PathBuf,
    channels: Vec<(&'static str, SocketAddr)>,
    _others: Vec<Node>,
}

impl Mesh {
    fn start(bin_dir: &Path, folder: &Path) -> Result<Self> {
        let mut nodes = Vec::new();
        for name in NAMES {
            let home = folder.join(name);
            let config = format!(
                "[mesh]\nenabled = true\ntransport = \"iroh\"\nnode_name = \"{name}\"\n\
                 [agent_channel]\nenabled = true\nnode_name = \"{name}\"\ntls = true\nbind = \"127.0.0.1\"\nhost = \"127.0.0.1\"\n\
                 agent_channel_port = 0\nstorage_dir = \"{}\"\n",
                home.join("shared").display()
            );
            nodes.push(Node::start(bin_dir, &home, &config)?);
        }
        let desk = nodes.remove(0);
        desk.cli(&["ca", "init"])?;
        for node in &nodes {
            let invite = desk.cli(&["invite"])?;
            node.cli(&["join", invite["token"].as_str().context("no token")?])?;
        }
        let mut channels = Vec::new();
        for name in NAMES {
            let (log, mut found) = (folder.join(name).join("log"), None);
            wait_for_long(&format!("the channel of {name}"), CERTIFIED, || {
                found = listens_at(&fs::read_to_string(&log)?);
                Ok(found.is_some())
            })?;
            channels.push((name, found.context("no address")?));
        }
        let ca = folder.join(NAMES[0]).join("ca");
        Ok(Self { desk: Arc::new(desk), ca, channels, _others: nodes })
    }

    /// Milliseconds from the command to the last connection's end.
    async fn revocation(&self, name: &str) -> Result<f64> {
        let config = self.certified(name)?;
        let mut connections = Vec::new();
        for (node, address) in &self.channels {
            let mut connection = Connection::open(*address, &format!("{node}.mesh"), config.clone()).await?;
            connection.ping().await?;
            connections.push(connection);
        }
        let (desk, revoked) = (self.desk.clone(), name.to_owned());
        let begin = Instant::now();
        let command = tokio::task::spawn_blocking(move || desk.cli(&["ca", "revoke", &revoked]));
        let mut ending: JoinSet<()> = connections.into_iter().map(Connection::ended).collect();
        let all = async { while ending.join_next().await.is_some() {} };
        tokio::time::timeout(CLOSED, all).await.context("a connection stayed open")?;
        let took = begin.elapsed().as_secs_f64() * 1e3;
        command.await??;
        Ok(took)
    }

    /// A caller with a certificate of the CA.
    fn certified(&self, name: &str) -> Result<Arc<ClientConfig>> {
        self.desk.cli(&["ca", "issue", name])?;
        let read = |path: &str| fs::read_to_string(self.ca.join(path)).with_context(|| path.to_owned());
        let chain = read("intermediate/ca-chain.pem")?;
        let (cert, key) = (read(&format!("issued/{name}.crt"))?, read(&format!("issued/{name}.key"))?);
        Ok(Arc::new(client_config(&chain, &cert, &key)?))
    }
}

/// Where a node's channel listens, as its log says.
fn listens_at(log: &str) -> Option<SocketAddr> {
    let line = log.lines().rfind(|line| line.contains("agent channel listening"))?;
    line.split_once("address=")?.1.split(' ').next()?.parse().ok()
}
