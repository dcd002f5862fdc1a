//! `mesh.json` in its folder: read at any moment, written by one process at a time, whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::contents::{Contents, ContentsFault};
use super::limits::FILE_BYTES_MAX;
use super::lock::{self, LockFault};

/// The registry's name in its folder.
const NAME: &str = "mesh.json";
/// What a file in the middle of a write ends with; left behind only by a process that was killed there.
const UNFINISHED: &str = ".unfinished";
/// How long others may write before a writer gives up: two hundred writers of the slowest disks that were seen.
const LOCK_WAIT: Duration = Duration::from_secs(20);

/// Why the registry's file could not be read or written. The file is as it was.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileError {
    /// The folder is not there and cannot be made.
    #[error("cannot make the registry's folder {}: {source}; make it, or name another one", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others held the lock all the time.
    #[error("{} is held by {by}; remove it if no such process is there", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// What it says of who holds it.
        by: String,
    },
    /// The file system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no file that this program may overwrite.
    #[error("{} is left alone: {why}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        why: String,
    },
}

/// The registry's file. Every method blocks.
#[derive(Debug, Clone)]
pub struct RegistryFile {
    folder: PathBuf,
    path: PathBuf,
    lock: PathBuf,
}

/// What tells one state of the file from the next without reading it. Every write makes a new file, so a change never keeps all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

/// What stands in the file now.
#[derive(Debug)]
pub enum Found {
    /// No file.
    Nothing,
    /// A file that somebody tore: why it does not parse.
    Torn(String),
    /// The registry.
    Contents(Contents),
}

impl RegistryFile {
    /// The registry of a folder, which is made when it is not there. The file itself is made by the first write.
    ///
    /// # Errors
    /// [`FileError::Folder`].
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, FileError> {
        let folder = folder.into();
        if let Err(source) = fs::create_dir_all(&folder) {
            return Err(FileError::Folder { path: folder, source });
        }
        Ok(Self { path: folder.join(NAME), lock: folder.join(format!("{NAME}.lock")), folder })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it, without the lock: what is there is always whole.
    ///
    /// # Errors
    /// [`FileError::Io`] and [`FileError::Foreign`].
    pub fn read(&self) -> Result<Found, FileError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(source) => return Err(self.io("read", &self.path, source)),
        };
        let mut bytes = Vec::new();
        let read = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|source| self.io("read", &self.path, source))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(self.foreign(format!("it has more than {FILE_BYTES_MAX} bytes")));
        }
        match Contents::parse(&bytes) {
            Ok(contents) => Ok(Found::Contents(contents)),
            Err(ContentsFault::Torn(why)) => Ok(Found::Torn(why)),
            Err(fault) => Err(self.foreign(fault.to_string())),
        }
    }

    /// Changes it: takes the lock, reads, lets `change` merge into what stands there, and replaces the file when `change`
    /// says so. Returns what it holds then. A lost or torn file counts as an empty one; a torn one is kept beside it under the name
    /// `mesh.json.torn`.
    ///
    /// # Errors
    /// [`FileError`]; the file is as it was.
    pub fn update(
        &self,
        now_ms: u64,
        change: impl FnOnce(&mut Contents) -> bool,
    ) -> Result<Contents, FileError> {
        self.update_stamped(now_ms, change).map(|(contents, _)| contents)
    }

    /// As [`Self::update`], with the stamp of what it returns.
    pub(super) fn update_stamped(
        &self,
        now_ms: u64,
        change: impl FnOnce(&mut Contents) -> bool,
    ) -> Result<(Contents, Option<Stamp>), FileError> {
        let held = lock::take(&self.lock, LOCK_WAIT).map_err(|fault| match fault {
            LockFault::Held(by) => FileError::Locked { path: self.lock.clone(), by },
            LockFault::Io(source) => self.io("create", &self.lock, source),
        })?;
        if held.inherited {
            self.sweep();
        }
        let mut contents = match self.read()? {
            Found::Contents(contents) => contents,
            Found::Nothing => Contents::default(),
            Found::Torn(why) => {
                tracing::warn!(path = %self.path.display(), why, "the registry's file is torn and is built anew");
                if let Err(error) = fs::copy(&self.path, self.folder.join(format!("{NAME}.torn"))) {
                    tracing::debug!(%error, "the torn file could not be kept");
                }
                Contents::default()
            }
        };
        if change(&mut contents) {
            self.replace(&contents.render(now_ms))?;
        }
        let stamp = self.stamp();
        drop(held);
        Ok((contents, stamp))
    }

    pub(super) fn stamp(&self) -> Option<Stamp> {
        let facts = fs::metadata(&self.path).ok()?;
        Some(Stamp { inode: facts.ino(), bytes: facts.len(), changed: (facts.mtime(), facts.mtime_nsec()) })
    }

    /// The new file is on the disk before it has the name, and the name is before anybody is told.
    fn replace(&self, bytes: &[u8]) -> Result<(), FileError> {
        let unfinished = self.folder.join(format!(".{NAME}.{:016x}{UNFINISHED}", rand::random::<u64>()));
        let written = self.write(&unfinished, bytes).map_err(|source| self.io("write", &unfinished, source));
        let replaced = written.and_then(|()| {
            let renamed =
                fs::rename(&unfinished, &self.path).and_then(|()| File::open(&self.folder)?.sync_all());
            renamed.map_err(|source| self.io("replace", &self.path, source))
        });
        if replaced.is_err() {
            drop(fs::remove_file(&unfinished)); // it may never have been made
        }
        replaced
    }

    fn write(&self, to: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(to)?;
        // A folder that several users share has given the file a mode by which all of them read it.
        if let Ok(before) = fs::metadata(&self.path) {
            file.set_permissions(before.permissions())?;
        }
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Removes what a process left that died in the middle of a write. Only with the lock.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&format!(".{NAME}.")) && name.ends_with(UNFINISHED) {
                drop(fs::remove_file(entry.path())); // the next one tries again
            }
        }
    }

    fn io(&self, what: &'static str, path: &Path, source: io::Error) -> FileError {
        FileError::Io { what, path: path.to_owned(), source }
    }

    fn foreign(&self, why: String) -> FileError {
        FileError::Foreign { path: self.path.clone(), why }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::node::Entry;

    fn entry(id: &str) -> Entry {
        Entry::read(id, json!({"name": id})).expect("an entry")
    }

    fn ids(contents: &Contents) -> Vec<&str> {
        contents.nodes().keys().map(String::as_str).collect()
    }

    fn contents(file: &RegistryFile) -> Contents {
        match file.read().expect("reads") {
            Found::Contents(contents) => contents,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_writer_finds_what_the_others_wrote() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = RegistryFile::open(folder.path().join("deep/shared")).expect("opens");
        assert!(matches!(file.read().expect("reads"), Found::Nothing));
        let first = file.update(1, |all| all.merge_entry(entry("a"))).expect("writes");
        let before = file.stamp();
        assert_eq!(ids(&first), ["a"]);
        let both = file.update(2, |all| all.merge_entry(entry("b"))).expect("writes");
        assert_eq!((ids(&both), ids(&contents(&file))), (vec!["a", "b"], vec!["a", "b"]));
        assert_ne!(before, file.stamp());
        let before = file.stamp();
        file.update(3, |all| all.merge_entry(entry("b"))).expect("nothing to write");
        assert_eq!(before, file.stamp(), "what changes nothing writes nothing");
        let left: Vec<_> = fs::read_dir(folder.path().join("deep/shared")).expect("lists").collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_torn_file_is_kept_aside_and_built_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = RegistryFile::open(folder.path()).expect("opens");
        fs::write(file.path(), "{\"version\": 1, \"nodes\": {\"a").expect("tears");
        assert!(matches!(file.read().expect("reads"), Found::Torn(_)));
        file.update(1, |all| all.merge_entry(entry("b"))).expect("writes");
        assert_eq!(ids(&contents(&file)), ["b"]);
        let kept = fs::read_to_string(folder.path().join("mesh.json.torn")).expect("kept");
        assert!(kept.ends_with("{\"a"), "{kept}");
    }

    #[test]
    fn a_file_of_a_later_version_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = RegistryFile::open(folder.path()).expect("opens");
        fs::write(file.path(), "{\"version\": 2}").expect("writes");
        let error = file.update(1, |all| all.merge_entry(entry("b"))).expect_err("refused");
        assert!(matches!(error, FileError::Foreign { .. }), "{error}");
        assert_eq!(fs::read_to_string(file.path()).expect("reads"), "{\"version\": 2}");
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_a_files_mode_stays() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let file = RegistryFile::open(folder.path()).expect("opens");
        file.update(1, |all| all.merge_entry(entry("a"))).expect("writes");
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o664)).expect("sets");
        let left = folder.path().join(format!(".{NAME}.00ff{UNFINISHED}"));
        fs::write(&left, "{").expect("writes");
        fs::write(folder.path().join("mesh.json.lock"), "process 1 on here").expect("writes");
        file.update(2, |all| all.merge_entry(entry("b"))).expect("takes over");
        assert!(!left.exists());
        assert_eq!(fs::metadata(file.path()).expect("is there").permissions().mode() & 0o777, 0o664);
    }
}
