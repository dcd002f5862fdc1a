//! What a guard writes down of its child, and the sweep that ends leftovers by it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::process::ProcessId;

/// SIGKILL ends a process at once unless the kernel holds it (a read from a dead disk).
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// Larger files are not ours.
const RECORD_BYTES_MAX: u64 = 4096;

/// Who runs for whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) node: ProcessId,
    pub(crate) guard: ProcessId,
    /// Leads its own process group.
    pub(crate) child: ProcessId,
}

impl Record {
    /// Writes it whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("new");
        std::fs::write(&temporary, serde_json::to_vec(self)?)?;
        std::fs::rename(&temporary, path)
    }

    pub(crate) fn read(path: &Path) -> Option<Self> {
        let length = std::fs::metadata(path).ok()?.len();
        (length <= RECORD_BYTES_MAX).then(|| serde_json::from_slice(&std::fs::read(path).ok()?).ok())?
    }

    /// Ends guard and child, whoever still lives; true when both are gone.
    pub(crate) fn end(&self) -> bool {
        self.child.signal_group(Signal::KILL);
        self.child.signal(Signal::KILL);
        self.guard.signal(Signal::KILL);
        self.child.wait_gone(GONE_WITHIN) && self.guard.wait_gone(GONE_WITHIN)
    }
}

/// Where the records of a node's children are.
pub(crate) fn folder(home: &Path) -> PathBuf {
    home.join("run").join("children")
}

/// What a [`sweep`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Numbers of child processes that were still running and have been ended.
    pub ended: Vec<i32>,
    /// Numbers of child processes that could not be ended.
    pub stuck: Vec<i32>,
    /// Children of a node that still runs with the same home; they are left alone.
    pub in_use: usize,
}

/// Ends the child processes that a node which no longer runs has left behind, by recorded number and start, never by
/// name. Call it once at start, before the first instance. Blocks until they are gone, a few seconds at worst.
///
/// # Errors
/// Those of listing the records; a home without records is not one.
pub fn sweep(home: &Path) -> io::Result<Swept> {
    let mut swept = Swept::default();
    let entries = match std::fs::read_dir(folder(home)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(swept),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        let Some(record) = Record::read(&path) else {
            // Half a temporary file, or foreign: nothing can be ended by it.
            let _ = std::fs::remove_file(&path);
            continue;
        };
        if record.node.is_alive() {
            swept.in_use += 1;
            continue;
        }
        let was_alive = record.child.is_alive();
        if !record.end() {
            swept.stuck.push(record.child.pid);
            continue;
        }
        if was_alive {
            tracing::info!(pid = record.child.pid, "ended a process that an earlier run left behind");
            swept.ended.push(record.child.pid);
        }
        let _ = std::fs::remove_file(&path);
    }
    Ok(swept)
}
