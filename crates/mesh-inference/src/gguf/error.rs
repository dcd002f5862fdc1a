//! Why a GGUF file cannot be read.

use std::io;
use std::path::{Path, PathBuf};

/// A GGUF file that cannot be read: which, what in it, where, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}, byte {offset}", file.display())]
pub struct GgufError {
    /// The file.
    pub file: PathBuf,
    /// What was being read, for example `tensor 12` or `value of llama.context_length`.
    pub what: String,
    /// Position in the file at which reading stopped, in bytes from its start.
    pub offset: u64,
    /// What is wrong.
    #[source]
    pub fault: Fault,
}

impl GgufError {
    pub(crate) fn new(file: &Path, what: impl Into<String>, offset: u64, fault: Fault) -> Self {
        Self { file: file.to_owned(), what: what.into(), offset, fault }
    }
}

/// What is wrong with a GGUF file. Reading changes nothing, so every one may be tried again once the file is mended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The operating system could not read it.
    #[error("reading failed")]
    Io(#[from] io::Error),
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it begins with {0:02x?}")]
    NotGguf([u8; 4]),
    /// A version other than 2 and 3.
    #[error("GGUF version {0} is not supported (2 and 3 are): convert the model with a current llama.cpp")]
    Version(u32),
    /// Written for a big-endian machine.
    #[error("a big-endian GGUF file is not supported: convert the model for little-endian machines")]
    BigEndian,
    /// The file ends too early.
    #[error("the file is cut off: it needs {needed} bytes and has {found}; download it again")]
    CutOff {
        /// Bytes that the file must have at least.
        needed: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A count or length above what any real model has.
    #[error("{found} is above the limit of {max}")]
    TooLarge {
        /// What the file says.
        found: u64,
        /// What is accepted.
        max: u64,
    },
    /// A type number that GGUF does not define.
    #[error("unknown type {0}")]
    UnknownType(u32),
    /// A value that contradicts the format or the rest of the file.
    #[error("{0}")]
    Invalid(String),
    /// A key that every model has is missing.
    #[error("the key {0} is missing")]
    Missing(&'static str),
    /// One file of a split model is missing.
    #[error("part {number} of {count} is missing: it belongs at {}", path.display())]
    PartMissing {
        /// Its number, from 1.
        number: u16,
        /// Number of parts.
        count: u16,
        /// Where it is expected.
        path: PathBuf,
    },
}
