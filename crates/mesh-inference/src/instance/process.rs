//! Which process a number means: a pid together with its start, so that a number in new hands is never mistaken.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};
use serde::{Deserialize, Serialize};

/// A process, told apart from later ones with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it started, in the words of the platform; only ever compared for equality.
    pub start: String,
}

impl ProcessId {
    /// The living process with this number; `None` when there is none, or only a zombie.
    pub fn of(pid: i32) -> Option<Self> {
        start_of(pid).map(|start| Self { pid, start })
    }

    /// This process.
    pub fn own() -> Option<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        start_of(self.pid).is_some_and(|start| start == self.start)
    }

    /// Sends a signal to it, if it still runs.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Sends a signal to the group it leads, if it still runs.
    pub(crate) fn signal_group(&self, signal: Signal) {
        if self.is_alive() {
            signal_group(self.pid, signal);
        }
    }

    /// Waits until it is gone; false when it is not within `deadline`. Blocks.
    pub(crate) fn wait_gone(&self, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        while self.is_alive() {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

pub(crate) fn signal_group(leader: i32, signal: Signal) {
    // 0 and 1 would mean our own group and everybody.
    if leader > 1
        && let Some(pid) = Pid::from_raw(leader)
    {
        let _ = kill_process_group(pid, signal);
    }
}

#[cfg(target_os = "linux")]
fn start_of(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // The second field is the name in parentheses and may hold anything; `starttime` is the 22nd (proc(5)).
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    if matches!(fields.next()?, "Z" | "X" | "x") {
        return None;
    }
    let ticks = fields.nth(18)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Some(format!("{}:{ticks}", boot.trim()))
}

#[cfg(not(target_os = "linux"))]
fn start_of(pid: i32) -> Option<String> {
    if !exists(pid) {
        return None;
    }
    let output = std::process::Command::new("/bin/ps")
        .args(["-o", "stat=,lstart=", "-p", &pid.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (state, start) = text.trim().split_once(' ')?;
    (!state.starts_with('Z')).then(|| start.trim().to_owned())
}

/// Whether the number is in use, by a zombie too.
#[cfg_attr(target_os = "linux", expect(dead_code, reason = "Linux reads /proc"))]
fn exists(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| !matches!(test_kill_process(pid), Err(Errno::SRCH)))
}

/// Bytes of memory that a process holds, where the platform tells.
pub(crate) fn resident_bytes(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_no_other() {
        let own = ProcessId::own().unwrap();
        assert!(own.is_alive());
        assert!(!ProcessId { start: "another boot:1".into(), ..own }.is_alive());
    }

    #[test]
    fn a_zombie_is_gone() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let seen = ProcessId::of(pid);
        if let Some(seen) = seen {
            assert!(seen.wait_gone(Duration::from_secs(10)));
        }
        child.wait().unwrap();
        assert_eq!(ProcessId::of(pid), None);
    }
}
