//! Nodes as processes, where the process is what matters.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use mesh_control::{Client, ModelState};
use mesh_inference::gguf::tiny::TinyModel;
use mesh_inference::instance::ProcessId;
use mesh_inference::llama::LlamaCpp;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{PATIENCE, until};

/// A home in a folder of its own, with a folder for models beside it.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(folder.models()).unwrap();
        folder
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.0.path().join("home")
    }

    /// What `~/.models` is for a node that is started here.
    pub(crate) fn models(&self) -> PathBuf {
        self.0.path().join(".models")
    }

    /// A folder beside the home.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Writes the configuration of the node that is started here.
    pub(crate) fn configure(&self, text: &str) {
        std::fs::create_dir_all(self.home()).unwrap();
        std::fs::write(self.home().join("config.toml"), text).unwrap();
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("log")
    }

    /// What the node, or nodes, wrote to standard error.
    pub(crate) fn written(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// `qmt-node` with these arguments, its files here and nothing else of this machine's owner.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_by(&[], arguments)
    }

    /// The same, started by another program such as `sh -c`.
    pub(crate) fn command_by(&self, starter: &[&str], arguments: &[&str]) -> Command {
        let own = env!("CARGO_BIN_EXE_qmt-node");
        let mut words = starter.iter().chain(std::iter::once(&own)).chain(arguments);
        let mut command = Command::new(words.next().unwrap());
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.env("QMT_HOME", self.home()).env("HOME", self.0.path());
        command.env_remove("QMT_EPHEMERAL_KEY").env_remove("RUST_LOG").env("NO_COLOR", "1");
        command
    }

    /// Starts it and waits until it answers.
    pub(crate) async fn start(&self, arguments: &[&str]) -> Process {
        self.start_by(&[], arguments).await
    }

    pub(crate) async fn start_by(&self, starter: &[&str], arguments: &[&str]) -> Process {
        self.start_seen(starter, arguments, |_| self.home()).await
    }

    /// Starts it by a program that gives it file systems of its own.
    pub(crate) async fn start_inside(&self, starter: &[&str], arguments: &[&str]) -> Process {
        self.start_seen(starter, arguments, |child| inside(child.id(), &self.home())).await
    }

    async fn start_seen(
        &self,
        starter: &[&str],
        arguments: &[&str],
        home: impl FnOnce(&Child) -> PathBuf,
    ) -> Process {
        let child = self.command_by(starter, arguments).spawn().unwrap();
        let mut process = Process { client: Client::for_home(&home(&child)), child };
        until("the node answers", || {
            let ended = process.child.try_wait().unwrap();
            assert!(ended.is_none(), "the node ended at once: {}", self.written());
            let client = process.client.clone();
            async move { client.status().await.ok() }
        })
        .await;
        process
    }

    /// Runs it to its end, which must come by itself.
    pub(crate) fn run(&self, arguments: &[&str]) -> (ExitStatus, String) {
        let mut child = self.command(arguments).spawn().unwrap();
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return (status, self.written());
            }
            if std::time::Instant::now() > end {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the node runs, but should have ended: {}", self.written());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A running node; killed when the test is over.
pub(crate) struct Process {
    child: Child,
    pub(crate) client: Client,
}

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A path as the node sees it, seen from here.
    pub(crate) fn inside(&self, path: &Path) -> PathBuf {
        inside(self.pid(), path)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits until it has.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        signal(i32::try_from(self.pid()).unwrap(), Signal::TERM);
        until("the node ends", || {
            let ended = self.child.try_wait().unwrap();
            async move { ended }
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn inside(pid: u32, path: &Path) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join("root").join(path.strip_prefix("/").unwrap())
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Processes whose parent is this one.
pub(crate) fn children_of(pid: i32) -> Vec<i32> {
    let all = std::fs::read_dir("/proc").unwrap();
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|child| parent_of(*child) == Some(pid)).collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}

/// The folder of the machine's llama-server; none, with a printed reason, when it has none.
pub(crate) async fn llama_bin_dir() -> Option<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME")?).join(".qmt");
    let found = LlamaCpp::find(None, std::env::var_os("PATH").as_deref(), &home).await;
    match found {
        Ok(llama) => Some(llama.server.parent()?.to_owned()),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

impl Folder {
    /// Writes a tiny model into the folder of models.
    pub(crate) fn add_model(&self, name: &str, seed: u64) {
        let model = TinyModel { name: name.to_owned(), seed, ..TinyModel::default() };
        model.write(&self.models().join(format!("{name}.gguf"))).unwrap();
    }

    /// Starts a node that serves these tiny models, and waits until they answer.
    pub(crate) async fn start_serving(&self, bin_dir: &Path, models: &[&str]) -> Process {
        let mut arguments = vec!["--port", "0", "--bin-dir", bin_dir.to_str().unwrap()];
        for (seed, model) in (1..).zip(models) {
            self.add_model(model, seed);
            arguments.extend(["--model", model]);
        }
        let process = self.start(&arguments).await;
        for model in models {
            process.ready(model).await;
        }
        process
    }
}

impl Process {
    /// Waits until a model answers here.
    pub(crate) async fn ready(&self, model: &str) {
        until(&format!("{model} is ready"), || async {
            let models = self.client.models().await.unwrap();
            models.iter().any(|view| view.name == model && view.state == ModelState::Ready).then_some(())
        })
        .await;
    }

    /// The guard and the llama-server of each model, by the file name on the server's command line.
    pub(crate) fn served(&self) -> Vec<Served> {
        let own = i32::try_from(self.pid()).unwrap();
        let mut served = Vec::new();
        for guard in children_of(own) {
            for server in children_of(guard) {
                let words = std::fs::read(format!("/proc/{server}/cmdline")).unwrap_or_default();
                let words = String::from_utf8_lossy(&words).into_owned();
                let (Some(guard), Some(server)) = (ProcessId::of(guard), ProcessId::of(server)) else {
                    continue;
                };
                served.push(Served { guard, server, words });
            }
        }
        served
    }

    pub(crate) fn served_model(&self, model: &str) -> Served {
        let file = format!("/{model}.gguf");
        let found = self.served().into_iter().find(|served| served.words.contains(&file));
        found.unwrap_or_else(|| panic!("no llama-server of {model}: {:?}", self.served()))
    }
}

/// The processes behind one model.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) guard: ProcessId,
    pub(crate) server: ProcessId,
    pub(crate) words: String,
}

impl Served {
    /// Waits until both processes are gone.
    pub(crate) async fn gone(&self) {
        for process in [&self.server, &self.guard] {
            until(&format!("process {} is gone", process.pid), || async {
                (!process.is_alive()).then_some(())
            })
            .await;
        }
    }
}
