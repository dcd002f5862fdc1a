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

/// Whether a process was halted by a signal (SIGSTOP, a debugger); false where the platform does not tell.
fn is_halted(pid: i32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    let state = |stat: String| stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    stat.ok().and_then(state).is_some_and(|state| matches!(state, 'T' | 't'))
}

/// Resolves once a process has been halted for so long. Never where the platform does not tell. Cancel safe.
pub(crate) async fn halted(pid: i32, within: Duration) {
    let mut since = None;
    loop {
        since = is_halted(pid).then(|| since.unwrap_or_else(tokio::time::Instant::now));
        if since.is_some_and(|since| since.elapsed() >= within) {
            return;
        }
        tokio::time::sleep(within / 8).await;
    }
}

/// What a process has used of its processors, in ticks of mostly 10 ms; `None` where the platform does not tell.
pub(crate) fn processor_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    // `utime` and `stime` are the 14th and 15th field (proc(5)), counted from before the name in parentheses.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()?.saturating_add(next()?))
}

/// Bytes of memory that a process holds, where the platform tells.
pub(crate) fn resident_bytes(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Whether a process listens on this port of 127.0.0.1; `None` where the platform does not tell.
pub(crate) fn is_listening(pid: i32, port: u16) -> Option<bool> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    // As proc(5) writes it: address and port in hexadecimal, the address in the order of the machine's bytes.
    let local = format!("{:08X}:{port:04X}", u32::from_ne_bytes([127, 0, 0, 1]));
    let inodes: Vec<String> = table
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields.get(1) == Some(&local.as_str()) && fields.get(3) == Some(&"0A");
            listens.then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
        })
        .collect();
    if inodes.is_empty() {
        return Some(false);
    }
    // A process that has just ended listens no more, whoever has the port now.
    let Ok(files) = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")) else {
        return Some(false);
    };
    let is_one = |file: std::fs::DirEntry| {
        let target = std::fs::read_link(file.path()).unwrap_or_default();
        inodes.iter().any(|inode| target.as_os_str() == inode.as_str())
    };
    Some(files.flatten().any(is_one))
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

    #[cfg(target_os = "linux")]
    #[test]
    fn a_listener_is_told_from_a_foreign_one() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(is_listening(i32::MAX, port), Some(false), "no such process");
        assert_eq!(is_listening(own, port), Some(true));
        assert!(!is_listening(1, port).unwrap_or(false), "another process");
        drop(listener);
        assert_eq!(is_listening(own, port), Some(false));
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
