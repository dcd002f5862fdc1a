//! The folder of a node's files, held by one running node at a time.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

const LOCK_FILE: &str = "node.lock";

/// The home folder cannot be used. Nothing was changed but the folder itself, which may have been made.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Another node runs on the same folder.
    #[error("a node (process {pid}) already uses {}; stop it first, or set QMT_HOME to another folder", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
        /// Process id of the other node, as it wrote it; 0 when it is not known.
        pid: u32,
    },
    /// The folder or its lock file cannot be made or opened.
    #[error("cannot use the home folder {}", path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The home folder, locked until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Home {
    path: PathBuf,
    _lock: File,
}

impl Home {
    /// Makes the folder (mode 0700) if it is not there, and takes its lock.
    pub(crate) fn open(path: &Path) -> Result<Self, HomeError> {
        let io = |at: &Path, source| HomeError::Io { path: at.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| io(path, error))?;
        let lock_path = path.join(LOCK_FILE);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|error| io(&lock_path, error))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut text = String::new();
            let _ = lock.read_to_string(&mut text);
            return Err(HomeError::Busy { path: path.to_owned(), pid: text.trim().parse().unwrap_or(0) });
        }
        let write = |lock: &mut File| {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        };
        write(&mut lock).map_err(|error| io(&lock_path, error))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a folder of mode 0700 below the home folder.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, HomeError> {
        let path = self.path.join(name);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|source| HomeError::Io { path: path.clone(), source })?;
        Ok(path)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn second_node_on_one_home_is_refused_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let first = Home::open(folder.path()).unwrap();
        let refused = Home::open(folder.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        assert!(refused.contains("QMT_HOME"), "{refused}");
        drop(first);
        Home::open(folder.path()).unwrap();
    }

    #[test]
    fn folders_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let home = Home::open(&folder.path().join("deep/home")).unwrap();
        let below = home.folder("recovery").unwrap();
        for path in [home.path(), &below] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }
}
