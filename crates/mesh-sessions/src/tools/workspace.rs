//! A folder that tools work in and cannot leave.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cap_std::fs::{Dir, Metadata, OpenOptions, OpenOptionsExt, PermissionsExt};
use rustix::fs::OFlags;
use uuid::Uuid;

/// A folder that tools work in. Clones are the same one.
///
/// It is opened once: whatever is later put in its place under its name is another folder. Paths are walked from it by the
/// operating system (or step by step where that cannot), so that neither `..`, nor an absolute path, nor a symbolic link,
/// not even one put there at that very moment, leads outside. Links to places inside are followed.
#[derive(Clone, Debug)]
pub struct Workspace(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    dir: Dir,
    /// How its absolute name may begin.
    roots: [PathBuf; 2],
    /// Held from reading a file to replacing it.
    replacing: Mutex<()>,
}

/// A path could not be used as asked. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// It leads, by itself or by a link, out of the workspace.
    #[error("{path} leads out of the workspace; name a path inside of it")]
    Outside {
        /// The path.
        path: String,
    },
    /// There is nothing of this name.
    #[error("{path} does not exist")]
    Missing {
        /// The path.
        path: String,
    },
    /// A file was wanted, and it is something else.
    #[error("{path} is {what}, not a file")]
    NotAFile {
        /// The path.
        path: String,
        /// Such as `a folder`.
        what: &'static str,
    },
    /// A folder was wanted.
    #[error("{path} is not a folder")]
    NotAFolder {
        /// The path.
        path: String,
    },
    /// It belongs to the version control, which runs programs that such files name.
    #[error("{path} belongs to git; change it with git itself")]
    Protected {
        /// The path.
        path: String,
    },
    /// The file is larger than the bound.
    #[error("{path} has {bytes} bytes; the bound is {bytes_max}")]
    TooLarge {
        /// The path.
        path: String,
        /// Its length.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// Somebody else changed the file between its reading and its replacement.
    #[error("{path} was changed by something else just now; read it again")]
    Changed {
        /// The path.
        path: String,
    },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The path.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    Created,
    Replaced,
}

impl Workspace {
    /// Opens a folder that exists.
    ///
    /// # Errors
    /// What the operating system says; there is no folder, or it may not be read.
    pub fn open(root: &Path) -> io::Result<Self> {
        let real = root.canonicalize()?;
        let dir = Dir::open_ambient_dir(&real, cap_std::ambient_authority())?;
        let given = std::path::absolute(root)?;
        Ok(Self(Arc::new(Opened { dir, roots: [real, given], replacing: Mutex::new(()) })))
    }

    /// Its name when it was opened.
    pub fn root(&self) -> &Path {
        &self.0.roots[0]
    }

    /// A path from the root on: absolute ones that begin with the root's name are accepted, since models give such.
    pub(crate) fn relative(&self, path: &str) -> Result<PathBuf, PathError> {
        let given = Path::new(path.trim());
        if given.as_os_str().is_empty() {
            return Ok(PathBuf::from("."));
        }
        let inside = self.0.roots.iter().find_map(|root| given.strip_prefix(root).ok());
        match inside {
            Some(rest) if rest.as_os_str().is_empty() => Ok(PathBuf::from(".")),
            Some(rest) => Ok(rest.to_owned()),
            None if given.is_absolute() => Err(PathError::Outside { path: path.to_owned() }),
            None => Ok(given.to_owned()),
        }
    }

    pub(crate) fn dir(&self, path: &str) -> Result<(Dir, PathBuf), PathError> {
        let relative = self.relative(path)?;
        let opened = self.0.dir.open_dir(&relative).map_err(|error| fault(path, error))?;
        Ok((opened, relative))
    }

    pub(crate) fn root_dir(&self) -> &Dir {
        &self.0.dir
    }

    /// Opens a file to read; anything else is refused and never waited for.
    pub(crate) fn file(&self, path: &str) -> Result<(File, u64), PathError> {
        open_file(&self.0.dir, &self.relative(path)?, path)
    }

    /// Replaces a file, or creates it and the folders that it lies in. Others see either the old or the new one whole, and
    /// it keeps its permissions; through a link, what it leads to is replaced.
    ///
    /// `change` makes the new content from the old; replacements by this workspace come one after another.
    pub(crate) fn replace<E: From<PathError>>(
        &self,
        path: &str,
        bytes_max: u64,
        change: impl FnOnce(Option<&[u8]>) -> Result<Vec<u8>, E>,
    ) -> Result<Written, E> {
        let _replacing = self.0.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let (folder, name) = self.place(path)?;
        let before = existing(&folder, &name, path)?;
        let old = match before {
            Some(_) => {
                let (file, bytes) = open_file(&folder, Path::new(&name), path)?;
                Some(read_bounded(file, bytes, bytes_max, path)?)
            }
            None => None,
        };
        let new = change(old.as_deref())?;
        let temporary = format!(".{}.tmp", Uuid::now_v7().simple());
        let swap = || -> Result<(), PathError> {
            let io = |error| fault(path, error);
            write_new(&folder, &temporary, &new, before.as_ref()).map_err(io)?;
            let now = existing(&folder, &name, path)?;
            if now.as_ref().map(identity) != before.as_ref().map(identity) {
                return Err(PathError::Changed { path: path.to_owned() });
            }
            folder.rename(&temporary, &folder, &name).map_err(io)
        };
        if let Err(error) = swap() {
            let _ = folder.remove_file(&temporary);
            return Err(error.into());
        }
        Ok(if before.is_some() { Written::Replaced } else { Written::Created })
    }

    /// The folder, created when it is missing, and the name in it of a file that is to be written.
    fn place(&self, path: &str) -> Result<(Dir, OsString), PathError> {
        let io = |error| fault(path, error);
        let mut relative = self.relative(path)?;
        if let Ok(metadata) = self.0.dir.symlink_metadata(&relative)
            && metadata.is_symlink()
        {
            relative = self.0.dir.canonicalize(&relative).map_err(io)?;
        }
        let Some(Component::Normal(name)) = relative.components().next_back() else {
            return Err(PathError::NotAFile { path: path.to_owned(), what: "a folder" });
        };
        let parent = match relative.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        refuse_protected(&relative, path)?;
        let mut real = self.0.dir.canonicalize(parent);
        if real.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            self.0.dir.create_dir_all(parent).map_err(io)?;
            real = self.0.dir.canonicalize(parent);
        }
        let real = real.map_err(io)?;
        refuse_protected(&real, path)?;
        let folder = self.0.dir.open_dir(real).map_err(io)?;
        Ok((folder, name.to_owned()))
    }
}

/// Hooks and settings of git name programs that git runs later, for whoever calls it.
fn refuse_protected(relative: &Path, path: &str) -> Result<(), PathError> {
    let is_git = |part: Component<'_>| part.as_os_str().eq_ignore_ascii_case(".git");
    match relative.components().any(is_git) {
        true => Err(PathError::Protected { path: path.to_owned() }),
        false => Ok(()),
    }
}

/// The regular file of this name itself; none when there is none.
fn existing(folder: &Dir, name: &OsString, path: &str) -> Result<Option<Metadata>, PathError> {
    match folder.symlink_metadata(name) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata)),
        Ok(metadata) => Err(PathError::NotAFile { path: path.to_owned(), what: kind(&metadata) }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(fault(path, error)),
    }
}

/// What changes when a file is written or replaced.
fn identity(metadata: &Metadata) -> (u64, u64, i64, i64) {
    use cap_std::fs::MetadataExt as _;
    (metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec())
}

fn write_new(folder: &Dir, name: &str, content: &[u8], like: Option<&Metadata>) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    if like.is_some() {
        // Nobody may read what the old file kept from them, not even before its permissions are copied.
        options.mode(0o600);
    }
    let mut file = folder.open_with(name, &options)?;
    file.write_all(content)?;
    if let Some(like) = like {
        let mode = like.permissions().mode() & 0o777;
        file.set_permissions(cap_std::fs::Permissions::from_mode(mode))?;
    }
    file.sync_all()
}

/// Opens a regular file in a folder. A pipe is opened without waiting for its other end and then refused, a device as a rule
/// not even opened.
pub(crate) fn open_file(dir: &Dir, relative: &Path, path: &str) -> Result<(File, u64), PathError> {
    let regular = |metadata: &Metadata| match metadata.is_file() {
        true => Ok(()),
        false => Err(PathError::NotAFile { path: path.to_owned(), what: kind(metadata) }),
    };
    let io = |error| fault(path, error);
    regular(&dir.metadata(relative).map_err(io)?)?;
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or_default();
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags);
    let file = dir.open_with(relative, &options).map_err(io)?;
    regular(&file.metadata().map_err(io)?)?;
    let file = file.into_std();
    let bytes = file.metadata().map_err(io)?.size();
    Ok((file, bytes))
}

/// Reads a file to its end, whatever it says its length is.
pub(crate) fn read_bounded(file: File, bytes: u64, bytes_max: u64, path: &str) -> Result<Vec<u8>, PathError> {
    let too_large = |bytes| PathError::TooLarge { path: path.to_owned(), bytes, bytes_max };
    if bytes > bytes_max {
        return Err(too_large(bytes));
    }
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
    file.take(bytes_max + 1).read_to_end(&mut content).map_err(|error| fault(path, error))?;
    if content.len() as u64 > bytes_max {
        return Err(too_large(content.len() as u64));
    }
    Ok(content)
}

fn kind(metadata: &Metadata) -> &'static str {
    use cap_std::fs::FileTypeExt as _;
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_symlink() => "a link",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() || kind.is_block_device() => "a device",
        () => "something else",
    }
}

pub(crate) fn fault(path: &str, source: io::Error) -> PathError {
    let path = path.to_owned();
    // Said by the walk itself, not by the operating system: the path leads outside.
    if source.kind() == io::ErrorKind::PermissionDenied && source.raw_os_error().is_none() {
        return PathError::Outside { path };
    }
    match source.kind() {
        io::ErrorKind::NotFound => PathError::Missing { path },
        io::ErrorKind::NotADirectory => PathError::NotAFolder { path },
        io::ErrorKind::IsADirectory => PathError::NotAFile { path, what: "a folder" },
        _ => PathError::Io { path, source },
    }
}
