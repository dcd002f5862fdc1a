//! Nodes as processes in hosts, asked as their owner would.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use qmt_tests::lab::{Host, Lab, Process};
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at a state.
const LOOK: Duration = Duration::from_millis(100);

/// The file of a node's key in its home.
const KEY: &str = "mesh_identity.key";

/// What the tests run.
pub(crate) struct Programs {
    node: PathBuf,
    cli: PathBuf,
}

/// A lab and the programs; none, with a printed reason, where one of them is missing.
pub(crate) fn lab() -> Option<(Lab, Programs)> {
    match Programs::find() {
        Ok(programs) => Some((empty_lab()?, programs)),
        Err(reason) => skip(&reason),
    }
}

/// A lab alone.
pub(crate) fn empty_lab() -> Option<Lab> {
    Lab::new().map_or_else(|reason| skip(&reason.to_string()), Some)
}

fn skip<T>(reason: &str) -> Option<T> {
    println!("skipped: {reason}");
    None
}

impl Programs {
    /// Those of the same build as this test.
    fn find() -> Result<Self, String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let folder = own.ancestors().nth(2).ok_or("this test is not in a target folder")?;
        let find = |name: &str| {
            let program = folder.join(name);
            let missing =
                || format!("{} is not built; run cargo build --release --workspace", program.display());
            if program.is_file() { Ok(program) } else { Err(missing()) }
        };
        Ok(Self { node: find("qmt-node")?, cli: find("qmt-cli")? })
    }
}

/// Looks again and again until there is something to see.
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    match seen(PATIENCE, look) {
        Some(seen) => seen,
        None => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

/// The same, and none when the time is over.
pub(crate) fn seen<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(seen) = look() {
            return Some(seen);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(LOOK);
    }
}

/// A running node; killed when dropped, and shown by its log when a test fails.
pub(crate) struct Node {
    name: &'static str,
    folder: TempDir,
    programs: Programs,
    process: Process,
}

impl Node {
    /// Starts it in a host with these lines of configuration, and waits until it answers.
    pub(crate) fn start(programs: &Programs, host: &Host, name: &'static str, configuration: &str) -> Self {
        let text = format!("inference.model_dirs = []\nmesh.node_name = \"{name}\"\n{configuration}");
        Self::start_as_written(programs, host, name, &text, &[])
    }

    /// Starts another one in a host with a copy of this one's key.
    pub(crate) fn start_copy(&self, host: &Host, name: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (home(self.folder.path()), home(folder.path()));
        std::fs::create_dir(&to).unwrap();
        std::fs::copy(from.join(KEY), to.join(KEY)).unwrap();
        let text = format!("inference.model_dirs = []\nmesh.node_name = \"{name}\"\n");
        let process = run(&self.programs.node, host, folder.path(), &text, &[]);
        let programs = Programs { node: self.programs.node.clone(), cli: self.programs.cli.clone() };
        Self { name, folder, programs, process }.once_it_answers()
    }

    /// Starts it with this configuration file and these variables, and waits until it answers.
    pub(crate) fn start_as_written(
        programs: &Programs,
        host: &Host,
        name: &'static str,
        configuration: &str,
        variables: &[(String, String)],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(home(folder.path())).unwrap();
        let process = run(&programs.node, host, folder.path(), configuration, variables);
        let programs = Programs { node: programs.node.clone(), cli: programs.cli.clone() };
        Self { name, folder, programs, process }.once_it_answers()
    }

    /// Kills it, and starts it again in its home with another file.
    pub(crate) fn restart_as_written(
        mut self,
        host: &Host,
        configuration: &str,
        variables: &[(String, String)],
    ) -> Self {
        self.process.kill();
        self.process = run(&self.programs.node, host, self.folder.path(), configuration, variables);
        self.once_it_answers()
    }

    fn once_it_answers(mut self) -> Self {
        until(&format!("{} answers", self.name), || {
            assert!(self.process.ended().is_none(), "{} ended at once: {}", self.name, self.log());
            self.ask(&["status"]).ok()
        });
        self
    }

    /// What `qmt-cli` prints as JSON, or how it fails.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<Value, String> {
        let mut command = Command::new(&self.programs.cli);
        command.arg("--json").args(arguments).env("QMT_HOME", home(self.folder.path()));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            Ok(serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}")))
        } else {
            Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr)))
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Of its process.
    pub(crate) fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// A token that admits so many nodes.
    pub(crate) fn invite(&self, uses: u32) -> String {
        let invite = self.ask(&["invite", "--uses", &uses.to_string()]).unwrap();
        invite["token"].as_str().unwrap().to_owned()
    }

    pub(crate) fn join(&self, token: &str) -> Result<(), String> {
        self.ask(&["join", token]).map(drop)
    }

    /// The state in which it sees another node; none while it knows nothing of it.
    pub(crate) fn state_of(&self, other: &Node) -> Option<String> {
        let nodes = self.ask(&["nodes"]).unwrap();
        let other = nodes.as_array().unwrap().iter().find(|node| node["name"] == other.name)?;
        Some(other["state"].as_str().unwrap().to_owned())
    }

    pub(crate) fn sees(&self, other: &Node, state: &str) {
        until(&format!("{} sees {} as {state}", self.name, other.name), || {
            self.state_of(other).filter(|seen| seen == state)
        });
    }

    /// The ways by which so many pings to another node were answered, in order.
    pub(crate) fn ping(&self, other: &Node, count: u32) -> Result<Vec<String>, String> {
        let pings = self.ask(&["ping", other.name, "--count", &count.to_string()])?;
        let pongs = pings["pongs"].as_array().unwrap();
        Ok(pongs.iter().map(|pong| pong["path"].as_str().unwrap().to_owned()).collect())
    }

    /// Waits until a ping to another node is answered.
    pub(crate) fn reaches(&self, other: &Node) {
        until(&format!("{} reaches {}", self.name, other.name), || self.ping(other, 1).ok());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(log(self.folder.path())).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("---- log of {}:\n{}", self.name, self.log());
        }
    }
}

fn run(
    program: &Path,
    host: &Host,
    folder: &Path,
    configuration: &str,
    variables: &[(String, String)],
) -> Process {
    let home = home(folder);
    std::fs::write(home.join("config.toml"), configuration).unwrap();
    let log = File::create(log(folder)).unwrap();
    let mut command = host.command(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.env("QMT_HOME", &home).env("HOME", folder).env("NO_COLOR", "1");
    command.env_remove("QMT_EPHEMERAL_KEY").env_remove("RUST_LOG").envs(variables.iter().cloned());
    Process::start(&mut command)
}

fn home(folder: &Path) -> PathBuf {
    folder.join("home")
}

fn log(folder: &Path) -> PathBuf {
    folder.join("log")
}
