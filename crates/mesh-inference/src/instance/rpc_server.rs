//! A supervised `rpc-server` of llama.cpp, which lends this machine's memory and processors to one host.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::child::{Guarded, Start};
use super::guard::GuardCommand;
use super::log::Log;
use super::outcome::Outcome;
use super::process::{ProcessId, halted, is_listening};
use super::supervise::{free_port, is_taken};
use crate::llama::RpcArguments;

/// Ports taken in a row before it gives up: something then takes them on purpose.
const PORTS_MAX: u32 = 8;
/// It listens within milliseconds on a processor; a GPU's driver takes seconds to come up.
const POLL: Duration = Duration::from_millis(10);

/// What to run, and how it is kept.
#[derive(Debug, Clone)]
pub struct RpcLaunch {
    /// `ggml-rpc-server` or `rpc-server`.
    pub program: PathBuf,
    /// Names its log, for example `rpc-qwen3-8b`.
    pub name: String,
    /// Threads of a processor's share; `None` is one a core. The program's own default is 1.
    pub threads: Option<NonZeroU32>,
    /// Devices to lend, in its own words; empty is all GPUs, or the processor where there is none.
    pub devices: Vec<String>,
    /// The folder of this node's files: logs go to `logs/`, records of children to `run/children/`.
    pub home: PathBuf,
    /// How the guard is started.
    pub guard: GuardCommand,
    /// Time to come up. Default 30 s.
    pub ready_within: Duration,
    /// Time between asking it to end and killing it. Default 2 s: it holds nothing that is to be saved.
    pub stop_deadline: Duration,
    /// Size at which a log is put aside at the next start. Default 8 MiB.
    pub log_bytes_max: u64,
}

impl RpcLaunch {
    /// The defaults.
    pub fn new(program: PathBuf, name: impl Into<String>, home: PathBuf, guard: GuardCommand) -> Self {
        Self {
            program,
            name: name.into(),
            threads: None,
            devices: Vec::new(),
            home,
            guard,
            ready_within: Duration::from_secs(30),
            stop_deadline: Duration::from_secs(2),
            log_bytes_max: 8 << 20,
        }
    }

    fn arguments(&self, port: u16) -> RpcArguments {
        let cores = std::thread::available_parallelism().ok();
        let cores = cores.and_then(|cores| NonZeroU32::try_from(cores).ok());
        RpcArguments { port, threads: self.threads.or(cores), devices: self.devices.clone() }
    }
}

/// Why no rpc-server runs. Nothing is left running.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RpcServerError(String);

/// A running `rpc-server` on loopback. It is ended when this is dropped, and is not started again: its end is the end of
/// what it holds for its host.
#[derive(Debug)]
pub struct RpcServer {
    addr: SocketAddr,
    process: ProcessId,
    cancel: CancellationToken,
    ended: watch::Receiver<Option<String>>,
}

impl RpcServer {
    /// Starts it and waits until it listens. That is read from the system's tables: it serves one connection at a time, and
    /// one made to try it out would take its host's place.
    ///
    /// Cancel safe: dropped early, nothing runs on.
    ///
    /// # Errors
    /// [`RpcServerError`], in words that say what mends it.
    pub async fn start(launch: RpcLaunch) -> Result<Self, RpcServerError> {
        let folder = launch.home.join("logs");
        let mut log = Log::open(&folder, &launch.name, launch.log_bytes_max).map_err(|error| {
            RpcServerError(format!("cannot write a log below {}: {error}", folder.display()))
        })?;
        let mut taken = 0;
        loop {
            let port = free_port().map_err(|error| RpcServerError(format!("no free port: {error}")))?;
            match Self::attempt(&launch, port, &mut log).await {
                Ok(running) => return Ok(running),
                Err(Outcome::PortTaken) if taken < PORTS_MAX => taken += 1,
                Err(outcome) => {
                    let lines = log.tail();
                    let said = if lines.is_empty() {
                        String::new()
                    } else {
                        format!("; it said: {}", lines.join(" | "))
                    };
                    let told = outcome.of(&program_name(&launch));
                    return Err(RpcServerError(format!("{told}{said} (log: {})", log.path().display())));
                }
            }
        }
    }

    async fn attempt(launch: &RpcLaunch, port: u16, log: &mut Log) -> Result<Self, Outcome> {
        let spawned = log.for_child().and_then(|log| {
            Guarded::spawn(Start {
                guard: &launch.guard,
                home: &launch.home,
                program: &launch.program,
                arguments: launch.arguments(port).to_list(),
                key: "",
                // Each word reads all weights once, and they are not mapped from a file here: with small pages the
                // processor spends a quarter of the time looking up where they lie.
                in_huge_pages: true,
                log,
                stop_deadline: launch.stop_deadline,
            })
        });
        let mut guarded = spawned
            .map_err(|error| Outcome::NoGuard(format!("{}: {error}", launch.guard.program.display())))?;
        let child = guarded.child();
        let process = tokio::select! {
            biased;
            outcome = guarded.wait() => Err(outcome),
            listens = tokio::time::timeout(launch.ready_within, until_listening(&child, port)) => {
                listens.map_err(|_| Outcome::NotReady { seconds: launch.ready_within.as_secs() })
            }
        };
        match process {
            Ok(process) => Ok(Self::keep(guarded, process, port, program_name(launch))),
            Err(outcome) => {
                guarded.end().await;
                match outcome {
                    Outcome::Exit(_) | Outcome::NotReady { .. } if is_taken(port) => Err(Outcome::PortTaken),
                    outcome => Err(outcome),
                }
            }
        }
    }

    fn keep(mut guarded: Guarded, process: ProcessId, port: u16, program: String) -> Self {
        let cancel = CancellationToken::new();
        let (told, ended) = watch::channel(None);
        let stop = cancel.clone();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => Outcome::Stopped,
                outcome = guarded.wait() => outcome,
            };
            guarded.end().await;
            told.send_replace(Some(outcome.of(&program)));
        });
        Self { addr: (Ipv4Addr::LOCALHOST, port).into(), process, cancel, ended }
    }

    /// Where it listens, on 127.0.0.1.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its process.
    pub fn process(&self) -> &ProcessId {
        &self.process
    }

    /// Resolves, when its process is gone, to the reason. Cancel safe.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "its supervision ended".into(),
        }
    }

    /// Resolves once its process has been halted (SIGSTOP, a debugger) for so long: it holds its memory and answers nobody. Never
    /// resolves where the platform does not tell. Cancel safe.
    pub async fn halted(&self, within: Duration) {
        halted(self.process.pid, within).await;
    }

    /// Ends it and waits until its process is gone. Idempotent. Cancel safe: once called, it ends even if nobody waits.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.ended().await;
    }
}

impl Drop for RpcServer {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn program_name(launch: &RpcLaunch) -> String {
    launch.program.file_name().map_or_else(|| "rpc-server".into(), |name| name.to_string_lossy().into_owned())
}

/// Waits until the child itself listens on the port. A program that stole the port is never taken for it, where the platform
/// says whose a socket is.
async fn until_listening(child: &Arc<OnceLock<ProcessId>>, port: u16) -> ProcessId {
    loop {
        if let Some(process) = child.get() {
            let listens = is_listening(process.pid, port);
            if listens.unwrap_or_else(|| is_taken(port)) {
                return process.clone();
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_lent_with_every_core() {
        let guard = GuardCommand { program: "guard".into(), arguments: Vec::new() };
        let mut launch = RpcLaunch::new("rpc-server".into(), "rpc-m", "/h".into(), guard);
        let cores =
            std::thread::available_parallelism().ok().and_then(|cores| NonZeroU32::try_from(cores).ok());
        assert_eq!(launch.arguments(4711), RpcArguments { port: 4711, threads: cores, devices: Vec::new() });
        launch.threads = NonZeroU32::new(3);
        launch.devices = vec!["CUDA0".into()];
        let named = RpcArguments { port: 4711, threads: NonZeroU32::new(3), devices: vec!["CUDA0".into()] };
        assert_eq!(launch.arguments(4711), named);
    }
}
