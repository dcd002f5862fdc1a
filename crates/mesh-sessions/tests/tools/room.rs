//! What the tests share: a folder, calls, and looking after processes.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_identity::NodeKey;
use mesh_sessions::event::Party;
use mesh_sessions::ids::SessionId;
use mesh_sessions::model::Shown;
use mesh_sessions::tool::{Ran, ToolRun};
use mesh_sessions::tools::{Environment, Guard, Secrets, Shell, ShellLimits, Workspace};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// As long as a state may take to come about, on a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn guard() -> Guard {
    Guard { program: std::env::current_exe().unwrap(), arguments: vec!["__tool".into()] }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

pub(crate) struct Room {
    _folder: tempfile::TempDir,
    pub(crate) root: PathBuf,
    pub(crate) shell: Shell,
}

impl Room {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap().join("work");
        std::fs::create_dir(&root).unwrap();
        let shell = shell_in(&root);
        Self { _folder: folder, root, shell }
    }
}

pub(crate) fn shell_in(root: &std::path::Path) -> Shell {
    Shell {
        workspace: Workspace::open(root).unwrap(),
        guard: guard(),
        secrets: Secrets::new(["sk-live-123456".to_owned()]),
        environment: Environment::default(),
        confinement: None,
        limits: ShellLimits { grace: Duration::from_millis(300), ..ShellLimits::default() },
    }
}

/// A call, what it prints while it runs, and what cancels it.
pub(crate) struct Call {
    pub(crate) run: ToolRun,
    pub(crate) printed: Arc<Mutex<String>>,
    pub(crate) cancel: CancellationToken,
}

pub(crate) fn call(arguments: Value) -> Call {
    let (printed, cancel) = (Arc::new(Mutex::new(String::new())), CancellationToken::new());
    let kept = printed.clone();
    let run = ToolRun {
        session: SessionId::from_uuid(uuid::Uuid::now_v7()),
        call: "call-1".parse().unwrap(),
        arguments,
        on_behalf_of: Party::local(NodeKey::from_seed([7; 32]).node_id()),
        printed: Arc::new(move |text| kept.lock().unwrap().push_str(text)),
        cancel: cancel.clone(),
    };
    Call { run, printed, cancel }
}

pub(crate) fn text(ran: &Ran) -> String {
    let text = |part: &Shown| match part {
        Shown::Text(text) => text.clone(),
        Shown::Image { media_type, bytes } => format!("[{media_type}: {} bytes]", bytes.len()),
    };
    ran.parts.iter().map(text).collect()
}

/// Waits until something is there.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(there) = look() {
                return there;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited too long: {what}"))
}

/// The numbers in a text, one a line.
pub(crate) fn pids(text: &str) -> Vec<i32> {
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

/// Whether a process does something: a zombie does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    let id = rustix::process::Pid::from_raw(pid).unwrap();
    if rustix::process::test_kill_process(id).is_err() {
        return false;
    }
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'),
        Err(_) => !cfg!(target_os = "linux"),
    }
}
