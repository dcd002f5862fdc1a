//! A program behind a guard, and what it prints.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::environment::Environment;
use super::guard::{Guard, Guarded};

/// What the guard needs beyond the program's own grace to end it all and say so.
const GUARD_MARGIN: Duration = Duration::from_secs(8);
/// What a program that is gone may still have in its pipe comes at once; something that escaped its guard keeps it open.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a program is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself, with this status, as shells say it.
    Exited(i32),
    TimedOut,
    Cancelled,
}

/// A program behind its guard. Dropping it closes the pipe, by which the guard ends the program and what it started.
#[derive(Debug)]
pub(crate) struct Running {
    guard: Child,
    /// Closed to end the program.
    lifeline: Option<ChildStdin>,
    output: pipe::Receiver,
    grace: Duration,
}

impl Running {
    /// Starts a program whose standard output and standard error are one pipe, in the order in which it writes.
    pub(crate) fn spawn(
        guard: &Guard,
        how: &Guarded<'_>,
        environment: &Environment,
        folder: &Path,
        program: &OsStr,
        arguments: &[OsString],
    ) -> io::Result<Self> {
        let (output, input) = io::pipe()?;
        let mut command = guard.command(how, program, arguments);
        command.current_dir(folder).stdout(input.try_clone()?).stderr(input);
        environment.apply(&mut command);
        let mut command = Command::from(command);
        let mut guard = command.spawn()?;
        // The command holds the writing ends: with them open the pipe would never end.
        drop(command);
        let lifeline = guard.stdin.take();
        let output = pipe::Receiver::from_owned_fd(output.into())?;
        Ok(Self { guard, lifeline, output, grace: how.grace })
    }

    /// Waits for the end of the program, ends it when its time is up or it is cancelled, and hands on what it prints.
    pub(crate) async fn finish(
        &mut self,
        timeout: Duration,
        cancel: &CancellationToken,
        mut printed: impl FnMut(&[u8]),
    ) -> io::Result<End> {
        let mut deadline = Instant::now() + timeout;
        let (mut ending, mut exited) = (None, None);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            tokio::select! {
                () = cancel.cancelled(), if ending.is_none() && exited.is_none() => {
                    ending = Some(End::Cancelled);
                    deadline = self.end();
                }
                () = tokio::time::sleep_until(deadline) => match (ending, exited) {
                    (None, None) => {
                        ending = Some(End::TimedOut);
                        deadline = self.end();
                    }
                    _ => break,
                },
                status = self.guard.wait(), if exited.is_none() => {
                    exited = Some(status?);
                    deadline = Instant::now() + LAST_WORDS;
                }
                read = self.output.read(&mut buffer) => match read? {
                    0 => break,
                    length => printed(&buffer[..length]),
                },
            }
        }
        let status = match exited {
            Some(status) => status,
            None => match tokio::time::timeout(GUARD_MARGIN, self.guard.wait()).await {
                Ok(status) => status?,
                Err(_) => {
                    // The kernel ends the program with its guard.
                    self.guard.start_kill()?;
                    self.guard.wait().await?
                }
            },
        };
        Ok(ending.unwrap_or(End::Exited(status.code().unwrap_or(-1))))
    }

    /// Tells the guard to end the program; gives the time by which it must have.
    fn end(&mut self) -> Instant {
        drop(self.lifeline.take());
        Instant::now() + self.grace + GUARD_MARGIN
    }
}
