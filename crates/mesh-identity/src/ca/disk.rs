//! Files that are whole or not there, and one writer at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::FolderError;
use crate::wire::to_hex;

/// A signature takes well under a millisecond, so who waits longer waits for a process that hangs.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Of any file of a CA: the index of years has less.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What a file may be read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Its owner.
    Secret,
    /// Everybody.
    Public,
}

impl Mode {
    #[cfg(unix)]
    fn bits(self, of_folder: bool) -> u32 {
        match (self, of_folder) {
            (Self::Secret, false) => 0o600,
            (Self::Secret, true) => 0o700,
            (Self::Public, false) => 0o644,
            (Self::Public, true) => 0o755,
        }
    }
}

/// The right to change a folder; it ends with this value, and with the process however that ends.
pub(super) struct Lock(#[expect(dead_code, reason = "closing the file gives the lock back")] File);

impl Lock {
    /// Waits for the right, and sweeps away what a writer left that died.
    pub(super) fn take(folder: &Path, swept: &[PathBuf]) -> Result<Self, FolderError> {
        let path = folder.join(".lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(FolderError::io(&path, "open"))?;
        let since = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if since.elapsed() < LOCK_WAIT => {
                    std::thread::sleep(LOCK_PAUSE)
                }
                Err(TryLockError::WouldBlock) => {
                    let seconds = LOCK_WAIT.as_secs();
                    return Err(FolderError::Busy { path: folder.to_owned(), seconds });
                }
                Err(TryLockError::Error(source)) => return Err(FolderError::io(&path, "lock")(source)),
            }
        }
        swept.iter().for_each(|folder| sweep(folder));
        Ok(Self(file))
    }
}

/// Removes drafts; nobody else writes, so each is of a writer that is dead.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(".tmp") {
            let _ = fs::remove_file(entry.path()); // a draft that stays is a nuisance and nobody's error
        }
    }
}

/// Writes a file: whoever reads it, and whatever dies meanwhile, it is the old one or the new one.
pub(super) fn write(path: &Path, content: &[u8], mode: Mode) -> Result<(), FolderError> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(FolderError::io(path, "write")(ErrorKind::InvalidInput.into()));
    };
    let mut random = [0; 8];
    getrandom::fill(&mut random)
        .map_err(|error| FolderError::io(path, "write")(std::io::Error::other(error.to_string())))?;
    let draft = folder.join(format!(".{}.{}.tmp", name.to_string_lossy(), to_hex(&random)));
    let written = write_draft(&draft, content, mode)
        .and_then(|()| fs::rename(&draft, path))
        .and_then(|()| File::open(folder)?.sync_all());
    written.map_err(|source| {
        let _ = fs::remove_file(&draft); // the first failure is the one to tell
        FolderError::io(path, "write")(source)
    })
}

fn write_draft(draft: &Path, content: &[u8], mode: Mode) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode.bits(false));
    #[cfg(not(unix))]
    let _ = mode;
    let mut file = options.open(draft)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Adds whole lines to a file, durably. A line that a dead writer left unfinished goes first.
pub(super) fn append(path: &Path, lines: &str) -> Result<(), FolderError> {
    let io = |source| FolderError::io(path, "add to")(source);
    let mut file =
        OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(io)?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(io)?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let whole = u64::try_from(whole).unwrap_or(u64::MAX);
    file.set_len(whole).map_err(io)?;
    file.seek(SeekFrom::Start(whole)).map_err(io)?;
    file.write_all(lines.as_bytes()).map_err(io)?;
    file.sync_all().map_err(io)
}

/// The text of a file; none when there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<String>, FolderError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FolderError::io(path, "read")(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(FolderError::io(path, "read"))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// A key, read only if nobody but its owner can.
pub(super) fn read_key(path: &Path) -> Result<Zeroizing<String>, FolderError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(FolderError::NoKey { path: path.to_owned() });
        }
        Err(error) => return Err(FolderError::io(path, "read")(error)),
    };
    check_mode(&file, path)?;
    let mut text = Zeroizing::new(String::with_capacity(8192));
    file.take(64 * 1024).read_to_string(&mut text).map_err(FolderError::io(path, "read"))?;
    Ok(text)
}

#[cfg(unix)]
fn check_mode(file: &File, path: &Path) -> Result<(), FolderError> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = file.metadata().map_err(FolderError::io(path, "inspect"))?.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(FolderError::Exposed { path: path.to_owned(), mode }) }
}

#[cfg(not(unix))]
fn check_mode(_: &File, _: &Path) -> Result<(), FolderError> {
    Ok(())
}

/// Makes a folder and those above it.
pub(super) fn create_folder(path: &Path, mode: Mode) -> Result<(), FolderError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, mode.bits(true));
    #[cfg(not(unix))]
    let _ = mode;
    builder.create(path).map_err(FolderError::io(path, "make"))
}
