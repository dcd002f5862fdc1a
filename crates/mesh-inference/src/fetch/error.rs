//! Why a model did not come.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::digest::Sha256Hash;
use super::source::SourceError;

/// Why a download ended without its model. What had come stays beside its place in a `.part` file, and the next try goes on
/// from there, except after [`FetchError::WrongHash`].
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The text names nothing that can be downloaded.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// No model folder is configured.
    #[error("there is no folder to put models into")]
    NoFolder,
    /// The server has no such file.
    #[error("{host} has no file {what}")]
    NotFound {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
    },
    /// The server does not give the file to this caller.
    #[error("{host} does not give {what} to this node (it answered {status})")]
    Denied {
        /// What was asked for.
        what: String,
        /// Who was asked.
        host: String,
        /// What it answered.
        status: u16,
        /// Whether it was asked with the hub's token.
        with_token: bool,
    },
    /// The server answers what no other try would change.
    #[error("{host} cannot be downloaded from: {why}")]
    Server {
        /// Who was asked.
        host: String,
        /// What is wrong with its answer.
        why: String,
    },
    /// The server did not answer, or broke off, too often in a row.
    #[error("{host} could not be reached: {why} ({tries} tries)")]
    Unreachable {
        /// Who was asked.
        host: String,
        /// What happened last.
        why: String,
        /// How often in a row.
        tries: u32,
    },
    /// What the server gives is not a GGUF file, such as the page of a login.
    #[error("what {host} gives for {what} is not a GGUF file")]
    NotGguf {
        /// What was asked for.
        what: String,
        /// Who gave it.
        host: String,
    },
    /// The whole file is not the one that was named. What had come was thrown away.
    #[error("{what} came with SHA-256 {got}, and {expected} was expected")]
    WrongHash {
        /// What was asked for.
        what: String,
        /// What was expected.
        expected: Sha256Hash,
        /// What came.
        got: Sha256Hash,
    },
    /// The file at the server was replaced during each of several tries.
    #[error("{what} changes at {host} faster than it can be downloaded")]
    Changing {
        /// What was asked for.
        what: String,
        /// Who gave it.
        host: String,
    },
    /// Another file has the name. It was not touched.
    #[error("there is another file at {}: {why}", .path.display())]
    Occupied {
        /// The file.
        path: PathBuf,
        /// How it differs.
        why: String,
    },
    /// The disk has no room for the rest. What had come is kept.
    #[error("the disk of {} is full: {needed} more bytes are needed and {free} are free", .folder.display())]
    DiskFull {
        /// Where there is no room.
        folder: PathBuf,
        /// Bytes that are still to come, with those to be left free.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are here already.
        kept: u64,
    },
    /// A file could not be read or written.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: Arc<io::Error>,
    },
    /// No member that is linked with this node has a model of this name.
    #[error("no member linked with this node has a model called `{0}`")]
    NoMember(String),
    /// Members have different files of this name.
    #[error("members have different files called `{name}`: {}", .files.join(", "))]
    Differs {
        /// The name.
        name: String,
        /// Which files.
        files: Vec<String>,
    },
    /// It was cancelled.
    #[error("the download was stopped")]
    Cancelled,
}

impl FetchError {
    /// What whoever asked can do about it.
    pub fn mend(&self) -> Option<String> {
        let mb = |bytes: &u64| bytes.div_ceil(1_000_000);
        Some(match self {
            Self::NoFolder => "name one in `[inference] model_dirs`".to_owned(),
            Self::NotFound { .. } => "look at the list of files on the repository's page".to_owned(),
            Self::Denied { with_token: false, .. } => {
                "for a gated or private model, accept its licence on its page and start the node with HF_TOKEN"
                    .to_owned()
            }
            Self::Denied { with_token: true, .. } => {
                "accept the model's licence on its page, and look whether HF_TOKEN may read it".to_owned()
            }
            Self::Unreachable { .. } | Self::Cancelled => {
                "pull it again: it goes on where it stopped".to_owned()
            }
            Self::NotGguf { .. } => "open the address in a browser; it may ask for a login".to_owned(),
            Self::WrongHash { .. } => "pull it again; if that does not help, the source is damaged".to_owned(),
            Self::Occupied { .. } => "move that file away, then pull again".to_owned(),
            Self::DiskFull { folder, needed, free, .. } => format!(
                "free {} MB on the disk of {}, or put another folder first in `[inference] model_dirs`; then pull \
                 again: it goes on where it stopped",
                mb(&needed.saturating_sub(*free)).max(1),
                folder.display()
            ),
            Self::NoMember(_) => {
                "give org/repo/file.gguf or a URL; `qmt-cli nodes` shows who is linked".to_owned()
            }
            Self::Differs { .. } => "give org/repo/file.gguf or a URL".to_owned(),
            _ => return None,
        })
    }

    pub(crate) fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), error: Arc::new(error) }
    }
}
