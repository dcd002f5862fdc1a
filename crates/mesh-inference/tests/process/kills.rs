use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use mesh_inference::backend::Backends;
use mesh_inference::instance::{Config, Instance, ProcessId, sweep};
use rustix::process::{Pid, Signal, kill_process};

use crate::restarts::{config, gone, launch, run, started};

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

fn number(pid: u32) -> i32 {
    i32::try_from(pid).unwrap()
}

pub(crate) fn a_killed_server_comes_back() {
    let home = tempfile::tempdir().unwrap();
    let launch = launch(home.path(), "well");
    run(async {
        let instance = Instance::start(launch, config(home.path()), Backends::new());
        let (_, first) = started(&instance).await;
        kill(first.pid);
        comes_back(&instance, &first).await;
        instance.stop().await;
    });
}

/// Neither answers nor ends: its callers would wait for as long as it is there.
pub(crate) fn a_halted_server_is_replaced() {
    let home = tempfile::tempdir().unwrap();
    let launch = launch(home.path(), "well");
    run(async {
        let instance = Instance::start(launch, config(home.path()), Backends::new());
        let (_, first) = started(&instance).await;
        kill_process(Pid::from_raw(first.pid).unwrap(), Signal::STOP).unwrap();
        comes_back(&instance, &first).await;
        instance.stop().await;
    });
}

/// It still says that it is well, beside the loop that computes.
pub(crate) fn a_server_that_computes_no_more_is_replaced() {
    let home = tempfile::tempdir().unwrap();
    let launch = launch(home.path(), "stuck");
    let config = Config { health_every: Duration::from_millis(50), ..config(home.path()) };
    run(async {
        let instance = Instance::start(launch, config, Backends::new());
        let (_, first) = started(&instance).await;
        comes_back(&instance, &first).await;
        instance.stop().await;
    });
}

pub(crate) fn a_killed_guard_takes_its_server_along() {
    let home = tempfile::tempdir().unwrap();
    let launch = launch(home.path(), "well");
    run(async {
        let instance = Instance::start(launch, config(home.path()), Backends::new());
        let (running, first) = started(&instance).await;
        kill(number(running.guard_pid));
        gone(&first).await;
        comes_back(&instance, &first).await;
        instance.stop().await;
        assert_eq!(std::fs::read_dir(home.path().join("run/children")).unwrap().count(), 0);
    });
}

pub(crate) async fn comes_back(instance: &Instance, first: &ProcessId) {
    let another = |child: &ProcessId| child != first;
    let mut running = instance.running();
    let again = running
        .wait_for(|running| running.as_ref().and_then(|running| running.child.as_ref()).is_some_and(another));
    drop(again.await.unwrap());
    let (_, second) = started(instance).await;
    assert!(second.is_alive() && !first.is_alive());
}

/// The node role: keeps one fake server in the home given, says who runs, and stays until it is killed.
pub(crate) fn node() -> ExitCode {
    let home = std::env::args_os().nth(2).unwrap();
    let home = Path::new(&home);
    let launch = launch(home, "stubborn");
    run(async {
        let instance = Instance::start(launch, config(home), Backends::new());
        let (running, child) = started(&instance).await;
        println!("{} {}", running.guard_pid, child.pid);
        std::future::pending::<()>().await;
    });
    ExitCode::FAILURE
}

/// A node in a process of its own; ends with the test.
struct Node {
    process: Child,
    guard: ProcessId,
    server: ProcessId,
}

impl Node {
    fn start(home: &Path) -> Self {
        let own = std::env::current_exe().unwrap();
        let mut process = Command::new(own).arg("__node").arg(home).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (guard, server) = line.trim().split_once(' ').unwrap();
        let identity = |pid: &str| ProcessId::of(pid.parse().unwrap()).unwrap();
        Self { guard: identity(guard), server: identity(server), process }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn a_killed_node_takes_guard_and_server_along() {
    let home = tempfile::tempdir().unwrap();
    let mut node = Node::start(home.path());
    node.kill();
    run(async {
        gone(&node.server).await;
        gone(&node.guard).await;
    });
    assert_eq!(std::fs::read_dir(home.path().join("run/children")).unwrap().count(), 0);
}

pub(crate) fn node_and_guard_killed_at_once_leave_nothing() {
    let home = tempfile::tempdir().unwrap();
    let mut node = Node::start(home.path());
    // Stopped first, so that the guard cannot do its work before it is killed.
    kill_process(Pid::from_raw(node.guard.pid).unwrap(), Signal::STOP).unwrap();
    node.kill();
    kill(node.guard.pid);
    if cfg!(target_os = "linux") {
        run(gone(&node.server));
    }
    let swept = sweep(home.path()).unwrap();
    assert!(swept.stuck.is_empty() && swept.in_use == 0, "{swept:?}");
    run(async {
        gone(&node.server).await;
        gone(&node.guard).await;
    });
    assert_eq!(std::fs::read_dir(home.path().join("run/children")).unwrap().count(), 0);
}

/// As after a crash on a system without the kernel's death signal: the record is there, and so is the process.
pub(crate) fn the_sweep_ends_what_was_left_and_nothing_else() {
    use std::os::unix::process::CommandExt;
    let sleeper = || Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
    let (mut left, mut spared) = (sleeper(), sleeper());
    let identity = |child: &Child| ProcessId::of(number(child.id())).unwrap();
    let nobody = ProcessId { pid: 999_999_999, start: "never".into() };
    let stranger = ProcessId { start: "before the boot".into(), ..identity(&spared) };
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("run/children");
    std::fs::create_dir_all(&folder).unwrap();
    let record = |name: &str, child: &ProcessId| {
        let text = serde_json::json!({ "node": nobody, "guard": nobody, "child": child });
        std::fs::write(folder.join(name), text.to_string()).unwrap();
    };
    record("left.json", &identity(&left));
    record("stranger.json", &stranger);
    std::fs::write(folder.join("half.new"), "{").unwrap();
    let swept = sweep(home.path()).unwrap();
    assert_eq!(swept.ended, [number(left.id())]);
    assert!(!left.wait().unwrap().success());
    assert!(identity(&spared).is_alive());
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    assert_eq!(sweep(home.path()).unwrap(), Default::default());
    spared.kill().unwrap();
    spared.wait().unwrap();
}

pub(crate) fn the_sweep_spares_a_living_nodes_children() {
    let home = tempfile::tempdir().unwrap();
    let node = Node::start(home.path());
    let swept = sweep(home.path()).unwrap();
    assert_eq!((swept.in_use, swept.ended.len()), (1, 0));
    assert!(node.server.is_alive());
    let server = node.server.clone();
    drop(node);
    run(gone(&server));
    std::thread::sleep(Duration::ZERO);
}
