//! The numbered events that a session is made of.

use std::collections::BTreeMap;

use mesh_identity::{NodeId, Role, ScopeId, Signature};
use serde::{Deserialize, Serialize};

use crate::chain::SignedChain;
use crate::content::{Part, Text, ToolCall, ToolResult, Usage};
use crate::ids::{AgentId, EventNumber, PromptId, SessionId, SessionName, ToolCallId, TurnNumber};
use crate::model::FinishReason;

/// One entry of a session's log. It is never changed and never taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its place in the log.
    pub number: EventNumber,
    /// When its host wrote it, in milliseconds since 1970 by the host's clock; for people, never for order.
    pub at_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub body: Body,
}

/// Who did something to a session: a node, as a link or the control socket has proved it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Party {
    /// The node.
    pub node: NodeId,
    /// The scope that its link was in; none for the host's own user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<ScopeId>,
    /// What it was in that scope when it did this; none for the host's own user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

impl Party {
    /// The host's own user.
    pub fn local(node: NodeId) -> Self {
        Self { node, scope: None, role: None }
    }

    /// A node at the other end of a link.
    pub fn peer(node: NodeId, scope: ScopeId, role: Role) -> Self {
        Self { node, scope: Some(scope), role: Some(role) }
    }

    /// Whether both are one node in one scope, whatever its role is by now.
    pub fn is(&self, other: &Self) -> bool {
        (self.node, self.scope) == (other.node, other.scope)
    }
}

/// What happened in a session.
///
/// A kind that this build does not know is kept and passed on as it came, and otherwise ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Body {
    /// The first event of a session that is no fork.
    Created {
        /// The agent whose session it is.
        agent: AgentId,
        /// Who may do everything with it.
        owner: Party,
    },
    /// The first event of a fork: all up to the cut is that of the parent.
    Forked {
        /// The parent.
        parent: SessionId,
        /// The last event of the parent that counts.
        cut: EventNumber,
        /// Who may do everything with it.
        owner: Party,
    },
    /// The session was begun for another agent, whose turn waits for what comes of it. Right behind the first event.
    Delegated {
        /// The scope that the delegations are signed for.
        scope: ScopeId,
        /// Who delegated to whom, as its host has verified it.
        chain: SignedChain,
    },
    /// The session is called so from now on.
    Named {
        /// None takes the name away.
        name: Option<SessionName>,
    },
    /// The session bears these labels from now on.
    Labelled {
        /// All of them.
        labels: BTreeMap<String, String>,
    },
    /// The session is shared so from now on.
    Shared {
        /// All shares; the owner needs none.
        shares: Vec<Share>,
    },
    /// Somebody spoke to the agent.
    Prompted {
        /// Chosen by the caller; a second prompt of the same id is the same prompt.
        prompt: PromptId,
        /// Who.
        by: Party,
        /// What was said.
        parts: Vec<Part>,
    },
    /// Somebody wrote on the board.
    Posted {
        /// Chosen by the caller; a second post of the same id is the same post.
        post: PromptId,
        /// Who.
        by: Party,
        /// The agent of that node that wrote it, as the node says; none for a person.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<AgentId>,
        /// What was written.
        parts: Vec<Part>,
    },
    /// Somebody spoke to the agent in the middle of a turn, for it to hear before its next model call.
    Steered {
        /// The turn.
        turn: TurnNumber,
        /// Who.
        by: Party,
        /// What was said.
        parts: Vec<Part>,
    },
    /// A turn began.
    TurnStarted {
        /// The turn.
        turn: TurnNumber,
        /// The prompt that it answers.
        prompt: PromptId,
    },
    /// A model is asked.
    ModelCalled {
        /// The turn.
        turn: TurnNumber,
        /// Its how-manieth call in this turn, repeats counted; the first is 1.
        attempt: u32,
        /// The model.
        model: String,
        /// The node that it runs at; none when not known yet or here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        peer: Option<NodeId>,
    },
    /// More of the model's answer.
    TextAdded {
        /// The turn.
        turn: TurnNumber,
        /// The piece.
        text: String,
    },
    /// More of what the model thinks before its answer.
    ReasoningAdded {
        /// The turn.
        turn: TurnNumber,
        /// The piece.
        text: String,
    },
    /// The model's answer is complete.
    Answered {
        /// The turn.
        turn: TurnNumber,
        /// All of its text: the pieces since [`Body::ModelCalled`] put together.
        text: Text,
        /// All of its reasoning; none when it showed none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reasoning: Option<Text>,
        /// The tools that it wants to be called.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<ToolCall>,
        /// Why it says no more.
        #[serde(default, skip_serializing_if = "FinishReason::is_done")]
        finish: FinishReason,
        /// What it used.
        usage: Usage,
    },
    /// A model call failed; its pieces since [`Body::ModelCalled`] count for nothing.
    ModelFailed {
        /// The turn.
        turn: TurnNumber,
        /// Why, for people; without keys and addresses of providers.
        why: String,
        /// When it is tried again, in milliseconds from this event; none when not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_ms: Option<u64>,
    },
    /// The policy wants somebody to allow a call of a tool; the turn waits.
    ToolAsked {
        /// The turn.
        turn: TurnNumber,
        /// The call, of the last [`Body::Answered`].
        call: ToolCallId,
        /// Why it asks.
        why: String,
    },
    /// Somebody answered [`Body::ToolAsked`].
    ToolDecided {
        /// The turn.
        turn: TurnNumber,
        /// The call.
        call: ToolCallId,
        /// Whether it may run.
        allowed: bool,
        /// Who decided.
        by: Party,
    },
    /// A tool is about to run. Written before it does: a call that has this and no [`Body::ToolEnded`] may have run.
    ToolStarted {
        /// The turn.
        turn: TurnNumber,
        /// The call.
        call: ToolCallId,
    },
    /// A running tool has printed something.
    ToolPrinted {
        /// The turn.
        turn: TurnNumber,
        /// The call.
        call: ToolCallId,
        /// The piece.
        text: String,
    },
    /// A call of a tool is over, whether it ran or not.
    ToolEnded {
        /// The turn.
        turn: TurnNumber,
        /// The call.
        call: ToolCallId,
        /// What came of it.
        result: ToolResult,
    },
    /// What came before is told to models by this summary from now on.
    Compacted {
        /// The last event that the summary covers.
        through: EventNumber,
        /// The summary.
        summary: Text,
        /// What the model that wrote it used.
        #[serde(default)]
        usage: Usage,
    },
    /// A turn is over: the one terminal event of its stream.
    TurnEnded {
        /// The turn.
        turn: TurnNumber,
        /// How.
        outcome: TurnOutcome,
        /// What all its model calls used.
        usage: Usage,
    },
    /// The session rests.
    Suspended {
        /// Why.
        why: String,
        /// Who told it to: it rests until it is told to go on. None: its host went down in order, and the session goes on
        /// by itself when the host is back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<Party>,
    },
    /// The session goes on.
    Resumed,
    /// The session is over; it can be read and forked, and not prompted.
    Archived {
        /// Who ended it.
        by: Party,
    },
    /// From the next event on this node writes the log, and nobody else.
    HandedOver {
        /// Greater than every epoch before; the first host has epoch 1.
        epoch: u64,
        /// The new host.
        to: NodeId,
    },
    /// The new host has the log, and goes on with it: the first event that it writes.
    TakenOver {
        /// Who brought it, as the link has proved it: what the log says of the user of the host before is said of this party,
        /// and what was asked for before runs as far as this party may have it run, too.
        from: Party,
        /// By which the old host has said that this is its log up to here; none when it took the session back.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signature: Option<Signature>,
    },
    /// Something that a later build wrote.
    #[serde(untagged)]
    Unknown(serde_json::Map<String, serde_json::Value>),
}

/// How a turn ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TurnOutcome {
    /// The agent is done.
    Done,
    /// Somebody ended it.
    Cancelled {
        /// Who.
        by: Party,
    },
    /// A limit of the turn was reached.
    LimitReached {
        /// Which.
        limit: Limit,
    },
    /// It could not go on.
    Failed {
        /// Why, for people.
        why: String,
    },
}

/// A limit of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Limit {
    /// Time since its start.
    Time,
    /// Tokens of all its model calls.
    Tokens,
    /// Money.
    Cost,
    /// Number of model calls.
    ModelCalls,
}

/// With whom a session is shared, and how far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// With whom.
    pub with: ShareWith,
    /// How far.
    pub right: Right,
}

/// With whom a session is shared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShareWith {
    /// One node.
    Node(NodeId),
    /// Everybody who has this role, or a greater one, in the scope.
    Role(ScopeId, Role),
}

/// What somebody may do with a session; each right includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Right {
    /// Read its events and fork it.
    Watch,
    /// Prompt, steer and cancel too.
    Prompt,
    /// Everything: name, label, share, archive, hand over, allow tools.
    Own,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_build_wrote_passes_through_unchanged() {
        let text = r#"{"number":7,"at_ms":12,"kind":"dreamt","of":{"sheep":3}}"#;
        let event: Event = serde_json::from_str(text).unwrap();
        assert!(matches!(event.body, Body::Unknown(_)), "{event:?}");
        let again = serde_json::to_value(&event).unwrap();
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(text).unwrap());
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let body = Body::TextAdded { turn: TurnNumber(2), text: "hel".to_owned() };
        let event = Event { number: EventNumber(9), at_ms: 1, body };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(text, r#"{"number":9,"at_ms":1,"kind":"text_added","turn":2,"text":"hel"}"#);
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}
