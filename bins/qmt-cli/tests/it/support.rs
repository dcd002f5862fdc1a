//! Running the binary, and nodes for it to talk to.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use qmt_node::Node;
use qmt_node::config::{self, Environment, Listener};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

pub(crate) const CLI: &str = env!("CARGO_BIN_EXE_qmt-cli");

/// Far beyond what any step takes, even on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// What a run of the binary left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// The JSON on standard output, which must have nothing else.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The same, of a run that went well and said nothing beside it.
    pub(crate) fn ok_json(&self) -> Value {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{self:?}");
        self.json()
    }
}

/// A run of the binary that is being prepared.
pub(crate) struct Run {
    command: Command,
    input: Option<String>,
}

/// The binary with these arguments, for the node at `home`, with nothing on standard input.
pub(crate) fn cli(home: &Path, args: &[&str]) -> Run {
    program(Path::new(CLI), home, args)
}

pub(crate) fn program(program: &Path, home: &Path, args: &[&str]) -> Run {
    let mut command = Command::new(program);
    command.args(args).env("QMT_HOME", home).env_remove("QMT_INVITE").env_remove("QMT_API_KEY");
    Run { command, input: None }
}

impl Run {
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn input(mut self, text: &str) -> Self {
        self.input = Some(text.to_owned());
        self
    }

    pub(crate) async fn run(mut self) -> Ran {
        let stdin = if self.input.is_some() { Stdio::piped() } else { Stdio::null() };
        self.command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = self.command.spawn().expect("the binary starts");
        if let (Some(mut stdin), Some(text)) = (child.stdin.take(), self.input) {
            stdin.write_all(text.as_bytes()).await.expect("standard input takes it");
        }
        let output = timeout(DEADLINE, child.wait_with_output()).await.expect("in time").expect("it ends");
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).expect("text"),
            err: String::from_utf8(output.stderr).expect("text"),
        }
    }
}

/// A node in this process, with a home of its own and a gateway at a free port.
pub(crate) struct Running {
    node: Node,
    home: TempDir,
}

impl Running {
    pub(crate) async fn start(name: &str, toml: &str) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(home.path().join("config.toml"), format!("[mesh]\nnode_name = {name:?}\n{toml}"))
            .expect("written");
        let vars = BTreeMap::from([("QMT_HOME".to_owned(), home.path().display().to_string())]);
        let environment = Environment { vars, cwd: PathBuf::from("/") };
        let mut config = config::load(&qmt_node::cli::Cli::default(), &environment).expect("a configuration");
        config.gateway.listener = Listener { addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), asked: true };
        let node = Box::pin(Node::start(config)).await.expect("the node starts"); // a large future
        Self { node, home }
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn cli(&self, args: &[&str]) -> Run {
        cli(self.home(), args)
    }

    /// Repeats a listing as JSON until it is as it should be.
    pub(crate) async fn until(&self, args: &[&str], holds: impl Fn(&Value) -> bool) {
        let mut args = args.to_vec();
        args.push("--json");
        let mut last = Value::Null;
        let wait = async {
            loop {
                last = self.cli(&args).run().await.ok_json();
                if holds(&last) {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        if timeout(DEADLINE, wait).await.is_err() {
            panic!("{args:?} stays {last:#}");
        }
    }

    pub(crate) async fn stop(self) {
        self.stop_and_keep_home().await;
    }

    /// Stops the node; its files last as long as what is returned.
    pub(crate) async fn stop_and_keep_home(self) -> TempDir {
        timeout(DEADLINE, self.node.shutdown()).await.expect("the node stops");
        self.home
    }
}

/// Waits until something holds.
pub(crate) async fn until(holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, wait).await.expect("in time");
}
