//! The guard: a small process between the node and a program that a tool started, so that nothing of it outlives the call.
//!
//! [`main`] runs in one of two roles, as the program that a [`Guard`] names.
//! - The guard holds the read end of a pipe from the node. When the pipe closes, for whatever reason, it ends the program's
//!   process group: SIGTERM, then SIGKILL after a while. When the program is gone it ends what the program left behind; on
//!   Linux that includes what moved to another group or session.
//! - `--exec` turns itself into the program: it asks the kernel (Linux) to be killed with its guard, confines itself when
//!   told to, and executes the program.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde::{Deserialize, Serialize};

use super::confinement::Confinement;

/// How the guard is started: a program, and the arguments that lead it to [`main`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// The program, normally the node's own.
    pub program: PathBuf,
    /// What comes before the guard's own arguments.
    pub arguments: Vec<OsString>,
}

/// What a guard is told, in its first argument.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// How many of the program's own arguments lead to [`main`].
    lead: usize,
    /// From SIGTERM to SIGKILL.
    grace_ms: u64,
    /// Whether what comes through the pipe is for the program.
    talks: bool,
    confinement: Option<Confinement>,
}

/// How a program is run behind a guard.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guarded<'a> {
    pub(crate) grace: Duration,
    pub(crate) talks: bool,
    pub(crate) confinement: Option<&'a Confinement>,
}

/// Exit status of a guard that could not do its work; the reason is on its standard error.
const MISUSED: u8 = 125;
/// As shells say it: found, but not to be executed.
const NOT_EXECUTABLE: u8 = 126;
/// As shells say it: a program ended by a signal has this more than the signal's number.
const SIGNALLED: u8 = 128;
/// As much is kept for a program that does not read; then it is ended. More than the node ever sends at once.
const UNREAD_BYTES_MAX: usize = 64 * 1024 * 1024;

impl Guard {
    /// The command that runs `program` behind this guard; its standard input is the pipe whose end ends it all.
    pub(crate) fn command(&self, how: &Guarded<'_>, program: &OsStr, arguments: &[OsString]) -> Command {
        let settings = Settings {
            lead: self.arguments.len(),
            grace_ms: u64::try_from(how.grace.as_millis()).unwrap_or(u64::MAX),
            talks: how.talks,
            confinement: how.confinement.cloned(),
        };
        let settings = serde_json::to_string(&settings).unwrap_or_default();
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(settings).arg(program).args(arguments).stdin(Stdio::piped());
        command
    }
}

/// Runs the guard, or its `--exec` stage, with the arguments after those that lead here. To be called from the main thread,
/// before anything else of the program has started.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let result = match arguments.split_first() {
        Some((first, rest)) if first == "--exec" => execute(rest),
        _ => guard(&arguments),
    };
    result.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "guard: {error}");
        ExitCode::from(MISUSED)
    })
}

enum Event {
    /// The pipe is closed: the call is over, or the node is gone.
    Closed,
    Exited,
}

fn guard(arguments: &[OsString]) -> io::Result<ExitCode> {
    let [settings_text, program @ ..] = arguments else { return Err(misuse()) };
    let settings = read_settings(settings_text)?;
    if program.is_empty() {
        return Err(misuse());
    }
    // A session of its own: no terminal to read from, and no Ctrl-C that was meant for the node.
    let _ = rustix::process::setsid();
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    // The main thread spawns: the kernel's death signal follows the spawning thread, and this one lives to the end.
    let lead = std::env::args_os().skip(1).take(settings.lead);
    let mut child = Command::new(std::env::current_exe()?)
        .args(lead)
        .arg("--exec")
        .arg(rustix::process::getpid().as_raw_nonzero().get().to_string())
        .arg(settings_text)
        .args(program)
        .stdin(if settings.talks { Stdio::piped() } else { Stdio::null() })
        .process_group(0)
        .spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(misuse)?;
    let (events, happened) = mpsc::sync_channel(2);
    let from_node = events.clone();
    let stdin = child.stdin.take();
    std::thread::spawn(move || {
        listen(stdin);
        let _ = from_node.send(Event::Closed);
    });
    std::thread::spawn(move || {
        wait_without_reaping(pid);
        let _ = events.send(Event::Exited);
    });
    if let Ok(Event::Closed) = happened.recv() {
        let _ = kill_process_group(pid, Signal::TERM);
        if happened.recv_timeout(Duration::from_millis(settings.grace_ms)).is_err() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
    let status = reap(&mut child, pid)?;
    #[cfg(target_os = "linux")]
    orphans::end_all();
    Ok(ExitCode::from(as_shells_say(status)))
}

fn read_settings(text: &OsStr) -> io::Result<Settings> {
    text.to_str().and_then(|text| serde_json::from_str(text).ok()).ok_or_else(misuse)
}

/// Reads the pipe to its end, and hands on what comes. It reads on when the program does not, else it would not see the end.
fn listen(stdin: Option<ChildStdin>) {
    let unread = Arc::new(AtomicUsize::new(0));
    let (pieces, taken) = mpsc::channel::<Vec<u8>>();
    if let Some(mut stdin) = stdin {
        let unread = unread.clone();
        std::thread::spawn(move || {
            for piece in taken {
                if stdin.write_all(&piece).is_err() {
                    return;
                }
                unread.fetch_sub(piece.len(), Ordering::Relaxed);
            }
        });
    } else {
        drop(taken);
    }
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match io::stdin().read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                let kept = unread.fetch_add(length, Ordering::Relaxed) + length;
                let is_gone = pieces.send(buffer[..length].to_vec()).is_err();
                if kept > UNREAD_BYTES_MAX && !is_gone {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Waits for the child, which stays a zombie: as long as it is one, nobody else gets its number.
fn wait_without_reaping(pid: Pid) {
    while let Err(rustix::io::Errno::INTR) =
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
    {}
}

/// Waits for the child, ends what is left of its group, and takes its status.
fn reap(child: &mut Child, pid: Pid) -> io::Result<ExitStatus> {
    wait_without_reaping(pid);
    let _ = kill_process_group(pid, Signal::KILL);
    child.wait()
}

fn as_shells_say(status: ExitStatus) -> u8 {
    let signalled = status.signal().and_then(|signal| u8::try_from(signal).ok());
    let exited = status.code().and_then(|code| u8::try_from(code).ok());
    exited.or(signalled.map(|signal| SIGNALLED.saturating_add(signal))).unwrap_or(u8::MAX)
}

/// What the program left behind: as its subreaper the guard is the parent of all of it.
#[cfg(target_os = "linux")]
mod orphans {
    use std::time::{Duration, Instant};

    use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, waitpid};

    /// Something that has more children than this takes time to end is left to the next parent.
    const PATIENCE: Duration = Duration::from_secs(5);

    pub(super) fn end_all() {
        let until = Instant::now() + PATIENCE;
        loop {
            let orphans = children();
            if orphans.is_empty() || Instant::now() > until {
                return;
            }
            // A child that is not waited for keeps its number: the signal meets nobody else.
            for pid in &orphans {
                let _ = kill_process(*pid, Signal::KILL);
            }
            for pid in orphans {
                let _ = waitpid(Some(pid), WaitOptions::empty());
            }
        }
    }

    fn children() -> Vec<Pid> {
        let me = getpid().as_raw_nonzero().get();
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| parent(*pid) == Some(me)).filter_map(Pid::from_raw).collect()
    }

    fn parent(pid: i32) -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in brackets and may have any characters; state and parent follow it.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    }
}

fn execute(arguments: &[OsString]) -> io::Result<ExitCode> {
    let [guard, settings, program, rest @ ..] = arguments else { return Err(misuse()) };
    let guard: i32 = guard.to_str().and_then(|text| text.parse().ok()).ok_or_else(misuse)?;
    let settings = read_settings(settings)?;
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // Had the guard died before the line above, its signal would never come.
    if rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(guard) {
        return Err(io::Error::other("the guard has gone"));
    }
    if let Some(confinement) = &settings.confinement {
        confinement.enter().map_err(io::Error::other)?;
    }
    let error = Command::new(program).args(rest).exec();
    let _ = writeln!(io::stderr(), "cannot execute {}: {error}", program.display());
    Ok(ExitCode::from(NOT_EXECUTABLE))
}

fn misuse() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "this is an internal command of the node; it is not called by hand",
    )
}
