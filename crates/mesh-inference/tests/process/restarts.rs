use std::future::Future;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::num::NonZeroU16;
use std::path::Path;
use std::time::Duration;

use mesh_inference::backend::{BackendState, Backends};
use mesh_inference::instance::{Config, GuardCommand, Instance, Launch, ProcessId, Running};
use mesh_inference::llama::Arguments;
use tokio::sync::watch;

/// Far above what anything here takes; only a failing test waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn guard() -> GuardCommand {
    GuardCommand::own().unwrap()
}

/// The fake as a program: llama-server's arguments follow its own.
pub(crate) fn launch(home: &Path, behaviour: &str) -> Launch {
    let script = home.join("llama-server");
    let own = std::env::current_exe().unwrap();
    std::fs::write(&script, format!("#!/bin/sh\nexec '{}' __fake \"$@\"\n", own.display())).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let model = home.join(format!("{behaviour}.gguf"));
    Launch { program: script, arguments: Arguments::new(model), file_bytes: 1000 }
}

pub(crate) fn config(home: &Path) -> Config {
    Config {
        backoff_first: Duration::from_millis(10),
        failures_max: 3,
        stop_deadline: Duration::from_millis(300),
        ..Config::new(home.to_owned(), guard(), "fake")
    }
}

pub(crate) fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("took too long") })
}

pub(crate) async fn reach(
    state: &mut watch::Receiver<BackendState>,
    wanted: impl Fn(&BackendState) -> bool,
) -> BackendState {
    state.wait_for(|state| wanted(state)).await.unwrap().clone()
}

pub(crate) fn is_ready(state: &BackendState) -> bool {
    matches!(state, BackendState::Ready)
}

fn is_failed(state: &BackendState) -> bool {
    matches!(state, BackendState::Failed { .. })
}

pub(crate) async fn started(instance: &Instance) -> (Running, ProcessId) {
    reach(&mut instance.state(), is_ready).await;
    let running = instance.running().borrow().clone().unwrap();
    let child = running.child.clone().unwrap();
    (running, child)
}

pub(crate) async fn gone(process: &ProcessId) {
    while process.is_alive() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn records(home: &Path) -> usize {
    std::fs::read_dir(home.join("run/children")).map_or(0, Iterator::count)
}

fn fails_with(behaviour: &str, expected: &[&str]) {
    let home = tempfile::tempdir().unwrap();
    let launch = launch(home.path(), behaviour);
    run(async {
        let backends = Backends::new();
        let instance = Instance::start(launch, config(home.path()), backends.clone());
        let state = reach(&mut instance.state(), is_failed).await.to_string();
        for expected in expected {
            assert!(state.contains(expected), "{state}");
        }
        assert_eq!(backends.get("fake")[0].state.borrow().to_string(), state);
        assert_eq!(records(home.path()), 0);
        instance.stop().await;
        assert_eq!(*instance.state().borrow(), BackendState::Stopped);
        assert!(backends.list().is_empty());
    });
}

pub(crate) fn becomes_ready_and_stops_without_a_trace() {
    let home = tempfile::tempdir().unwrap();
    let launch = launch(home.path(), "well");
    run(async {
        let backends = Backends::new();
        let instance = Instance::start(launch, config(home.path()), backends.clone());
        assert_eq!(backends.list().len(), 1, "registered at once");
        let (running, child) = started(&instance).await;
        let backend = backends.get("fake").pop().unwrap();
        assert!(backend.is_ready());
        assert_eq!(backend.url.port_u16(), Some(running.port));
        assert_eq!(records(home.path()), 1);
        instance.stop().await;
        assert!(!child.is_alive());
        assert_eq!(ProcessId::of(i32::try_from(running.guard_pid).unwrap()), None);
        assert_eq!(records(home.path()), 0);
        assert!(backends.list().is_empty());
        instance.stop().await;
    });
}

pub(crate) fn a_slow_server_shows_that_it_loads() {
    let home = tempfile::tempdir().unwrap();
    let launch = launch(home.path(), "slow");
    run(async {
        let instance = Instance::start(launch, config(home.path()), Backends::new());
        let mut state = instance.state();
        assert!(
            matches!(&*state.borrow_and_update(), BackendState::Loading(loading) if loading.total_bytes == 1000)
        );
        reach(&mut state, is_ready).await;
        instance.stop().await;
    });
}

pub(crate) fn a_crash_is_followed_by_a_new_start() {
    let home = tempfile::tempdir().unwrap();
    let launch = launch(home.path(), "crashes-once");
    let starts = home.path().join("crashes-once.starts");
    run(async {
        let instance = Instance::start(launch, config(home.path()), Backends::new());
        let mut state = instance.state();
        let again =
            |state: &BackendState| matches!(state, BackendState::Loading(loading) if loading.attempt == 2);
        let state_again = reach(&mut state, again).await.to_string();
        assert!(state_again.contains("exit code 7"), "{state_again}");
        reach(&mut state, is_ready).await;
        assert_eq!(std::fs::read_to_string(starts).unwrap(), "2");
        instance.stop().await;
    });
}

pub(crate) fn gives_up_with_the_last_words() {
    fails_with("broken", &["exit code 3", "the tensor is upside down", "fake-0.log"]);
}

pub(crate) fn an_illegal_instruction_names_the_mend() {
    fails_with("illegal", &["illegal instruction", "GGML_NATIVE=OFF", "qmt-cli setup"]);
}

pub(crate) fn a_missing_program_says_so() {
    let home = tempfile::tempdir().unwrap();
    let mut launch = launch(home.path(), "well");
    launch.program = home.path().join("nothing-here");
    run(async {
        let instance = Instance::start(launch, config(home.path()), Backends::new());
        let state = reach(&mut instance.state(), is_failed).await.to_string();
        assert!(state.contains("cannot be executed") && state.contains("nothing-here"), "{state}");
        instance.stop().await;
    });
}

pub(crate) fn a_server_that_never_answers_is_ended() {
    let home = tempfile::tempdir().unwrap();
    let launch = launch(home.path(), "hangs");
    run(async {
        let config =
            Config { ready_base: Duration::from_millis(200), failures_max: 2, ..config(home.path()) };
        let instance = Instance::start(launch, config, Backends::new());
        let mut running = instance.running();
        let first =
            running.wait_for(|running| running.as_ref().is_some_and(|running| running.child.is_some())).await;
        let child = first.unwrap().clone().unwrap().child.unwrap();
        let state = reach(&mut instance.state(), is_failed).await.to_string();
        assert!(state.contains("was not ready within"), "{state}");
        assert!(!child.is_alive());
        assert_eq!(records(home.path()), 0);
        instance.stop().await;
    });
}

/// The thief answers as friendly as a server of ours.
pub(crate) fn a_stolen_port_is_never_taken_for_ours() {
    let thief = TcpListener::bind("127.0.0.1:0").unwrap();
    let stolen = thief.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in thief.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    let home = tempfile::tempdir().unwrap();
    let launch = launch(home.path(), "well");
    run(async {
        let config = Config { first_port: NonZeroU16::new(stolen), failures_max: 1, ..config(home.path()) };
        let backends = Backends::new();
        let instance = Instance::start(launch, config, backends.clone());
        let (running, _) = started(&instance).await;
        assert_ne!(running.port, stolen);
        assert_eq!(backends.list()[0].url.port_u16(), Some(running.port));
        instance.stop().await;
    });
}

pub(crate) fn a_server_that_ignores_sigterm_is_killed() {
    let home = tempfile::tempdir().unwrap();
    let launch = launch(home.path(), "stubborn");
    run(async {
        let backends = Backends::new();
        let instance = Instance::start(launch, config(home.path()), backends.clone());
        let (_, child) = started(&instance).await;
        let mut state = backends.get("fake")[0].state.clone();
        let while_it_lives = async {
            // Those who wait for its answers learn at once that none comes any more.
            state.wait_for(|state| *state == BackendState::Stopped).await.unwrap();
            assert!(child.is_alive());
        };
        tokio::join!(instance.stop(), while_it_lives);
        assert!(!child.is_alive());
    });
}

pub(crate) fn the_key_is_on_no_command_line() {
    let home = tempfile::tempdir().unwrap();
    let launch = launch(home.path(), "well");
    run(async {
        let backends = Backends::new();
        let instance = Instance::start(launch, config(home.path()), backends.clone());
        let (running, child) = started(&instance).await;
        let key = backends.list()[0].auth.clone().unwrap();
        for pid in [child.pid, i32::try_from(running.guard_pid).unwrap()] {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&line).contains(key.expose()));
        }
        instance.stop().await;
    });
}

pub(crate) fn dropping_an_instance_ends_its_server() {
    let home = tempfile::tempdir().unwrap();
    let launch = launch(home.path(), "well");
    run(async {
        let backends = Backends::new();
        let instance = Instance::start(launch, config(home.path()), backends.clone());
        let (_, child) = started(&instance).await;
        drop(instance);
        gone(&child).await;
    });
}
