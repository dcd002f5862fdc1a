//! What the log says of a turn that is not over.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::session::Queued;
use crate::content::{Part, ToolCall, Usage};
use crate::event::{Body, Party};
use crate::ids::{PromptId, ToolCallId, TurnNumber};

/// A turn as its events have left it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Which.
    pub number: TurnNumber,
    /// The prompt that it answers.
    pub prompt: PromptId,
    /// Who spoke in it: first who prompted, then who steered. What each of them may not do, the turn may not do.
    pub speakers: Vec<Party>,
    /// What was said to it and no model has been told yet.
    pub unheard: Vec<Vec<Part>>,
    /// Model calls so far.
    pub model_calls: u32,
    /// Those that failed since the last answer.
    pub failures: u32,
    /// Whether a model was called and has not answered.
    pub is_asking: bool,
    /// What it has said since.
    pub partial: String,
    /// Whether the last answer wants no tools.
    pub has_answered: bool,
    /// The tools that the last answer wants.
    pub calls: Vec<Call>,
    /// Every id of a call in this turn.
    pub call_ids: BTreeSet<ToolCallId>,
    /// What it has used.
    pub usage: Usage,
    /// How long its host has worked on it; neither rests nor waits for decisions count.
    pub worked: Duration,
    /// Whether it is that of the parent of a fork, cut off by it.
    pub is_cut_off: bool,
    last_at_ms: u64,
}

/// A call of a tool in the last answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// What the model asked for.
    pub call: ToolCall,
    /// How far it is.
    pub state: CallState,
}

/// How far a call of a tool is. `again`: it has been started before, and may have run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallState {
    /// Nothing has happened.
    Wanted,
    /// Somebody is asked.
    Asked {
        /// See above.
        again: bool,
    },
    /// Somebody has allowed it.
    Allowed,
    /// Somebody has refused it.
    Refused {
        /// See above.
        again: bool,
    },
    /// It runs, or ran when the host went down.
    Started,
    /// It is over.
    Ended,
}

impl Turn {
    pub(crate) fn new(number: TurnNumber, prompt: PromptId, said: Option<Queued>, at_ms: u64) -> Self {
        let (mut speakers, mut unheard) = (Vec::new(), Vec::new());
        if let Some(Queued { by, brought_by, parts, .. }) = said {
            speakers.push(by);
            speakers.extend(brought_by);
            unheard.push(parts);
        }
        Self {
            number,
            prompt,
            speakers,
            unheard,
            model_calls: 0,
            failures: 0,
            is_asking: false,
            partial: String::new(),
            has_answered: false,
            calls: Vec::new(),
            call_ids: BTreeSet::new(),
            usage: Usage::default(),
            worked: Duration::ZERO,
            is_cut_off: false,
            last_at_ms: at_ms,
        }
    }

    /// Whether some call of a tool is not over.
    pub fn has_open_calls(&self) -> bool {
        self.calls.iter().any(|call| call.state != CallState::Ended)
    }

    /// Whether all was answered that was said.
    pub fn is_done(&self) -> bool {
        self.has_answered && self.unheard.is_empty() && !self.has_open_calls()
    }

    /// The call of this id in the last answer.
    pub fn call(&self, id: &ToolCallId) -> Option<&Call> {
        self.calls.iter().find(|call| call.call.id == *id)
    }

    /// Whether nothing can happen before somebody decides.
    pub fn waits_for_decision(&self) -> bool {
        let has = |wanted: fn(&CallState) -> bool| self.calls.iter().any(|call| wanted(&call.state));
        has(|state| matches!(state, CallState::Asked { .. })) && !has(|state| *state == CallState::Started)
    }

    /// Takes in an event of this turn; what belongs to the session's context is the session's to take in.
    pub(crate) fn apply(&mut self, body: &Body) {
        match body {
            Body::Steered { by, parts, .. } => {
                if !self.speakers.contains(by) {
                    self.speakers.push(by.clone());
                }
                self.unheard.push(parts.clone());
            }
            Body::ModelCalled { .. } => {
                self.model_calls = self.model_calls.saturating_add(1);
                (self.is_asking, self.has_answered) = (true, false);
                self.partial.clear();
                self.calls.clear();
            }
            Body::TextAdded { text, .. } => self.partial.push_str(text),
            Body::Answered { tool_calls, usage, .. } => {
                (self.is_asking, self.has_answered, self.failures) = (false, tool_calls.is_empty(), 0);
                self.partial.clear();
                self.usage += *usage;
                self.call_ids.extend(tool_calls.iter().map(|call| call.id.clone()));
                let wanted = |call: &ToolCall| Call { call: call.clone(), state: CallState::Wanted };
                self.calls = tool_calls.iter().map(wanted).collect();
            }
            Body::ModelFailed { .. } => {
                (self.is_asking, self.failures) = (false, self.failures.saturating_add(1));
                self.partial.clear();
            }
            Body::Compacted { usage, .. } => self.usage += *usage,
            Body::ToolAsked { call, .. } => self.change(call, |state| match state {
                CallState::Ended => CallState::Ended,
                state => CallState::Asked { again: state == CallState::Started },
            }),
            Body::ToolDecided { call, allowed, .. } => self.change(call, |state| match (state, allowed) {
                (CallState::Asked { .. }, true) => CallState::Allowed,
                (CallState::Asked { again }, false) => CallState::Refused { again },
                (state, _) => state,
            }),
            Body::ToolStarted { call, .. } => self.change(call, |state| match state {
                CallState::Ended => CallState::Ended,
                _ => CallState::Started,
            }),
            Body::ToolEnded { call, .. } => self.change(call, |_| CallState::Ended),
            _ => {}
        }
    }

    /// Another host goes on. What was decided about tools was decided for the host before, and so was what it may have run.
    pub(crate) fn take_over(&mut self, from: &Party) {
        if !self.speakers.contains(from) {
            self.speakers.push(from.clone());
        }
        for call in &mut self.calls {
            call.state = match call.state {
                CallState::Ended => CallState::Ended,
                CallState::Wanted | CallState::Allowed | CallState::Asked { again: false } => {
                    CallState::Wanted
                }
                CallState::Refused { again: false } => CallState::Refused { again: false },
                CallState::Started
                | CallState::Asked { again: true }
                | CallState::Refused { again: true } => CallState::Refused { again: true },
            };
        }
    }

    /// Counts the time since the event before; `rested`: nothing was done in it.
    pub(crate) fn count_time(&mut self, at_ms: u64, rested: bool) {
        if !rested && !self.waits_for_decision() {
            self.worked =
                self.worked.saturating_add(Duration::from_millis(at_ms.saturating_sub(self.last_at_ms)));
        }
        self.last_at_ms = at_ms;
    }

    fn change(&mut self, id: &ToolCallId, to: impl FnOnce(CallState) -> CallState) {
        if let Some(call) = self.calls.iter_mut().find(|call| call.call.id == *id) {
            call.state = to(call.state);
        }
    }
}
