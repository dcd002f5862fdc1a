//! What goes wrong with a store.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::ids::{BlobId, EventNumber, PromptId, SessionId};

/// The file failed. Whatever was to be written is not, unless the machine went down at that moment.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The store was closed.
    #[error("the session store is closed")]
    Closed,
    /// No space is left. Everything acknowledged is there; what is asked for works again when there is space.
    #[error("no space is left for the session store; free some, or delete archived sessions")]
    Full,
    /// The file does not hold what was written to it. The next opening checks it wholly and saves what is whole.
    #[error("the session store is damaged ({what}); start the node again to have it checked and repaired")]
    Damaged {
        /// What is not as it was written.
        what: String,
    },
    /// SQLite failed otherwise: a read that the disk refuses, a lock that another program holds.
    #[error("the session store failed")]
    Sqlite(#[source] Arc<sqlx::Error>),
}

impl StorageError {
    pub(super) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }
}

/// Primary result codes of SQLite (sqlite.org/rescode.html).
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_NOTADB: i32 = 26;

impl From<sqlx::Error> for StorageError {
    fn from(error: sqlx::Error) -> Self {
        let code = match &error {
            sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => return Self::Closed,
            sqlx::Error::ColumnDecode { index, .. } => return Self::damaged(format!("column {index}")),
            sqlx::Error::Database(error) => error.code().and_then(|code| code.parse::<i32>().ok()),
            _ => None,
        };
        match code.map(|code| code & 0xff) {
            Some(SQLITE_FULL) => Self::Full,
            Some(SQLITE_CORRUPT | SQLITE_NOTADB) => Self::damaged(error.to_string()),
            _ => Self::Sqlite(Arc::new(error)),
        }
    }
}

/// A store did not open. Nothing is left open, and the file is as it was unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file, or one beside it, cannot be made, moved or locked.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process has it open.
    #[error("{} is open in another process; end that one first", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It was written by a newer version.
    #[error("{} was written by a newer version (schema {version}); run that one, or move the file away", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema's version in it.
        version: i64,
    },
    /// The schema could not be brought up to date.
    #[error("cannot bring {} up to date", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// The file failed while it was opened, checked or repaired.
    #[error("cannot open {}", path.display())]
    Storage {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: StorageError,
    },
}

/// A session was not made. Nothing has changed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// There is one of this id already, perhaps a deleted one that forks need.
    #[error("there is a session {0} already")]
    Exists(SessionId),
    /// The events do not begin with the one that makes a session, or cannot be appended.
    #[error("the first events of the session cannot be written")]
    Events(#[source] Box<AppendError>),
    /// The file failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A session was not forked. Nothing has changed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ForkError {
    /// The parent is not here.
    #[error("there is no session {0}")]
    NoSuchSession(SessionId),
    /// The parent has no such event.
    #[error("the session ends at event {last} and cannot be forked at {cut}")]
    NoSuchEvent {
        /// Where it was to be cut.
        cut: EventNumber,
        /// Its last event.
        last: EventNumber,
    },
    /// It is a fork of a fork of a fork, too many times.
    #[error(
        "the session is the {depth}th fork in a row, and no more are possible; export it and import the copy"
    )]
    TooDeep {
        /// How many forks stand before it.
        depth: u32,
    },
    /// There is a session of the fork's id already.
    #[error("there is a session {0} already")]
    Exists(SessionId),
    /// The events cannot be appended.
    #[error("the first events of the fork cannot be written")]
    Events(#[source] Box<AppendError>),
    /// The file failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Events were not appended: none of them.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// It is not here.
    #[error("there is no session {0}")]
    NoSuchSession(SessionId),
    /// Somebody else has written since: read from there and decide anew.
    #[error("the session is at event {last} by now")]
    Conflict {
        /// Its last event.
        last: EventNumber,
    },
    /// The session is over.
    #[error("the session is archived")]
    Archived,
    /// The log is written in another epoch, by another node when it is a later one.
    #[error("the session was handed over; its epoch is {epoch} by now")]
    HandedOver {
        /// The epoch in which it is written.
        epoch: u64,
    },
    /// A prompt of this id stands in the log already.
    #[error("prompt {prompt} stands in the session already, at event {at}")]
    PromptSeen {
        /// The prompt.
        prompt: PromptId,
        /// Its event.
        at: EventNumber,
    },
    /// An event names a blob that the store does not have: put it first.
    #[error("blob {0} is not in the store")]
    NoSuchBlob(BlobId),
    /// An event is longer than [`EVENT_BYTES_MAX`](super::EVENT_BYTES_MAX), or a session has as many as it can.
    #[error("{what} of {size} is beyond the bound of {bound}")]
    TooLarge {
        /// What is.
        what: &'static str,
        /// How large it is.
        size: u64,
        /// How large it may be.
        bound: u64,
    },
    /// A session starts with being created or forked, once; and its epochs only grow.
    #[error("an event stands where none of its kind may: {0}")]
    Misplaced(&'static str),
    /// The file failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Events could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// It is not here, or not any more.
    #[error("there is no session {0}")]
    NoSuchSession(SessionId),
    /// The log is shorter than what the reader says it has read: it read another one, or the end of this one was lost with
    /// its disk.
    #[error("the session ends at event {last}, before event {after}")]
    NoSuchEvent {
        /// What the reader has read.
        after: EventNumber,
        /// The last event.
        last: EventNumber,
    },
    /// The file failed, or does not hold what was written.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<sqlx::Error> for ReadError {
    fn from(error: sqlx::Error) -> Self {
        Self::Storage(error.into())
    }
}
