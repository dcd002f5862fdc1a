//! The Unix socket of the control API. Whoever may open it owns the node: mode 0600 in a folder of mode 0700.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use axum::Router;
use tokio::net::UnixListener;
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
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "the control socket failed");
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
