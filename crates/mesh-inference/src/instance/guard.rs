//! The guard: a small process between the node and its child, so that the child never outlives the node.
//!
//! `qmt-node __child` runs [`main`] in one of two roles. See `docs/protocols/supervision.md`.
//! - the guard holds the read end of a pipe from the node. When the pipe closes, for whatever reason, it ends the
//!   child's process group: SIGTERM, then SIGKILL after a deadline;
//! - `--exec` turns itself into the child: it asks the kernel (Linux) to be killed with its guard, waits until the guard
//!   has recorded it, and executes the program.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpid, getppid, waitid};

use super::process::{ProcessId, signal_group};
use super::record::Record;

/// How the guard is started: its program and the arguments that lead to [`main`].
#[derive(Debug, Clone)]
pub struct GuardCommand {
    /// The program, normally the node's own.
    pub program: PathBuf,
    /// What comes before the guard's own arguments, normally `__child`.
    pub arguments: Vec<OsString>,
}

impl GuardCommand {
    /// This very program, called as `__child`.
    ///
    /// # Errors
    /// When the platform does not tell where the program is.
    pub fn own() -> io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, arguments: vec!["__child".into()] })
    }
}

/// Exit status of a guard that could not do its work; the reason is on its standard error.
const MISUSED: u8 = 125;
/// As shells say it: found, but not to be executed.
const NOT_EXECUTABLE: u8 = 126;

/// Runs the guard, or its `--exec` stage, with the arguments after `__child`. To be called from the main thread, before
/// anything else of the program has started.
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

/// Arguments of the guard role. `arguments` come before them, and lead to [`main`].
pub(crate) fn guard_arguments(
    command: &GuardCommand,
    record: &OsStr,
    node: &ProcessId,
    stop: Duration,
) -> Vec<OsString> {
    let mut all = command.arguments.clone();
    all.extend([record.to_owned(), node.pid.to_string().into(), node.start.clone().into()]);
    all.extend([stop.as_millis().to_string().into(), command.arguments.len().to_string().into()]);
    all
}

enum Event {
    NodeGone,
    ChildExited,
}

fn guard(arguments: &[OsString]) -> io::Result<ExitCode> {
    let [record, node, start, stop, prefix, program @ ..] = arguments else { return Err(misuse()) };
    let record = PathBuf::from(record);
    let node = ProcessId { pid: number(node)?, start: start.to_string_lossy().into_owned() };
    let stop = Duration::from_millis(number(stop)?);
    let prefix: usize = number(prefix)?;
    if program.is_empty() {
        return Err(misuse());
    }
    let (events, happened) = mpsc::sync_channel(2);
    let from_node = events.clone();
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = from_node.send(Event::NodeGone);
    });
    // The main thread spawns: the kernel's death signal follows the spawning thread, and this one lives to the end.
    let mut child = spawn_child(program, prefix)?;
    let pid = i32::try_from(child.id()).map_err(|_| misuse())?;
    let identity = |pid| ProcessId::of(pid).ok_or_else(|| io::Error::other("the child has gone at once"));
    let guard = identity(getpid().as_raw_nonzero().get())?;
    let written = identity(pid).and_then(|child| {
        let record_now = Record { node, guard, child };
        record_now.write(&record).map(|()| record_now)
    });
    let written = match written {
        Ok(written) => written,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    };
    let _ = writeln!(io::stdout(), "child {} {}", written.child.pid, written.child.start);
    let _ = io::stdout().flush();
    // Recorded: now it may become the program.
    drop(child.stdin.take().map(|mut go| go.write_all(b"go")));
    std::thread::spawn(move || {
        wait_without_reaping(pid);
        let _ = events.send(Event::ChildExited);
    });
    if let Ok(Event::NodeGone) = happened.recv() {
        signal_group(pid, Signal::TERM);
        if happened.recv_timeout(stop).is_err() {
            signal_group(pid, Signal::KILL);
        }
    }
    let status = reap(&mut child, pid)?;
    let _ = writeln!(io::stdout(), "{}", describe(status));
    let _ = std::fs::remove_file(&record);
    Ok(ExitCode::SUCCESS)
}

/// Starts the `--exec` stage of this program: it leads a group of its own and writes to the guard's standard error.
fn spawn_child(program: &[OsString], prefix: usize) -> io::Result<Child> {
    let log = || io::stderr().as_fd().try_clone_to_owned().map(Stdio::from);
    let lead = std::env::args_os().skip(1).take(prefix);
    Command::new(std::env::current_exe()?)
        .args(lead)
        .arg("--exec")
        .arg(getpid().as_raw_nonzero().get().to_string())
        .args(program)
        .stdin(Stdio::piped())
        .stdout(log()?)
        .stderr(log()?)
        .process_group(0)
        .spawn()
}

/// Waits for the child, which stays a zombie: as long as it is one, nobody else gets its number.
fn wait_without_reaping(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    while let Err(rustix::io::Errno::INTR) =
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
    {}
}

/// Waits for the child, ends what is left of its group, and takes its status.
fn reap(child: &mut Child, pid: i32) -> io::Result<ExitStatus> {
    wait_without_reaping(pid);
    signal_group(pid, Signal::KILL);
    child.wait()
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "exit 255".into(),
    }
}

fn execute(arguments: &[OsString]) -> io::Result<ExitCode> {
    let [guard, program, rest @ ..] = arguments else { return Err(misuse()) };
    let guard: i32 = number(guard)?;
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // Had the guard died before the line above, its signal would never come.
    if getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(guard) {
        return Err(io::Error::other("the guard has gone"));
    }
    let mut go = [0; 2];
    io::stdin().read_exact(&mut go)?;
    let error = Command::new(program).args(rest).stdin(Stdio::null()).exec();
    let _ = writeln!(io::stderr(), "cannot execute {}: {error}", program.display());
    Ok(ExitCode::from(NOT_EXECUTABLE))
}

fn number<N: std::str::FromStr>(text: &OsStr) -> io::Result<N> {
    text.to_str().and_then(|text| text.parse().ok()).ok_or_else(misuse)
}

fn misuse() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "this is an internal command of the node; it is not called by hand",
    )
}
