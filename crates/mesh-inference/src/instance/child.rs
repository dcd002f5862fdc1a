//! One attempt: a guard, and the child behind it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::guard::{GuardCommand, guard_arguments};
use super::outcome::Outcome;
use super::process::ProcessId;
use super::record::{self, Record};

/// What the guard needs beyond the child's own deadline to see the end and say so.
const GUARD_MARGIN: Duration = Duration::from_secs(5);

/// Tunables of the GNU C library; elsewhere it is a name like any other.
const TUNABLES: &str = "GLIBC_TUNABLES";
/// `malloc` asks for huge pages by `madvise` (glibc 2.35 and later; older ones say nothing and do nothing).
const HUGE_PAGES: &str = "glibc.malloc.hugetlb=1";

/// A child behind its guard. Dropping it closes the pipe, by which the guard ends the child.
#[derive(Debug)]
pub(crate) struct Guarded {
    guard: Child,
    /// Closed to end the child.
    pipe: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    child: Arc<OnceLock<ProcessId>>,
    record: PathBuf,
    outcome: Option<Outcome>,
    stop_deadline: Duration,
}

/// What to start.
pub(crate) struct Start<'a> {
    pub(crate) guard: &'a GuardCommand,
    pub(crate) home: &'a Path,
    pub(crate) program: &'a Path,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) key: &'a str,
    /// Whether what it allocates should lie in huge pages, where the system has them for whoever asks.
    pub(crate) in_huge_pages: bool,
    pub(crate) log: File,
    pub(crate) stop_deadline: Duration,
}

impl Guarded {
    pub(crate) fn spawn(start: Start<'_>) -> io::Result<Self> {
        let folder = record::folder(start.home);
        std::fs::create_dir_all(&folder)?;
        let record = folder.join(format!("{}.json", uuid::Uuid::now_v7().simple()));
        let node = ProcessId::own().ok_or_else(|| io::Error::other("this process cannot see itself"))?;
        let mut command = Command::new(&start.guard.program);
        // What the user has set for all programs stays.
        if start.in_huge_pages && std::env::var_os(TUNABLES).is_none() {
            command.env(TUNABLES, HUGE_PAGES);
        }
        let mut guard = command
            .args(guard_arguments(start.guard, record.as_os_str(), &node, start.stop_deadline))
            .arg(start.program)
            .args(start.arguments)
            // In the environment, since everybody on the machine can read a command line.
            .env("LLAMA_API_KEY", start.key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(start.log)
            .process_group(0)
            .spawn()?;
        let (pipe, stdout) = (guard.stdin.take(), guard.stdout.take());
        let stdout = stdout.ok_or_else(|| io::Error::other("no pipe from the guard"))?;
        Ok(Self {
            guard,
            pipe,
            lines: BufReader::new(stdout).lines(),
            child: Arc::default(),
            record,
            outcome: None,
            stop_deadline: start.stop_deadline,
        })
    }

    /// The child, once the guard has recorded it.
    pub(crate) fn child(&self) -> Arc<OnceLock<ProcessId>> {
        self.child.clone()
    }

    pub(crate) fn guard_pid(&self) -> Option<u32> {
        self.guard.id()
    }

    /// Waits until guard and child are gone, and says how it ended. Cancel safe; may be called again.
    pub(crate) async fn wait(&mut self) -> Outcome {
        while let Ok(Some(line)) = self.lines.next_line().await {
            match line.strip_prefix("child ").and_then(|rest| rest.split_once(' ')) {
                Some((pid, start)) => {
                    if let Ok(pid) = pid.parse() {
                        let _ = self.child.set(ProcessId { pid, start: start.to_owned() });
                    }
                }
                None => self.outcome = Outcome::parse(&line).or(self.outcome.take()),
            }
        }
        let _ = self.guard.wait().await;
        match self.outcome.clone() {
            Some(outcome) => outcome,
            None => {
                self.end_recorded().await;
                Outcome::GuardLost
            }
        }
    }

    /// Ends the child and waits until it is really gone.
    pub(crate) async fn end(&mut self) {
        drop(self.pipe.take());
        if tokio::time::timeout(self.stop_deadline + GUARD_MARGIN, self.wait()).await.is_err() {
            tracing::warn!(guard = self.guard.id(), "the guard does not end its child");
            let _ = self.guard.start_kill();
            self.end_recorded().await;
            let _ = self.guard.wait().await;
        }
    }

    /// The guard is gone without having done its work: ends what it wrote down.
    async fn end_recorded(&self) {
        let path = self.record.clone();
        let ended = tokio::task::spawn_blocking(move || {
            // Without a record the child has not been let go, and ends by itself.
            let Some(record) = Record::read(&path) else { return true };
            let ended = record.end();
            if ended {
                let _ = std::fs::remove_file(&path);
            }
            ended
        });
        if !ended.await.unwrap_or(false) {
            tracing::warn!(record = %self.record.display(), "a child process could not be ended; the next start tries again");
        }
    }
}
