//! Why something was not done with a session.

use crate::ids::AgentId;
use crate::proto::Refusal;
use crate::store::{AppendError, CreateError, ForkError, PutError, ReadError, ResolveError, StorageError};

/// A session was not asked, or refused. Unless the variant says otherwise nothing has changed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// It was asked and refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No such agent is configured here, or it is not open to the caller.
    #[error("there is no agent {0} here")]
    NoSuchAgent(AgentId),
    /// Too many requests wait for this session, or too many sessions are at work; try again later.
    #[error("the session is busy; try again")]
    Busy,
    /// The node is shutting down. What was asked may have been done: a prompt that is sent again under its id is one prompt.
    #[error("the node is shutting down")]
    Closed,
    /// A part of a prompt is too long.
    #[error("a part of {bytes} bytes is too long")]
    TooLong {
        /// How long.
        bytes: usize,
    },
    /// A text stands for several sessions.
    #[error("{0}")]
    Ambiguous(String),
    /// A session that a peer brings is not taken over here.
    #[error("not taken over: {why}")]
    NotTaken {
        /// Why not.
        why: String,
    },
    /// The store failed. What was asked may have been done.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl From<ReadError> for CommandError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Storage(error) => Self::Storage(error),
            _ => Self::Refused(Refusal::NoSuchSession),
        }
    }
}

impl From<PutError> for CommandError {
    fn from(error: PutError) -> Self {
        match error {
            PutError::TooLarge { size } => Self::TooLong { bytes: size },
            PutError::NoSuchSession(_) => Self::Refused(Refusal::NoSuchSession),
            PutError::Storage(error) => Self::Storage(error),
        }
    }
}

impl From<AppendError> for CommandError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Storage(error) => Self::Storage(error),
            AppendError::NoSuchSession(_) => Self::Refused(Refusal::NoSuchSession),
            AppendError::Archived => Self::Refused(Refusal::Archived),
            // Somebody else wrote at the same moment.
            _ => Self::Busy,
        }
    }
}

impl From<CreateError> for CommandError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Storage(error) => Self::Storage(error),
            CreateError::Events(error) => (*error).into(),
            _ => Self::Busy,
        }
    }
}

impl From<ForkError> for CommandError {
    fn from(error: ForkError) -> Self {
        match error {
            ForkError::Storage(error) => Self::Storage(error),
            ForkError::Events(error) => (*error).into(),
            ForkError::NoSuchEvent { .. } => Self::Refused(Refusal::NoSuchEvent),
            ForkError::TooDeep { .. } => {
                Self::Refused(Refusal::TooMuch { what: "forks in a row", max: 1000 })
            }
            _ => Self::Refused(Refusal::NoSuchSession),
        }
    }
}

impl From<ResolveError> for CommandError {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::Storage(error) => Self::Storage(error),
            ResolveError::Ambiguous { .. } => Self::Ambiguous(error.to_string()),
            _ => Self::Refused(Refusal::NoSuchSession),
        }
    }
}
