//! Where a node keeps its files.

use std::path::{Path, PathBuf};

/// Name of the control socket inside the home folder.
pub const SOCKET_FILE: &str = "node.sock";

/// Neither `QMT_HOME` nor `HOME` says where the node's files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("neither QMT_HOME nor HOME is set; set QMT_HOME to the folder for the node's files")]
pub struct NoHome;

/// The folder of a node's files: `QMT_HOME`, else `~/.qmt`. An empty variable counts as unset; a relative `QMT_HOME` is
/// taken from the working directory.
pub fn home_from_env() -> Result<PathBuf, NoHome> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(home) = set("QMT_HOME") {
        return Ok(std::path::absolute(&home).unwrap_or(home));
    }
    set("HOME").map(|home| home.join(".qmt")).ok_or(NoHome)
}

/// The control socket of the node whose files are in `home`.
pub fn socket_path(home: &Path) -> PathBuf {
    home.join(SOCKET_FILE)
}
