//! What travels on a stream of `session/1`: one call each.
//!
//! Frames are `u32` big endian, then that many bytes, at most [`FRAME_BYTES_MAX`]. A frame that starts with a zero byte is a
//! piece of a content; every other is one JSON object, of these types.

use std::collections::BTreeMap;

use mesh_identity::NodeId;
use serde::{Deserialize, Serialize};

use crate::chain::SignedChain;
use crate::event::{Event, Party, Right, Share};
use crate::ids::{AgentId, BlobId, EventNumber, PromptId, SessionId, SessionName, ToolCallId, TurnNumber};

/// The longest frame.
pub const FRAME_BYTES_MAX: usize = (1 << 20) + 4096;
/// The longest piece of a content.
pub const PIECE_BYTES_MAX: usize = 256 * 1024;
/// The longest contents of one prompt, together.
pub const CONTENTS_BYTES_MAX: u64 = 64 << 20;
/// What a frame with a piece of a content starts with; no JSON does.
pub const PIECE: u8 = 0;

/// The first frame of the caller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Ask {
    /// Which agents may I begin sessions with? Answered by [`Tell::Agents`].
    Agents,
    /// Begin a session. The id is the caller's to choose; the same call again is the same session.
    Create {
        /// Its id.
        id: SessionId,
        /// Its agent.
        agent: AgentId,
        /// Its name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<SessionName>,
        /// Its labels.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        labels: BTreeMap<String, String>,
        /// The delegations that lead to it, the last one the caller's to this agent; none when a person begins it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        chain: Option<SignedChain>,
    },
    /// Begin a session that is another one up to an event (none: its last).
    Fork {
        /// The other.
        parent: SessionId,
        /// The event.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<EventNumber>,
        /// The new id.
        id: SessionId,
    },
    /// Say something. The contents follow, in pieces, one after the other.
    Prompt {
        /// To which session.
        session: SessionId,
        /// Under which id.
        prompt: PromptId,
        /// What.
        parts: Vec<PartHead>,
    },
    /// Write on a board. The contents follow like those of a prompt.
    Post {
        /// On which board.
        session: SessionId,
        /// Under which id.
        post: PromptId,
        /// The caller's agent that writes it; none for a person.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<AgentId>,
        /// What.
        parts: Vec<PartHead>,
    },
    /// Say something in the middle of a turn. The contents follow like those of a prompt.
    Steer {
        /// To which session.
        session: SessionId,
        /// In which turn; none for the one under way.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        turn: Option<TurnNumber>,
        /// What.
        parts: Vec<PartHead>,
    },
    /// Anything else that changes a session.
    Do {
        /// Which session.
        session: SessionId,
        /// What.
        what: Deed,
    },
    /// Which session has this id, name or beginning of an id? Answered by [`Tell::Session`].
    Resolve {
        /// The text.
        text: String,
        /// Which board, not which session.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        boards: bool,
    },
    /// Which sessions may I watch? Answered by [`Tell::Sessions`].
    List {
        /// Of this agent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<AgentId>,
        /// Older than that one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<SessionId>,
        /// At most so many.
        limit: u32,
        /// Boards, not sessions.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        boards: bool,
    },
    /// How does a session stand? Answered by [`Tell::Sessions`] with it alone.
    Show {
        /// Which session.
        session: SessionId,
    },
    /// Read a session from there on. Answered by [`Tell::Event`]s until somebody ends it.
    Attach {
        /// Which session.
        session: SessionId,
        /// The last event that the reader has.
        after: EventNumber,
    },
    /// Have a session that was handed over to you. Its log follows, in pieces and an empty one.
    Take {
        /// Which.
        session: SessionId,
        /// The epoch in which it is yours.
        epoch: u64,
    },
    /// A session's whole log. Answered by [`Tell::Log`], pieces and an empty one.
    Export {
        /// Which.
        session: SessionId,
    },
    /// Where were these words said, in the sessions that I may watch? Answered by [`Tell::Hits`].
    Search {
        /// Words that all stand in one prompt, answer or name.
        words: String,
        /// How many at most.
        limit: u32,
    },
    /// The bytes of a content. Answered by [`Tell::Content`] and pieces.
    Content {
        /// The session whose event names it.
        session: SessionId,
        /// Which.
        blob: BlobId,
    },
}

/// What can be done to a session beside speaking.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Deed {
    /// End a turn; none: the one under way, and all prompts that wait.
    Cancel {
        /// Which.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        turn: Option<TurnNumber>,
    },
    /// Allow a tool, or do not.
    Decide {
        /// The turn.
        turn: TurnNumber,
        /// The call.
        tool_call: ToolCallId,
        /// Whether it may run.
        allowed: bool,
    },
    /// Call it so.
    Name {
        /// None takes the name away.
        #[serde(default)]
        name: Option<SessionName>,
    },
    /// Label it so.
    Label {
        /// All labels.
        labels: BTreeMap<String, String>,
    },
    /// Share it so.
    Share {
        /// All shares.
        shares: Vec<Share>,
    },
    /// Rest.
    Suspend {
        /// Why.
        why: String,
    },
    /// Go on.
    Resume,
    /// Be over.
    Archive,
    /// Be another node's.
    HandOver {
        /// Which node's.
        to: NodeId,
    },
}

/// A content that is about to come in pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PartHead {
    /// UTF-8.
    Text {
        /// Its length.
        bytes: u64,
    },
    /// An image.
    Image {
        /// Such as `image/png`.
        media_type: String,
        /// Its length.
        bytes: u64,
    },
}

impl PartHead {
    /// The length of what comes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Text { bytes } | Self::Image { bytes, .. } => *bytes,
        }
    }
}

/// A later frame of somebody who attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// The last event that the reader has; the host may forget nothing for it, and sees how far behind it is.
    pub read: EventNumber,
}

/// A frame of the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "snake_case")]
pub enum Tell {
    /// It is done. The last frame.
    Done {
        /// The last event that was written for it, or the session's last; 0 when none is meant.
        number: EventNumber,
    },
    /// The agents. The last frame.
    Agents {
        /// In order of their ids.
        agents: Vec<AgentFacts>,
    },
    /// The session. The last frame.
    Session {
        /// Its id.
        id: SessionId,
    },
    /// Sessions, the newest first. The last frame.
    Sessions {
        /// They.
        sessions: Vec<SessionFacts>,
        /// Where the next page goes on; none: there is none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<SessionId>,
    },
    /// The log comes, in pieces and an empty one, and nothing after it.
    Log,
    /// Where the words were said. The last frame.
    Hits {
        /// The newest session first.
        hits: Vec<HitFacts>,
    },
    /// The content comes, in pieces, and nothing after it.
    Content {
        /// Its length.
        bytes: u64,
    },
    /// The next event.
    Event {
        /// It.
        event: Event,
    },
    /// The host is there.
    Beat,
    /// It is not done, or goes on no more. The last frame.
    Refused {
        /// Why, for programs.
        code: Code,
        /// Why, for people.
        text: String,
        /// The node to ask, with [`Code::Moved`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<NodeId>,
    },
}

/// An agent as a peer is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentFacts {
    /// Its id.
    pub id: AgentId,
    /// What it is for.
    pub description: String,
    /// Its model's name.
    pub model: String,
}

/// A session as a peer is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionFacts {
    /// Its id.
    pub id: SessionId,
    /// Its agent.
    pub agent: AgentId,
    /// Its owner; no scope: the host's own user.
    pub owner: Party,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<SessionName>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How it stands, in a word.
    pub state: String,
    /// The turn that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<TurnNumber>,
    /// Prompts that wait for their turn.
    #[serde(default)]
    pub waiting: u32,
    /// How far the caller may go; told of one session, not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right: Option<Right>,
    /// With whom it is shared; told of one session, to those who may change it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shares: Option<Vec<Share>>,
    /// What it is a fork of, and where it was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<(SessionId, EventNumber)>,
    /// Its last event.
    pub last: EventNumber,
    /// Of its host; the first has 1.
    pub epoch: u64,
    /// The node that it was handed to, when it is not the host's any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<NodeId>,
    /// When it was made, by its host's clock, in milliseconds since 1970.
    pub created_ms: u64,
    /// When its last event was written.
    pub updated_ms: u64,
}

/// An event in which somebody said it, as a peer is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HitFacts {
    /// The session.
    pub session: SessionId,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<SessionName>,
    /// The event.
    pub number: EventNumber,
    /// When it was written, by its host's clock, in milliseconds since 1970.
    pub at_ms: u64,
    /// What stands around the first of the words.
    pub excerpt: String,
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// It is not here, or the caller is not to know that it is.
    NoSuchSession,
    /// The caller may watch, and not more.
    NotAllowed,
    /// It is over.
    Archived,
    /// Another node is its host.
    Moved,
    /// The session is not taken over.
    NotTaken,
    /// No such agent is here for the caller.
    NoSuchAgent,
    /// It is a board, or it is none.
    WrongKind,
    /// No such turn is under way.
    NoSuchTurn,
    /// No such call of a tool waits for a decision.
    NoSuchCall,
    /// The session has no such event.
    NoSuchEvent,
    /// The content is not here.
    NoSuchContent,
    /// Too much of something.
    TooMuch,
    /// The text stands for several sessions.
    Ambiguous,
    /// Later it may be done; the same call may be made again.
    Busy,
    /// The host's store failed; the same call may be made again.
    Storage,
    /// The call does not follow the protocol.
    Malformed,
    /// A code of a later version.
    #[serde(other)]
    Unknown,
}

impl Code {
    /// Whether the same call may succeed a little later.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Busy | Self::Storage)
    }
}
