//! The lock that writers of one folder take in turns: a file that only one of them can create.
//!
//! Its creator also holds an advisory lock on it, which the kernel drops with the process, whatever ends it. So a lock file
//! whose advisory lock is free belongs to nobody: whoever gets that lock, and still finds the same file under the name, has
//! taken over. No process id is believed and no file of somebody alive is ever removed. Where a file system has no advisory
//! locks, a lock file that stays the same for [`PATIENCE`] counts as left behind.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Writing takes milliseconds, so who holds a lock for so long is gone. Only for file systems without advisory locks.
const PATIENCE: Duration = Duration::from_secs(10);
/// The shortest and the longest pause between two tries. Fifty waiters of sixteen milliseconds each are no load.
const PAUSE_MS: (u64, u64) = (1, 16);
/// Bytes of a lock file that are read: a line that says who holds it.
const OWNER_BYTES_MAX: u64 = 256;

/// A lock that is held. It is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    file: File,
    /// Whether it was taken over from a process that died with it.
    pub(super) inherited: bool,
}

/// Why there is no lock.
#[derive(Debug)]
pub(super) enum LockFault {
    /// Somebody held it all the time: what the lock file says of them.
    Held(String),
    /// The file system.
    Io(io::Error),
}

/// Takes the lock, waiting for others at most so long. Blocks.
pub(super) fn take(path: &Path, wait: Duration) -> Result<Lock, LockFault> {
    let began = Instant::now();
    let mut watched: Option<(String, Instant)> = None;
    let mut pause = PAUSE_MS.0;
    loop {
        let owner = match attempt(path).map_err(LockFault::Io)? {
            Attempt::Taken(lock) => return Ok(lock),
            Attempt::Held(owner) => owner,
            Attempt::Unknown(owner) => {
                let since = watched.take().filter(|(seen, _)| *seen == owner).map(|(_, since)| since);
                let since = since.unwrap_or_else(Instant::now);
                if since.elapsed() >= PATIENCE {
                    set_aside(path, &owner).map_err(LockFault::Io)?;
                }
                watched = Some((owner.clone(), since));
                owner
            }
        };
        if began.elapsed() >= wait {
            return Err(LockFault::Held(owner));
        }
        std::thread::sleep(Duration::from_millis(rand::random_range(PAUSE_MS.0..=pause)));
        pause = (pause * 2).min(PAUSE_MS.1);
    }
}

enum Attempt {
    Taken(Lock),
    /// By a process that lives.
    Held(String),
    /// By a process of which the file system does not tell whether it lives.
    Unknown(String),
}

fn attempt(path: &Path) -> io::Result<Attempt> {
    let (file, inherited) = match OpenOptions::new().read(true).write(true).create_new(true).open(path) {
        Ok(file) => (file, false),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let open = |write| OpenOptions::new().read(true).write(write).open(path);
            // A lock file of another user is still one that can be waited for.
            let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
            match open(true).or_else(|error| if denied(&error) { open(false) } else { Err(error) }) {
                Ok(file) => (file, true),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(held_by_nobody_known()),
                Err(error) => return Err(error),
            }
        }
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) if is_at(path, &file)? => {}
        // Given back between opening and locking, or found empty by another one in that moment: the next try decides.
        Ok(()) => return Ok(held_by_nobody_known()),
        Err(TryLockError::WouldBlock) => return Ok(Attempt::Held(owner(&file))),
        Err(TryLockError::Error(_)) if inherited => return Ok(Attempt::Unknown(owner(&file))),
        // Created by us alone, on a file system without advisory locks.
        Err(TryLockError::Error(_)) => {}
    }
    let mut lock = Lock { path: path.to_owned(), file, inherited };
    if let Err(error) = lock.sign() {
        tracing::debug!(path = %path.display(), %error, "a lock of the registry does not say who holds it");
    }
    Ok(Attempt::Taken(lock))
}

fn held_by_nobody_known() -> Attempt {
    Attempt::Held("another process".to_owned())
}

/// Whether the name still means this very file.
fn is_at(path: &Path, file: &File) -> io::Result<bool> {
    let open = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Moves a lock file that was left behind out of the way, under a name that nobody else uses.
fn set_aside(path: &Path, owner: &str) -> io::Result<()> {
    let still = File::open(path).map(|file| self::owner(&file));
    if still.is_ok_and(|still| still == owner) {
        let aside = path.with_extension(format!("left-{:016x}", rand::random::<u64>()));
        fs::rename(path, &aside)?;
        fs::remove_file(aside)?;
    }
    Ok(())
}

fn owner(file: &File) -> String {
    let mut text = Vec::new();
    match file.take(OWNER_BYTES_MAX).read_to_end(&mut text) {
        Ok(_) if !text.is_empty() => String::from_utf8_lossy(&text).trim().to_owned(),
        _ => "another process".to_owned(),
    }
}

impl Lock {
    /// Says in the file who holds it, for people and for file systems without advisory locks.
    fn sign(&mut self) -> io::Result<()> {
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        let nonce: u64 = rand::random();
        self.file.set_len(0)?;
        self.file.rewind()?;
        writeln!(self.file, "process {} on {host}, {nonce:016x}", std::process::id())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before the advisory lock goes with the file, so that nobody can have taken over what is removed here.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a lock of the registry could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_held_lock_is_waited_for_and_its_owner_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        let held = take(&path, LONG).expect("takes");
        assert!(!held.inherited);
        let fault = take(&path, Duration::ZERO).expect_err("held");
        let LockFault::Held(owner) = fault else { panic!("{fault:?}") };
        assert!(owner.starts_with(&format!("process {} on ", std::process::id())), "{owner}");
        drop(held);
        assert!(!path.exists());
        drop(take(&path, Duration::ZERO).expect("free again"));
    }

    #[test]
    fn a_lock_file_of_a_dead_process_is_taken_over_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        fs::write(&path, "process 1 on elsewhere\n").expect("writes");
        let lock = take(&path, Duration::ZERO).expect("takes over");
        assert!(lock.inherited);
        drop(lock);
        assert!(!path.exists());
    }

    #[test]
    fn only_one_at_a_time_holds_it_while_many_try_and_some_leave_it_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lock");
        let (inside, rounds) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for worker in 0..8 {
                let (path, inside, rounds) = (&path, &inside, &rounds);
                scope.spawn(move || {
                    for round in 0..40 {
                        let lock = take(path, LONG).expect("takes");
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold the lock");
                        rounds.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        if (worker + round) % 5 == 0 {
                            leave_behind(lock);
                        }
                    }
                });
            }
        });
        assert_eq!(rounds.load(Ordering::SeqCst), 320);
    }

    /// What a killed process leaves: the file without its advisory lock.
    fn leave_behind(lock: Lock) {
        let lock = std::mem::ManuallyDrop::new(lock);
        lock.file.unlock().expect("unlocks");
    }
}
