//! What travels on a `blob/1` stream.

use serde::{Deserialize, Serialize};

/// Longest message, bytes: a list of [`FILES_MAX`] files with long names.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Files in one answer at most: the parts of a split model.
pub(crate) const FILES_MAX: usize = 200;
/// Longest name of a file, bytes.
pub(crate) const NAME_BYTES_MAX: usize = 255;

/// What the asker wants. One after the other on one stream, each answered before the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Which files of this name there are: the file's name, or the name of a model, which means all its files.
    Have {
        name: String,
        /// Only of this size.
        bytes: Option<u64>,
        /// Only with this SHA-256.
        sha256: Option<[u8; 32]>,
    },
    /// The hashes of a file's chunks.
    Hashes { root: [u8; 32] },
    /// One chunk of a file.
    Chunk { root: [u8; 32], index: u32 },
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// To `Have`; empty when there is none.
    Have(Vec<Has>),
    /// To `Have`: there is a file that fits, and its hashes are being made. Ask again.
    Hashing { done_bytes: u64, bytes: u64 },
    /// To `Hashes`: this many hashes of 32 bytes follow the message.
    Hashes { count: u32 },
    /// To `Chunk`: this many bytes follow the message.
    Chunk { bytes: u32 },
    /// There is no such file, chunk or hash list any more.
    Gone,
    /// Too many ask at once; try again later. The stream ends.
    Busy,
}

/// A file that the answerer has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Has {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: [u8; 32],
    pub(crate) root: [u8; 32],
}
