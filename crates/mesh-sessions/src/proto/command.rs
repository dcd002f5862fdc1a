//! What people ask of a session, and why it may be refused.

use std::collections::BTreeMap;

use mesh_identity::NodeId;

use crate::content::Part;
use crate::event::{Right, Share};
use crate::ids::{AgentId, PromptId, SessionName, ToolCallId, TurnNumber};

/// The most prompts that wait for their turn. More is a program gone wild.
pub const QUEUE_MAX: usize = 64;
/// The most labels of a session.
pub const LABELS_MAX: usize = 64;
/// The longest key or value of a label, in bytes.
pub const LABEL_BYTES_MAX: usize = 256;
/// The most shares of a session.
pub const SHARES_MAX: usize = 256;
/// The most parts of a prompt.
pub const PARTS_MAX: usize = 64;
/// The most that may be said in the middle of one turn before a model hears it.
pub const STEERS_MAX: usize = 64;

/// What somebody asks of a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Is there a session that I may watch?
    Watch,
    /// Answer this. Answered when it stands in the log.
    Prompt {
        /// Chosen by the caller. That it was not seen before is for the store to know.
        prompt: PromptId,
        /// What is said; long texts are blobs already.
        parts: Vec<Part>,
    },
    /// Keep this on the board. Answered when it stands in the log.
    Post {
        /// Chosen by the caller. That it was not seen before is for the store to know.
        post: PromptId,
        /// The caller's agent that writes it; none for a person.
        agent: Option<AgentId>,
        /// What is written; long texts are blobs already.
        parts: Vec<Part>,
    },
    /// Hear this before your next model call.
    Steer {
        /// The turn that is meant; none for the one under way.
        turn: Option<TurnNumber>,
        /// What is said.
        parts: Vec<Part>,
    },
    /// End the turn. Answered when it has ended.
    Cancel {
        /// The turn that is meant; none for the one under way and all prompts that wait.
        turn: Option<TurnNumber>,
    },
    /// The tool may run, or may not.
    Decide {
        /// The turn.
        turn: TurnNumber,
        /// The call.
        call: ToolCallId,
        /// Whether it may.
        allowed: bool,
    },
    /// Be called so.
    Name {
        /// None takes the name away.
        name: Option<SessionName>,
    },
    /// Bear these labels.
    Label {
        /// All of them.
        labels: BTreeMap<String, String>,
    },
    /// Be shared so.
    Share {
        /// All shares.
        shares: Vec<Share>,
    },
    /// Rest. Answered when it rests: a tool that runs is ended, the turn goes on later.
    Suspend {
        /// Why.
        why: String,
    },
    /// Go on.
    Resume,
    /// Be over. Answered when every turn has ended.
    Archive,
    /// Be another node's. Answered when nothing runs any more and the log says so: the turn goes on there.
    HandOver {
        /// Which node's.
        to: NodeId,
    },
}

impl Command {
    /// What it takes to ask for this.
    pub fn needs(&self) -> Right {
        match self {
            Self::Watch => Right::Watch,
            Self::Prompt { .. }
            | Self::Post { .. }
            | Self::Steer { .. }
            | Self::Cancel { .. }
            | Self::Resume => Right::Prompt,
            _ => Right::Own,
        }
    }

    /// Whether it is within its bounds.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let too_much = |what: &'static str, size: usize, max: usize| {
            (size <= max).then_some(()).ok_or(Refusal::TooMuch { what, max })
        };
        match self {
            Self::Prompt { parts, .. } | Self::Post { parts, .. } | Self::Steer { parts, .. } => {
                too_much("parts", parts.len(), PARTS_MAX)
            }
            Self::Label { labels } => {
                let longest = labels.iter().map(|(key, value)| key.len().max(value.len())).max().unwrap_or(0);
                too_much("labels", labels.len(), LABELS_MAX)?;
                too_much("bytes of a label", longest, LABEL_BYTES_MAX)
            }
            Self::Share { shares } => too_much("shares", shares.len(), SHARES_MAX),
            _ => Ok(()),
        }
    }
}

/// Why a session does not do what it was asked. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It is not here, or the caller is not to know that it is.
    #[error("there is no such session here")]
    NoSuchSession,
    /// The caller may watch, and not more.
    #[error("this needs the right to {}", right_word(*needs))]
    NotAllowed {
        /// What it takes.
        needs: Right,
    },
    /// It is over.
    #[error("the session is archived; fork it to go on")]
    Archived,
    /// Another node is its host now.
    #[error("the session was handed to node {}", to.short())]
    Moved {
        /// Which.
        to: NodeId,
    },
    /// Its agent is not configured at this node.
    #[error("its agent is not configured at this node")]
    NoAgent,
    /// It is a board, on which one posts, or none, which one prompts.
    #[error("{}", if *is_board { "it is a board: post on it" } else { "it is no board: prompt its agent" })]
    WrongKind {
        /// Which of the two.
        is_board: bool,
    },
    /// Too many prompts wait already.
    #[error("{QUEUE_MAX} prompts wait already; try again when some are answered")]
    QueueFull,
    /// No turn is under way, or not the one that is meant.
    #[error("no such turn is under way")]
    NoSuchTurn,
    /// It has no such event.
    #[error("the session has no such event")]
    NoSuchEvent,
    /// Nobody asked about the call, or it is decided.
    #[error("no such call of a tool waits for a decision")]
    NoSuchCall,
    /// Too much of something.
    #[error("too many {what}: at most {max}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// The session is being suspended or handed over; it can be asked again when it rests, when its node is up again, or at
    /// its new host.
    #[error("the session is being suspended or handed over; try again")]
    Closing,
}

fn right_word(right: Right) -> &'static str {
    match right {
        Right::Watch => "watch the session",
        Right::Prompt => "prompt the session",
        Right::Own => "own the session",
    }
}
