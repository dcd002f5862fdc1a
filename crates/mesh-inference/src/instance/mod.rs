//! Supervised programs of llama.cpp: a `llama-server` that is started, watched, started again, and gone when it is to be
//! gone; and the `rpc-server` behind a lease.

mod child;
pub mod guard;
mod health;
mod log;
mod outcome;
mod process;
mod record;
mod rpc_server;
mod supervise;

use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use guard::GuardCommand;
pub use process::ProcessId;
pub use record::{Swept, sweep};
pub use rpc_server::{RpcLaunch, RpcServer, RpcServerError};

use crate::backend::{BackendState, Backends, Share};
use crate::llama::Arguments;

/// How an [`Instance`] is kept.
#[derive(Debug, Clone)]
pub struct Config {
    /// The folder of this node's files (`QMT_HOME`): logs go to `logs/`, records of children to `run/children/`.
    pub home: PathBuf,
    /// How the guard is started.
    pub guard: GuardCommand,
    /// Names under which the model is registered; the first one also names the log.
    pub names: Vec<String>,
    /// Who may use it.
    pub share: Share,
    /// A port for the first attempt; `None` takes a free one, as do further attempts.
    pub first_port: Option<NonZeroU16>,
    /// Time to become ready, whatever the model's size. Default 30 s.
    pub ready_base: Duration,
    /// The slowest disk that is waited for, in bytes a second. Default 20 MB/s; 0 counts as 1.
    pub ready_bytes_per_second: u64,
    /// Pause after the first failure; it doubles with every further one and is jittered down to half. Default 0.5 s.
    pub backoff_first: Duration,
    /// The longest pause. Default 30 s.
    pub backoff_max: Duration,
    /// Failures in a row after which it gives up. Default 5; 0 counts as 1.
    pub failures_max: u32,
    /// Time as ready after which earlier failures are forgotten. Default 60 s.
    pub stable_after: Duration,
    /// Pause between questions after the health of a ready server. Default 10 s; six without an answer end it.
    pub health_every: Duration,
    /// Time between asking the child to end and killing it. Default 5 s.
    pub stop_deadline: Duration,
    /// Size at which a log is put aside at the next start. Default 8 MiB.
    pub log_bytes_max: u64,
}

impl Config {
    /// The defaults for a model of one name.
    pub fn new(home: PathBuf, guard: GuardCommand, name: impl Into<String>) -> Self {
        Self {
            home,
            guard,
            names: vec![name.into()],
            share: Share::Members,
            first_port: None,
            ready_base: Duration::from_secs(30),
            ready_bytes_per_second: 20_000_000,
            backoff_first: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            failures_max: 5,
            stable_after: Duration::from_secs(60),
            health_every: Duration::from_secs(10),
            stop_deadline: Duration::from_secs(5),
            log_bytes_max: 8 << 20,
        }
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Launch {
    /// `llama-server`.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Arguments,
    /// Size of the model's files, for the deadline of loading and its progress.
    pub file_bytes: u64,
}

/// The processes of the present attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Port on 127.0.0.1.
    pub port: u16,
    /// The guard's process number.
    pub guard_pid: u32,
    /// The llama-server, once its guard has recorded it.
    pub child: Option<ProcessId>,
    /// Where it logs.
    pub log: PathBuf,
}

/// A `llama-server` that is kept alive until it is stopped or has failed too often.
///
/// Registers itself in [`Backends`] under its names at once, as loading, and leaves it when it ends for good; a failed
/// one stays there, so that callers learn why. Dropping it stops it as [`Instance::stop`] does, without waiting.
#[derive(Debug)]
pub struct Instance {
    cancel: CancellationToken,
    state: watch::Receiver<BackendState>,
    running: watch::Receiver<Option<Running>>,
    done: watch::Receiver<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Instance {
    /// Starts to keep a server. Returns at once; what becomes of it shows in [`Instance::state`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(launch: Launch, config: Config, backends: Backends) -> Self {
        let cancel = CancellationToken::new();
        let (supervisor, watches) = supervise::Supervisor::new(launch, config, backends, cancel.clone());
        let (done_sender, done) = watch::channel(false);
        let task = tokio::spawn(async move {
            supervisor.run().await;
            done_sender.send_replace(true);
        });
        Self { cancel, state: watches.state, running: watches.running, done, task }
    }

    /// What it is doing.
    pub fn state(&self) -> watch::Receiver<BackendState> {
        self.state.clone()
    }

    /// Its processes; `None` between attempts and after the end.
    pub fn running(&self) -> watch::Receiver<Option<Running>> {
        self.running.clone()
    }

    /// Ends the server and waits until its process is really gone, at most the stop deadline and some seconds.
    /// Idempotent. Cancel safe: once called, it ends even if nobody waits.
    pub async fn stop(&self) {
        self.cancel.cancel();
        let _ = self.done.clone().wait_for(|done| *done).await;
    }

    /// Whether the supervision has ended, by [`Instance::stop`] or a panic. A failed instance is still supervised.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
