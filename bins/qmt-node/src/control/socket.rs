//! The Unix socket of the control API. Whoever may open it owns the node: mode 0600 in a folder of mode 0700. What the tools
//! of agents start runs as the same user, and is told by its ancestors.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::serve::Listener;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// A bound control socket; the file is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct ControlSocket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl ControlSocket {
    /// Binds `path`, replacing what an earlier run left there. The caller holds the home folder's lock, so no other node
    /// can be behind a file that is already there.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(Self { path: path.to_owned(), listener: Some(listener) })
    }

    /// Serves `router` until `stop`; requests under way may finish, event streams end by themselves.
    pub(crate) async fn serve(mut self, router: Router, stop: CancellationToken) {
        let Some(listener) = self.listener.take() else { return };
        let served = axum::serve(OwnersOnly(listener), router).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "the control socket failed");
        }
    }
}

/// Lets in whom the node's user has started, and closes the door to what a tool of an agent has.
struct OwnersOnly(UnixListener);

impl Listener for OwnersOnly {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            let (stream, addr) = Listener::accept(&mut self.0).await;
            let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
            // Where the system does not tell who calls, the mode of the file is all there is.
            let Some(pid) = pid.and_then(|pid| u32::try_from(pid).ok()) else { return (stream, addr) };
            match tokio::task::spawn_blocking(move || is_of_a_tool(Pid::from_u32(pid))).await {
                Ok(false) => return (stream, addr),
                _ => tracing::warn!(
                    pid,
                    "a program that an agent's tool has started is not let at the control socket"
                ),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A chain of processes longer than this is nobody's shell.
const ANCESTORS_MAX: usize = 256;

/// Whether one of the processes that led to this one is the guard of a tool. Everything that a tool starts stays below its
/// guard for as long as that lives (see `mesh_sessions::tools::guard`). What a process was that is gone nobody knows; a
/// process that is there and not shown is another user's, and no guard.
fn is_of_a_tool(pid: Pid) -> bool {
    let Ok(mut child) = Seen::look(pid) else { return false };
    let mut at = pid;
    for _ in 0..ANCESTORS_MAX {
        let parent = match child {
            None | Some(Seen { is_guard: true, .. }) => return true,
            Some(Seen { parent, .. }) => parent.filter(|pid| pid.as_u32() > 1),
        };
        let Some(parent) = parent else { return false };
        let Ok(above) = Seen::look(parent) else { return false };
        if above.is_some() {
            (child, at) = (above, parent);
            continue;
        }
        // It may have ended in between: then its child has another parent by now.
        match Seen::look(at) {
            Ok(Some(again)) if again.parent == Some(parent) => return false,
            Ok(again) => child = again,
            Err(_) => return false,
        }
    }
    true
}

/// A process that is there.
struct Seen {
    parent: Option<Pid>,
    is_guard: bool,
}

impl Seen {
    /// None when it is gone, or is not shown.
    ///
    /// # Errors
    /// The system shows no processes: the mode of the file is all there is.
    fn look(pid: Pid) -> Result<Option<Self>, sysinfo::Error> {
        let mut system = System::new()?;
        let wanted = ProcessRefreshKind::nothing().with_cmd(UpdateKind::Always);
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, wanted);
        Ok(system.process(pid).map(|process| Self {
            parent: process.parent(),
            is_guard: process.cmd().get(1).is_some_and(|word| word == OsStr::new("__tool")),
        }))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
