//! The task behind an instance: one attempt after the other.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Uri;
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::child::{Guarded, Start};
use super::log::Log;
use super::outcome::Outcome;
use super::process::{ProcessId, halted, processor_ticks, resident_bytes};
use super::{Config, Launch, Running, health};
use crate::backend::{Backend, BackendId, BackendKind, BackendState, Backends, Loading, Secret};

/// Ports taken in a row before it counts as a failure: something then takes them on purpose.
const PORTS_MAX: u32 = 8;
/// A tiny model is ready within 30 ms.
const POLL_FIRST: Duration = Duration::from_millis(10);
const POLL_MAX: Duration = Duration::from_millis(250);
/// Questions without an answer, each up to 5 s, before a server counts as hung: a busy machine is not a dead one.
const UNANSWERED_MAX: u32 = 6;
/// A server that is halted (SIGSTOP, a debugger) for so long counts as hung: it holds its callers and answers nobody. The same
/// time as for an rpc-server, and enough for one that is halted by mistake and let go at once.
const HALTED_WITHIN: Duration = Duration::from_secs(3);
/// Questions to the loop that computes without an answer, while the server uses no processor. Computing a long prompt may well
/// take longer than a question waits, but is work.
const STUCK_MAX: u32 = 2;
/// What a server that does nothing uses between two questions, in ticks of 10 ms: answering them.
const IDLE_TICKS: u64 = 3;

pub(crate) struct Supervisor {
    launch: Launch,
    config: Config,
    backends: Backends,
    cancel: CancellationToken,
    state: watch::Sender<BackendState>,
    running: watch::Sender<Option<Running>>,
    entries: Vec<Entry>,
    /// Known to the child and to our gateway only, so that no page in a browser here can use the server.
    key: Result<Secret, getrandom::Error>,
    failures: u32,
    after: Option<String>,
}

/// A place in the registry. Every attempt has a state channel of its own, so that an address once given up never
/// becomes ready again.
struct Entry {
    id: BackendId,
    name: String,
}

pub(crate) struct Watches {
    pub(crate) state: watch::Receiver<BackendState>,
    pub(crate) running: watch::Receiver<Option<Running>>,
}

impl Supervisor {
    pub(crate) fn new(
        launch: Launch,
        config: Config,
        backends: Backends,
        cancel: CancellationToken,
    ) -> (Self, Watches) {
        let (running, running_watch) = watch::channel(None);
        let loading = Loading { total_bytes: launch.file_bytes, attempt: 1, ..Loading::default() };
        let (state, state_watch) = watch::channel(BackendState::Loading(loading));
        let key = random_key();
        let mut supervisor = Self {
            launch,
            config,
            backends,
            cancel,
            state,
            running,
            entries: Vec::new(),
            key,
            failures: 0,
            after: None,
        };
        for name in supervisor.config.names.clone() {
            // No address yet: a backend that loads is not asked anything.
            let id = supervisor.backends.insert(supervisor.backend(&name, 0, &supervisor.state));
            supervisor.entries.push(Entry { id, name });
        }
        (supervisor, Watches { state: state_watch, running: running_watch })
    }

    pub(crate) async fn run(mut self) {
        let cancel = self.cancel.clone();
        let outcome = self.attempts().await;
        self.running.send_replace(None);
        if let Err(reason) = outcome {
            tracing::warn!(model = self.name(), %reason, "gave up on a model");
            self.publish_failure(reason);
            cancel.cancelled().await;
        }
        for entry in self.entries.drain(..) {
            self.backends.remove(entry.id);
        }
        self.state.send_replace(BackendState::Stopped);
    }

    /// Ok when stopped, else why it gave up.
    async fn attempts(&mut self) -> Result<(), String> {
        let key = match &self.key {
            Ok(key) => key.clone(),
            Err(error) => return Err(format!("no randomness: {error}")),
        };
        let folder = self.config.home.join("logs");
        let mut log = Log::open(&folder, self.name(), self.config.log_bytes_max)
            .map_err(|error| format!("cannot write a log below {}: {error}", folder.display()))?;
        let mut first_port = self.config.first_port.map(u16::from);
        let mut ports_taken = 0;
        loop {
            let port = first_port
                .take()
                .map_or_else(free_port, Ok)
                .map_err(|error| format!("no free port: {error}"))?;
            let outcome = self.attempt(port, &key, &mut log).await;
            self.running.send_replace(None);
            match outcome {
                Outcome::Stopped => return Ok(()),
                Outcome::PortTaken if ports_taken < PORTS_MAX => {
                    tracing::info!(model = self.name(), port, "the port was taken, trying another one");
                    ports_taken += 1;
                    continue;
                }
                outcome => {
                    ports_taken = 0;
                    self.failures += 1;
                    tracing::warn!(model = self.name(), %outcome, failures = self.failures, "a model's server ended");
                    if self.failures >= self.config.failures_max.max(1) {
                        return Err(reason(&outcome, &log));
                    }
                    self.after = Some(outcome.to_string());
                }
            }
            self.publish(None, self.loading(Instant::now(), None));
            let pause = jittered(backoff(&self.config, self.failures));
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => (),
            }
        }
    }

    /// Runs the server once. It is gone when this returns.
    async fn attempt(&mut self, port: u16, key: &Secret, log: &mut Log) -> Outcome {
        if self.cancel.is_cancelled() {
            return Outcome::Stopped;
        }
        let started = log.for_child().and_then(|log_file| {
            Guarded::spawn(Start {
                guard: &self.config.guard,
                home: &self.config.home,
                program: &self.launch.program,
                arguments: self.launch.arguments.to_list(self.name(), port),
                key: key.expose(),
                in_huge_pages: false,
                log: log_file,
                stop_deadline: self.config.stop_deadline,
            })
        });
        let mut guarded = match started {
            Ok(guarded) => guarded,
            Err(error) => {
                return Outcome::NoGuard(format!("{}: {error}", self.config.guard.program.display()));
            }
        };
        let guard_pid = guarded.guard_pid().unwrap_or(0);
        let facts = Running { port, guard_pid, child: None, log: log.path().to_owned() };
        self.running.send_replace(Some(facts));
        let (own, _) = watch::channel(self.loading(Instant::now(), None));
        for entry in &self.entries {
            self.backends.replace(entry.id, self.backend(&entry.name, port, &own));
        }
        let (cancel, child) = (self.cancel.clone(), guarded.child());
        let outcome = tokio::select! {
            biased;
            () = cancel.cancelled() => Outcome::Stopped,
            outcome = guarded.wait() => outcome,
            outcome = self.watch(port, key, &child, &own) => outcome,
        };
        // Nobody is sent there from now on, though it may take a moment to end.
        if matches!(outcome, Outcome::Stopped) {
            // Who hears an answer from there hears no more of it: the server makes nothing of it any more, and ends once
            // nobody waits.
            own.send_replace(BackendState::Stopped);
        } else {
            self.publish(Some(&own), self.loading(Instant::now(), None));
        }
        if let (Outcome::Hung, Some(child)) = (&outcome, child.get()) {
            // It would not hear that it is to end, and its callers wait for as long as it is there.
            child.signal_group(Signal::KILL);
        }
        guarded.end().await;
        match outcome {
            Outcome::Exit(_) | Outcome::NotReady { .. } if is_taken(port) => Outcome::PortTaken,
            outcome => outcome,
        }
    }

    /// Waits until the server is ready, then asks after its health. Returns when it should be ended.
    async fn watch(
        &mut self,
        port: u16,
        key: &Secret,
        child: &Arc<OnceLock<ProcessId>>,
        own: &watch::Sender<BackendState>,
    ) -> Outcome {
        let since = Instant::now();
        let deadline = ready_deadline(&self.config, self.launch.file_bytes);
        let mut pause = POLL_FIRST;
        let mut told = Duration::ZERO;
        while !health::is_ready(port, key.expose()).await {
            if since.elapsed() >= deadline {
                return Outcome::NotReady { seconds: deadline.as_secs() };
            }
            if let Some(child) = child.get() {
                self.note_child(child);
            }
            if since.elapsed() >= told + Duration::from_secs(1) {
                told = since.elapsed();
                let read = child.get().and_then(|child| resident_bytes(child.pid));
                self.publish(Some(own), self.loading(since, read));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(POLL_MAX);
        }
        // The guard reports before it lets the child go, but its line may still be on its way.
        let recorded = async {
            while child.get().is_none() {
                tokio::time::sleep(POLL_FIRST).await;
            }
        };
        recorded.await;
        if let Some(child) = child.get() {
            self.note_child(child);
        }
        let took = since.elapsed();
        tracing::info!(model = self.name(), port, ?took, "a model is ready");
        self.after = None;
        self.publish(Some(own), BackendState::Ready);
        let pid = child.get().map_or(0, |child| child.pid);
        tokio::select! {
            () = halted(pid, HALTED_WITHIN) => Outcome::Hung,
            () = self.until_hung(port, key, pid) => Outcome::Hung,
        }
    }

    async fn until_hung(&mut self, port: u16, key: &Secret, pid: i32) {
        let ready = Instant::now();
        // Where others compute, this machine's processor says nothing; their leases do.
        let computes_here = self.launch.arguments.split.is_none();
        let (mut unanswered, mut stuck, mut used) = (0, 0, None);
        while unanswered < UNANSWERED_MAX && stuck < STUCK_MAX {
            tokio::time::sleep(self.config.health_every).await;
            if ready.elapsed() >= self.config.stable_after {
                self.failures = 0;
            }
            // Any answer will do: a busy server may say so with another status.
            let answered = health::status(port, "/health", None).await.is_some();
            unanswered = if answered { 0 } else { unanswered + 1 };
            // `/health` is answered beside the loop that computes, `/slots` by it.
            let takes_turns =
                !computes_here || health::status(port, "/slots", Some(key.expose())).await.is_some();
            let before = std::mem::replace(&mut used, processor_ticks(pid));
            let is_idle =
                before.zip(used).is_some_and(|(before, used)| used - before.min(used) <= IDLE_TICKS);
            stuck = if !takes_turns && is_idle { stuck + 1 } else { 0 };
        }
    }

    fn note_child(&self, child: &ProcessId) {
        self.running.send_if_modified(|running| match running {
            Some(running) if running.child.is_none() => {
                running.child = Some(child.clone());
                true
            }
            _ => false,
        });
    }

    fn publish(&self, own: Option<&watch::Sender<BackendState>>, state: BackendState) {
        if let Some(own) = own {
            own.send_replace(state.clone());
        }
        self.state.send_replace(state);
    }

    /// A failed model stays in the registry with its reason. The entries come first: who sees the state finds it there.
    fn publish_failure(&self, reason: String) {
        for entry in &self.entries {
            self.backends.replace(entry.id, self.backend(&entry.name, 0, &self.state));
        }
        self.state.send_replace(BackendState::Failed { reason });
    }

    fn loading(&self, since: Instant, read: Option<u64>) -> BackendState {
        let total_bytes = self.launch.file_bytes;
        BackendState::Loading(Loading {
            read_bytes: read.map(|read| read.min(total_bytes)),
            total_bytes,
            elapsed: since.elapsed(),
            attempt: self.failures.saturating_add(1),
            after: self.after.clone(),
            first: None,
        })
    }

    fn backend(&self, name: &str, port: u16, state: &watch::Sender<BackendState>) -> Backend {
        Backend {
            model: name.to_owned(),
            url: loopback(port),
            upstream_model: None,
            auth: self.key.as_ref().ok().cloned(),
            share: self.config.share,
            state: state.subscribe(),
            slots: usize::try_from(self.launch.arguments.slots.get()).ok(),
            kind: BackendKind::Local,
            terms: None,
        }
    }

    fn name(&self) -> &str {
        self.config.names.first().map_or("model", String::as_str)
    }
}

fn loopback(port: u16) -> Uri {
    let uri =
        Uri::builder().scheme("http").authority(format!("127.0.0.1:{port}")).path_and_query("/").build();
    uri.expect("a number after a colon is an authority")
}

/// What people read when a model does not come up.
fn reason(outcome: &Outcome, log: &Log) -> String {
    let lines = log.tail();
    let said = if lines.is_empty() { String::new() } else { format!("; it said: {}", lines.join(" | ")) };
    format!("{outcome}{said} (log: {})", log.path().display())
}

/// Free now; somebody may take it before the server binds it, which [`Outcome::PortTaken`] is for.
pub(super) fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

pub(super) fn is_taken(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
}

fn ready_deadline(config: &Config, file_bytes: u64) -> Duration {
    config.ready_base + Duration::from_secs(file_bytes / config.ready_bytes_per_second.max(1))
}

/// Doubles with every failure, from 1 on.
fn backoff(config: &Config, failures: u32) -> Duration {
    let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    config.backoff_first.saturating_mul(factor).min(config.backoff_max)
}

/// Between half of it and all of it: many models that failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let draw = getrandom::u32().unwrap_or(u32::MAX);
    pause.mul_f64(0.5 + f64::from(draw) / f64::from(u32::MAX) / 2.0)
}

fn random_key() -> Result<Secret, getrandom::Error> {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes)?;
    Ok(Secret::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn config() -> Config {
        let guard = super::super::GuardCommand { program: "guard".into(), arguments: Vec::new() };
        Config::new("/nonexistent".into(), guard, "m")
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        let config = config();
        let pauses: Vec<u128> = (1..=8).map(|failures| backoff(&config, failures).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(backoff(&config, u32::MAX), config.backoff_max);
        for _ in 0..100 {
            let pause = jittered(Duration::from_secs(2));
            assert!((Duration::from_secs(1)..=Duration::from_secs(2)).contains(&pause));
        }
    }

    #[test]
    fn larger_models_have_more_time() {
        let config = config();
        assert_eq!(ready_deadline(&config, 0).as_secs(), 30);
        assert_eq!(ready_deadline(&config, 40_000_000_000).as_secs(), 2030);
    }
}
