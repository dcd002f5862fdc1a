//! A session as its events have left it: a fold that any node can make, and the same at each.

use std::collections::{BTreeMap, VecDeque};

use mesh_identity::{NodeId, Role, ScopeId};
use serde::{Deserialize, Serialize};

use super::context::{Context, Said};
use super::turn::Turn;
use crate::chain::{Chain, SignedChain};
use crate::content::{Part, Text};
use crate::event::{Body, Event, Party, Right, Share, ShareWith};
use crate::ids::{AgentId, EventNumber, PromptId, SessionName, TurnNumber};

/// A session as its events up to [`Session::last`] have left it. Stored, it is a snapshot: opening a long session reads that
/// and the events after it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Session {
    agent: Option<AgentId>,
    owner: Option<Party>,
    name: Option<SessionName>,
    labels: BTreeMap<String, String>,
    shares: Vec<Share>,
    last: EventNumber,
    epoch: u64,
    host: Option<NodeId>,
    /// The delegations that led here.
    #[serde(default)]
    delegated: Option<(ScopeId, SignedChain)>,
    /// Handed over, and the new host has not written yet.
    is_on_its_way: bool,
    rest: Rest,
    /// Whether nobody has prompted it since it was created or forked, and which of the two.
    fresh: Option<Fresh>,
    queue: VecDeque<Queued>,
    turns: u32,
    turn: Option<Turn>,
    context: Context,
}

/// Whether a session goes on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rest {
    /// It does.
    #[default]
    None,
    /// Not before it is resumed: by its host when nobody told it to rest, else by somebody.
    Suspended {
        /// Who told it to.
        by: Option<Party>,
    },
    /// Never again.
    Archived,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fresh {
    Created,
    Forked,
}

/// A prompt that no turn answers yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Queued {
    /// Its id.
    pub prompt: PromptId,
    /// Who prompted.
    pub by: Party,
    /// Who brought it here when the session was handed over, and answers for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub brought_by: Option<Party>,
    /// What was said.
    pub parts: Vec<Part>,
}

/// How a session stands, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// Nobody has prompted it.
    Created,
    /// It is a fork that nobody has prompted.
    Forked,
    /// A turn is under way: tools run, or a model has been asked.
    Processing,
    /// A turn is under way, and its answer is coming.
    Streaming,
    /// Nothing happens before somebody prompts, or decides about a tool.
    Waiting,
    /// It rests.
    Suspended,
    /// It is over.
    Archived,
}

impl State {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Forked => "forked",
            Self::Processing => "processing",
            Self::Streaming => "streaming",
            Self::Waiting => "waiting",
            Self::Suspended => "suspended",
            Self::Archived => "archived",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl Session {
    /// Whose session it is.
    pub fn agent(&self) -> Option<&AgentId> {
        self.agent.as_ref()
    }

    /// Whether it is a board, which no agent answers.
    pub fn is_board(&self) -> bool {
        self.agent.as_ref().is_some_and(AgentId::is_board)
    }

    /// Who may do everything with it.
    pub fn owner(&self) -> Option<&Party> {
        self.owner.as_ref()
    }

    /// What people call it.
    pub fn name(&self) -> Option<&SessionName> {
        self.name.as_ref()
    }

    /// Its labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// With whom it is shared.
    pub fn shares(&self) -> &[Share] {
        &self.shares
    }

    /// Its last event.
    pub fn last(&self) -> EventNumber {
        self.last
    }

    /// Of its host; the first has 1.
    pub fn epoch(&self) -> u64 {
        self.epoch.max(1)
    }

    /// The node that it was handed to last; none when it never was.
    pub fn host(&self) -> Option<&NodeId> {
        self.host.as_ref()
    }

    /// The delegations that led to it; none when a person began it.
    pub fn chain(&self) -> Option<Chain> {
        let (scope, signed) = self.delegated.clone()?;
        signed.believed(scope)
    }

    /// Whether it was handed over and its new host has not written yet: until then nobody goes on with it.
    pub fn is_on_its_way(&self) -> bool {
        self.is_on_its_way
    }

    /// Whether it goes on.
    pub fn rest(&self) -> &Rest {
        &self.rest
    }

    /// Prompts that no turn answers yet, oldest first.
    pub fn queue(&self) -> &VecDeque<Queued> {
        &self.queue
    }

    /// The turn that is under way.
    pub fn turn(&self) -> Option<&Turn> {
        self.turn.as_ref()
    }

    /// The number of the next turn.
    pub fn next_turn(&self) -> TurnNumber {
        TurnNumber(self.turns.saturating_add(1))
    }

    /// What models are told.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// How it stands.
    pub fn state(&self) -> State {
        match (&self.rest, &self.turn, self.fresh) {
            (Rest::Archived, ..) => State::Archived,
            (Rest::Suspended { .. }, ..) => State::Suspended,
            (Rest::None, Some(turn), _) if turn.waits_for_decision() => State::Waiting,
            (Rest::None, Some(turn), _) if turn.is_asking && !turn.partial.is_empty() => State::Streaming,
            (Rest::None, Some(turn), _) if !turn.is_cut_off => State::Processing,
            (Rest::None, _, Some(Fresh::Created)) => State::Created,
            (Rest::None, _, Some(Fresh::Forked)) => State::Forked,
            (Rest::None, ..) => State::Waiting,
        }
    }

    /// Whether it has work to do as soon as its host is up.
    pub fn has_work(&self) -> bool {
        let rests = matches!(self.rest, Rest::Archived | Rest::Suspended { by: Some(_) });
        !rests && (self.turn.is_some() || !self.queue.is_empty())
    }

    /// What the party may do with it; none: it is not to learn that the session exists.
    pub fn right_of(&self, party: &Party) -> Option<Right> {
        if party.scope.is_none() || self.owner.as_ref().is_some_and(|owner| owner.is(party)) {
            return Some(Right::Own);
        }
        let holds = |share: &&Share| match &share.with {
            ShareWith::Node(node) => *node == party.node,
            ShareWith::Role(scope, Role::Member) => {
                party.scope == Some(*scope) && party.role == Some(Role::Member)
            }
            ShareWith::Role(scope, Role::Client) => party.scope == Some(*scope) && party.role.is_some(),
        };
        self.shares.iter().filter(holds).map(|share| share.right).max()
    }

    /// Takes in the next event. What makes no sense where it stands (a log may come from elsewhere) changes nothing.
    pub fn apply(&mut self, event: &Event) {
        self.last = event.number;
        if let Some(turn) = &mut self.turn {
            let rested = matches!(event.body, Body::Resumed) || self.rest != Rest::None;
            turn.count_time(event.at_ms, rested);
        }
        self.apply_to_context(event);
        match &event.body {
            Body::Created { agent, owner } => {
                (self.agent, self.owner) = (Some(agent.clone()), Some(owner.clone()));
                self.fresh = Some(Fresh::Created);
            }
            Body::Forked { owner, .. } => self.fork(owner),
            Body::Delegated { scope, chain } if event.number == EventNumber(2) => {
                self.delegated = Some((*scope, chain.clone()));
            }
            Body::Named { name } => self.name.clone_from(name),
            Body::Labelled { labels } => self.labels.clone_from(labels),
            Body::Shared { shares } => self.shares.clone_from(shares),
            Body::Prompted { prompt, by, parts } => {
                self.fresh = None;
                let (prompt, by, parts) = (prompt.clone(), by.clone(), parts.clone());
                self.queue.push_back(Queued { prompt, by, brought_by: None, parts });
            }
            Body::Posted { .. } => self.fresh = None,
            Body::TurnStarted { turn, prompt } => self.start_turn(*turn, prompt, event.at_ms),
            Body::TurnEnded { .. } => self.turn = None,
            Body::Suspended { by, .. } if self.rest != Rest::Archived => {
                self.rest = Rest::Suspended { by: by.clone() };
            }
            Body::Resumed if self.rest != Rest::Archived => self.rest = Rest::None,
            Body::Archived { .. } => self.rest = Rest::Archived,
            Body::HandedOver { epoch, to } if *epoch > self.epoch() => {
                (self.epoch, self.host, self.is_on_its_way) = (*epoch, Some(*to), true);
            }
            Body::TakenOver { from, .. } => self.take_over(from),
            body => {
                if let Some(turn) = &mut self.turn {
                    turn.apply(body);
                }
            }
        }
    }

    fn start_turn(&mut self, number: TurnNumber, prompt: &PromptId, at_ms: u64) {
        let place = self.queue.iter().position(|queued| queued.prompt == *prompt);
        let said = place.and_then(|place| self.queue.remove(place));
        self.turns = self.turns.max(number.0);
        self.turn = Some(Turn::new(number, prompt.clone(), said, at_ms));
    }

    /// Another host goes on. What it was told it has from the one before, and trusts it as far as that one.
    fn take_over(&mut self, from: &Party) {
        self.is_on_its_way = false;
        if from.scope.is_none() {
            return; // its old host has it back
        }
        let theirs = |party: &mut Party| {
            if party.scope.is_none() {
                *party = from.clone();
            }
        };
        self.owner.iter_mut().for_each(theirs);
        for queued in &mut self.queue {
            theirs(&mut queued.by);
            queued.brought_by = Some(from.clone());
        }
        if let Some(turn) = &mut self.turn {
            turn.speakers.iter_mut().for_each(theirs);
            turn.take_over(from);
        }
    }

    /// Everything before was the parent's; from here on it is somebody else's session.
    fn fork(&mut self, owner: &Party) {
        self.owner = Some(owner.clone());
        (self.name, self.shares, self.delegated) = (None, Vec::new(), None);
        self.labels.clear();
        (self.epoch, self.host, self.is_on_its_way, self.rest) = (0, None, false, Rest::None);
        self.queue.clear();
        self.fresh = Some(Fresh::Forked);
        if let Some(turn) = &mut self.turn {
            turn.is_cut_off = true;
        }
    }

    fn apply_to_context(&mut self, event: &Event) {
        let number = event.number;
        match &event.body {
            Body::ModelCalled { .. } => self.hear(number),
            Body::Answered { text, tool_calls, usage, .. } if self.turn.is_some() => {
                let said = Said::Assistant { text: text.clone(), tool_calls: tool_calls.clone() };
                self.context.push(number, said);
                self.context.measure(*usage);
            }
            Body::ToolEnded { call, result, .. } => {
                let is_open = self.turn.as_ref().and_then(|turn| turn.call(call));
                if is_open.is_some_and(|call| call.state != super::turn::CallState::Ended) {
                    self.context.push(number, Said::Tool { call: call.clone(), parts: result.parts.clone() });
                }
            }
            Body::Compacted { through, summary, .. } => self.context.compact(*through, summary.clone()),
            Body::TurnEnded { .. } => {
                let Some(turn) = &mut self.turn else { return };
                if !turn.partial.is_empty() {
                    let text = Text::Inline(std::mem::take(&mut turn.partial));
                    self.context.push(number, Said::Assistant { text, tool_calls: Vec::new() });
                }
                // A prompt that no model was asked about is as good as never said.
                if turn.model_calls > 0 {
                    self.hear(number);
                }
            }
            _ => {}
        }
    }

    /// From this event on models are told what was said to the turn.
    fn hear(&mut self, number: EventNumber) {
        let Some(turn) = &mut self.turn else { return };
        for parts in std::mem::take(&mut turn.unheard) {
            self.context.push(number, Said::User(parts));
        }
    }
}
