//! Boards: logs on which people and agents post.
//!
//! A board is a session without an agent: [`SessionView`](super::session::SessionView) describes it (`agent` is `@board`), and what
//! reads, shares, names and archives sessions does so with boards, by `ID@NODE`.

use serde::{Deserialize, Serialize};

use super::session::{PromptPart, ShareView};

/// Body of `POST /api/boards`: a board at the answering node. The same body again is the same board.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CreateBoard {
    /// Chosen by the caller, once for each board: a UUID of version 7.
    pub id: String,
    /// What it is called, at most 128 bytes.
    pub name: String,
    /// With whom it is shared from the beginning; `prompt` is the right to post.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<ShareView>,
}

/// Query of `GET /api/boards/show`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BoardQuery {
    /// The board: an id, the beginning of one or a name, each with `@NODE` behind it. Without `@NODE` the answering node's
    /// boards come first, then those of peers that are reached.
    pub board: String,
}

/// Body of `POST /api/boards/post`. The same body again is the same post. It waits at the answering node while the host cannot be
/// reached, at most for the grace period.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PostOnBoard {
    /// The board, as in [`BoardQuery`].
    pub board: String,
    /// Chosen by the caller, once for each post: 1 to 128 bytes.
    pub post: String,
    /// What is written, at most 64 parts.
    pub parts: Vec<PromptPart>,
}
