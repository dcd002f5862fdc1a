//! The file beside the database that keeps other processes out and says how the last one left it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// How the last process left the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Closed in order, or never opened.
    Clean,
    /// Not closed: killed, or the machine went down.
    Open,
    /// It saw damage.
    Damaged,
}

const OPEN: &[u8] = b"open\n";
const DAMAGED: &[u8] = b"damaged\n";

/// The lock, held until the last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct Lock(Arc<File>);

impl Lock {
    /// Takes it, and says how the database was left; none when another process has it.
    pub(super) fn take(path: &Path) -> io::Result<Option<(Self, Left)>> {
        let mut file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut text = Vec::new();
        (&mut file).take(64).read_to_end(&mut text)?;
        let left = match text.as_slice() {
            [] => Left::Clean,
            text if text == DAMAGED => Left::Damaged,
            _ => Left::Open,
        };
        Ok(Some((Self(Arc::new(file)), left)))
    }

    /// From now on the database counts as not closed in order.
    pub(super) fn mark_open(&self) -> io::Result<()> {
        self.write(OPEN)?;
        self.0.sync_all()
    }

    /// The next opening checks everything.
    pub(super) fn mark_damaged(&self) {
        if let Err(error) = self.write(DAMAGED) {
            tracing::warn!(%error, "the damage of the session store could not be noted for the next start");
        }
    }

    /// The database was closed in order; what was noted of damage stays.
    pub(super) fn mark_clean(&self) {
        let cleaned = self.read().and_then(|text| if text == DAMAGED { Ok(()) } else { self.write(b"") });
        if let Err(error) = cleaned {
            tracing::debug!(%error, "the session store's lock could not be emptied");
        }
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut file = &*self.0;
        let mut text = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.take(64).read_to_end(&mut text)?;
        Ok(text)
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        let mut file = &*self.0;
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(text)
    }
}
