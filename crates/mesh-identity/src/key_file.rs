//! The file that keeps a node's key: one line, `qmt-node-key-v1 <64 hexadecimal digits>`, readable by its owner alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

use crate::NodeKey;
use crate::wire::{from_hex, to_hex};

const TAG: &str = "qmt-node-key-v1 ";
/// The line is 81 bytes; anything much longer is another file.
const FILE_BYTES_MAX: u64 = 256;

/// Why a key could not be read or made. No existing file was changed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// Others can read or write the file, so the key may not be this node's alone any more.
    #[error("the key file {} can be read by others (mode {mode:04o})", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is no key of ours, or was cut off.
    #[error("the key file {} does not hold one line of the form `{TAG}<64 hexadecimal digits>`", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// A key was to be written where a file is.
    #[error("the key file {} already exists", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {doing} the key file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl KeyFileError {
    /// What a person can do about it.
    pub fn mend(&self) -> String {
        match self {
            Self::Exposed { path, .. } => format!(
                "run `chmod 600 {}`; if somebody else may have read it, delete it instead: the node then gets a new \
                 identity and has to be invited again",
                quoted(path)
            ),
            Self::Malformed { path } => format!(
                "restore {} from a backup, or delete it: the node then gets a new identity and has to be invited again",
                quoted(path)
            ),
            Self::Exists { path } => format!("choose another name, or move {} away", quoted(path)),
            Self::Io { path, .. } => {
                format!("check that the user who runs the node owns {} and its folder", quoted(path))
            }
        }
    }
}

/// The key in `path`, made there first if no file is there.
///
/// Of several processes that do this at once all get the same key. A file that exists is never overwritten.
///
/// # Errors
/// [`KeyFileError`]; see [`load`].
pub fn load_or_create(path: &Path) -> Result<NodeKey, KeyFileError> {
    match load(path) {
        Err(KeyFileError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
        result => return result,
    }
    match create(path, &NodeKey::generate()) {
        Ok(()) | Err(KeyFileError::Exists { .. }) => load(path),
        Err(error) => Err(error),
    }
}

/// The key in `path`.
///
/// # Errors
/// [`KeyFileError::Exposed`] when the file's mode lets anybody but its owner in, [`KeyFileError::Malformed`] for any other
/// content, [`KeyFileError::Io`] when it cannot be read.
pub fn load(path: &Path) -> Result<NodeKey, KeyFileError> {
    let io = |doing| move |source| KeyFileError::Io { path: path.to_owned(), doing, source };
    let file = File::open(path).map_err(io("open"))?;
    check_mode(&file, path)?;
    let mut text = Zeroizing::new(String::with_capacity(128));
    match file.take(FILE_BYTES_MAX).read_to_string(&mut text) {
        Err(error) if error.kind() != ErrorKind::InvalidData => return Err(io("read")(error)),
        _ => {}
    }
    from_text(&text).ok_or_else(|| KeyFileError::Malformed { path: path.to_owned() })
}

/// Writes `key` to a new file, its folder included: all of it or nothing, durably, with mode 0600 from the first byte on.
///
/// # Errors
/// [`KeyFileError::Exists`] when something is there already, [`KeyFileError::Io`] when it cannot be written.
pub fn create(path: &Path, key: &NodeKey) -> Result<(), KeyFileError> {
    let io = |doing| move |source| KeyFileError::Io { path: path.to_owned(), doing, source };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    create_folder(folder).map_err(io("make the folder of"))?;
    let draft = Draft::write(folder, to_text(key).as_bytes()).map_err(io("write"))?;
    match fs::hard_link(&draft.path, path) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(KeyFileError::Exists { path: path.to_owned() });
        }
        Err(error) => return Err(io("link")(error)),
    }
    drop(draft);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("save"))
}

/// The line that a key file holds: how a recovery key is printed. Whoever reads it has the key.
pub fn to_text(key: &NodeKey) -> Zeroizing<String> {
    let digits = Zeroizing::new(to_hex(&*key.seed()));
    Zeroizing::new([TAG, &digits, "\n"].concat())
}

/// The key of such a line, white space around it allowed; `None` for any other text.
pub fn from_text(text: &str) -> Option<NodeKey> {
    let seed = Zeroizing::new(from_hex::<32>(text.trim().strip_prefix(TAG)?)?);
    Some(NodeKey::from_seed(*seed))
}

/// A file under a name of its own that is gone when this is dropped.
struct Draft {
    path: PathBuf,
}

impl Draft {
    fn write(folder: &Path, content: &[u8]) -> io::Result<Self> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let path = folder.join(format!(".qmt-key-{}.tmp", to_hex(&random)));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path)?;
        let draft = Self { path };
        file.write_all(content)?;
        file.sync_all()?;
        Ok(draft)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // A draft that stays behind is a nuisance of 81 bytes under mode 0600, and nobody's error to handle.
        let _ = fs::remove_file(&self.path);
    }
}

fn create_folder(folder: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

#[cfg(unix)]
fn check_mode(file: &File, path: &Path) -> Result<(), KeyFileError> {
    use std::os::unix::fs::PermissionsExt as _;
    let io = |source| KeyFileError::Io { path: path.to_owned(), doing: "inspect", source };
    let mode = file.metadata().map_err(io)?.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(KeyFileError::Exposed { path: path.to_owned(), mode }) }
}

#[cfg(not(unix))]
fn check_mode(_: &File, _: &Path) -> Result<(), KeyFileError> {
    Ok(())
}

/// The path as it can be pasted into a shell.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-~+:,@%".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
