//! Room on a disk.

use std::io;
use std::path::{Path, PathBuf};

use super::error::FetchError;

/// Bytes that may be written below `folder`, by the nearest folder that exists.
pub(crate) fn free_bytes(folder: &Path) -> io::Result<u64> {
    let mut there = folder;
    loop {
        match rustix::fs::statvfs(there) {
            Ok(facts) => return Ok(facts.f_bavail.saturating_mul(facts.f_frsize)),
            Err(rustix::io::Errno::NOENT) => match there.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => there = parent,
                _ => return Err(rustix::io::Errno::NOENT.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
}

/// Fails when `more` bytes and the reserve have no room in `folder`.
pub(crate) fn check_room(folder: &Path, more: u64, reserve: u64, kept: u64) -> Result<(), FetchError> {
    let free = free_bytes(folder).map_err(|error| FetchError::io(folder, error))?;
    let needed = more.saturating_add(reserve);
    if more > 0 && free < needed {
        return Err(FetchError::DiskFull { folder: folder.to_owned(), needed, free, kept });
    }
    Ok(())
}

/// What a failed write means.
pub(crate) fn write_fault(path: &Path, error: io::Error, more: u64, kept: u64) -> FetchError {
    let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    if !is_full {
        return FetchError::io(path, error);
    }
    let folder: PathBuf = path.parent().unwrap_or(path).to_owned();
    let free = free_bytes(&folder).unwrap_or(0);
    FetchError::DiskFull { folder, needed: more, free, kept }
}
