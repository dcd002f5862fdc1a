//! What comes next in a turn: decided from what its log says and what runs, and from nothing else, so that it is decided
//! alike after a crash.

use std::time::Duration;

use super::answer::{Asked, name_apart};
use super::context::{bytes_of_parts, tokens_of};
use super::core::{Asking, Closing, Core, ModelSaid, Output, Playbook, Running};
use super::rules::{Interrupted, Verdict};
use super::session::Rest;
use super::turn::{Call, CallState};
use crate::content::{Part, Text, ToolOutcome, ToolResult, Usage};
use crate::event::{Body, Limit, Party, TurnOutcome};
use crate::ids::{ToolCallId, TurnNumber};
use crate::model::{FinishReason, ModelError, ModelPiece};

impl Core {
    /// Does all that can be done before the next input.
    pub(super) fn advance(&mut self) {
        while self.step() {}
    }

    /// One step; false when there is none.
    fn step(&mut self) -> bool {
        if !self.is_mine() || *self.session.rest() == Rest::Archived {
            return false;
        }
        if self.closing.is_some() {
            return self.step_closing();
        }
        if *self.session.rest() != Rest::None {
            return false;
        }
        match (self.session.turn(), &self.stop) {
            (None, _) => self.step_idle(),
            (Some(_), Some(_)) => self.step_stop(),
            (Some(_), None) => self.step_turn(),
        }
    }

    fn step_closing(&mut self) -> bool {
        if let Some(Closing::Archive { by, .. }) = &self.closing {
            let by = by.clone();
            if self.session.turn().is_some() {
                self.stop.get_or_insert_with(|| (TurnOutcome::Cancelled { by }, Vec::new()));
                return self.step_stop();
            }
            let waiting = self.session.queue().iter().map(|queued| (queued.prompt.clone(), by.clone()));
            self.dropped = waiting.collect();
            self.drop_prompts();
        }
        if !self.is_quiet() {
            return false;
        }
        match self.closing.take() {
            Some(Closing::Suspend { why, by, replies }) => {
                self.leave_turn();
                self.append(Body::Suspended { why, by });
                replies.into_iter().for_each(|id| self.reply(id, Ok(())));
            }
            Some(Closing::Archive { by, reply }) => {
                self.append(Body::Archived { by });
                self.reply(reply, Ok(()));
            }
            Some(Closing::HandOver { to, reply }) => {
                self.leave_turn();
                let epoch = self.session.epoch().saturating_add(1);
                self.append(Body::HandedOver { epoch, to });
                self.reply(reply, Ok(()));
            }
            None => {}
        }
        true
    }

    /// The turn goes on later, or elsewhere. One that was to end has not, and whoever wanted it is told so.
    fn leave_turn(&mut self) {
        for waiting in self.stop.take().map(|stop| stop.1).unwrap_or_default() {
            self.reply(waiting, Err(super::Refusal::Closing));
        }
        self.retry_at = None;
        self.undecided.clear();
    }

    fn step_idle(&mut self) -> bool {
        self.drop_prompts();
        if let Some((_, waiting)) = self.stop.take() {
            waiting.into_iter().for_each(|id| self.reply(id, Ok(())));
        }
        let Some(prompt) = self.session.queue().front().map(|queued| queued.prompt.clone()) else {
            return false;
        };
        self.worked = Duration::ZERO;
        self.summary_failures = 0;
        let turn = self.session.next_turn();
        self.append(Body::TurnStarted { turn, prompt });
        true
    }

    /// Ends prompts that wait and are not to be answered: each of them with a turn of its own.
    fn drop_prompts(&mut self) {
        for (prompt, by) in std::mem::take(&mut self.dropped) {
            if self.session.queue().iter().any(|queued| queued.prompt == prompt) {
                let turn = self.session.next_turn();
                self.append(Body::TurnStarted { turn, prompt });
                let outcome = TurnOutcome::Cancelled { by };
                self.append(Body::TurnEnded { turn, outcome, usage: Usage::default() });
            }
        }
    }

    /// Ends whatever runs; whether nothing does.
    fn is_quiet(&mut self) -> bool {
        if self.asked.is_some() {
            self.flush();
            self.asked = None;
            self.outputs.push_back(Output::AbortModel);
        }
        for (call, running) in &mut self.running {
            if !std::mem::replace(&mut running.is_cancelled, true) {
                self.outputs.push_back(Output::CancelTool { call: call.clone() });
            }
        }
        self.running.is_empty()
    }

    fn step_stop(&mut self) -> bool {
        if !self.is_quiet() {
            return false;
        }
        let (Some(turn), Some((outcome, waiting))) = (self.session.turn(), self.stop.take()) else {
            return false;
        };
        let (turn, open) = (turn.number, open_calls(&turn.calls));
        for (call, state) in open {
            let (result, why) = match may_have_run(state) {
                true => (ToolOutcome::Unknown, MAY_HAVE_RUN),
                false => (ToolOutcome::Cancelled, "the turn was ended before it ran"),
            };
            self.append(Body::ToolEnded { turn, call, result: told(result, why) });
        }
        self.end_turn(turn, outcome);
        waiting.into_iter().for_each(|id| self.reply(id, Ok(())));
        true
    }

    fn end_turn(&mut self, turn: TurnNumber, outcome: TurnOutcome) {
        let usage = self.session.turn().map(|turn| turn.usage).unwrap_or_default();
        self.append(Body::TurnEnded { turn, outcome, usage });
        self.retry_at = None;
        self.undecided.clear();
    }

    fn stop_with(&mut self, outcome: TurnOutcome) -> bool {
        self.stop.get_or_insert_with(|| (outcome, Vec::new()));
        true
    }

    fn step_turn(&mut self) -> bool {
        let Some(turn) = self.session.turn() else { return false };
        if turn.is_cut_off {
            let Some(by) = self.session.owner().cloned() else { return false };
            return self.stop_with(TurnOutcome::Cancelled { by });
        }
        if turn.is_done() {
            self.end_turn(turn.number, TurnOutcome::Done);
            return true;
        }
        let Some(playbook) = self.playbook.clone() else {
            let why = super::Refusal::NoAgent.to_string();
            return self.stop_with(TurnOutcome::Failed { why });
        };
        if let Some(limit) = self.limit_reached(&playbook) {
            return self.stop_with(TurnOutcome::LimitReached { limit });
        }
        match turn.has_open_calls() {
            true => self.step_tools(&playbook),
            false => self.step_model(&playbook),
        }
    }

    fn limit_reached(&self, playbook: &Playbook) -> Option<Limit> {
        let (turn, limits) = (self.session.turn()?, &playbook.limits);
        let tokens = turn.usage.input_tokens.saturating_add(turn.usage.output_tokens);
        let reached = |limit: Option<u64>, used: u64| limit.is_some_and(|limit| used >= limit);
        if limits.time.is_some_and(|time| self.worked >= time) {
            Some(Limit::Time)
        } else if reached(limits.tokens, tokens) {
            Some(Limit::Tokens)
        } else if reached(limits.cost_micros, turn.usage.cost_micros.unwrap_or(0)) {
            Some(Limit::Cost)
        } else {
            let is_next = self.asked.is_none() && !turn.has_open_calls();
            (is_next && turn.model_calls >= limits.model_calls).then_some(Limit::ModelCalls)
        }
    }

    fn step_model(&mut self, playbook: &Playbook) -> bool {
        let Some(turn) = self.session.turn() else { return false };
        if self.asked.is_some() || self.retry_at.is_some() {
            return false;
        }
        let through = self.to_be_summarized(playbook);
        let asking = match through {
            Some(through) => Asking::Summary { through },
            None => {
                let attempt = turn.model_calls.saturating_add(1);
                let (model, peer) = (playbook.model.clone(), playbook.peer);
                self.append(Body::ModelCalled { turn: turn.number, attempt, model, peer });
                Asking::Answer
            }
        };
        self.calls += 1;
        self.asked = Some(Asked::new(self.calls, asking, self.now.instant));
        self.outputs.push_back(Output::CallModel { call: self.calls, asking });
        false
    }

    /// The last event of what has to become a summary before a model is told more.
    fn to_be_summarized(&self, playbook: &Playbook) -> Option<crate::ids::EventNumber> {
        let (compaction, turn) = (playbook.compaction?, self.session.turn()?);
        if self.summary_failures > playbook.limits.retries {
            return None;
        }
        let unheard = turn.unheard.iter().map(|parts| bytes_of_parts(parts)).fold(0, u64::saturating_add);
        let tokens = self.session.context().tokens().saturating_add(tokens_of(unheard));
        let is_due = tokens >= compaction.at_tokens;
        let has_news = !turn.unheard.is_empty();
        is_due.then(|| self.session.context().cut(compaction.keep_tokens, has_news)).flatten()
    }

    /// Takes in what a model says; of a call that was given up, nothing.
    pub(super) fn hear(&mut self, call: u64, said: ModelSaid) {
        let now = self.now.instant;
        let Some(asked) = self.asked.as_mut().filter(|asked| asked.call == call) else { return };
        asked.heard = Some(now);
        match said {
            ModelSaid::Piece(ModelPiece::Text(text)) => asked.add_text(&text),
            ModelSaid::Piece(ModelPiece::Reasoning(text)) => asked.add_reasoning(&text),
            ModelSaid::Piece(ModelPiece::ToolCall(call)) => asked.add_tool_call(call),
            ModelSaid::Piece(ModelPiece::Finished { reason, usage }) => {
                return self.take_answer(reason, usage);
            }
            ModelSaid::Failed(error) => return self.take_failure(error),
        }
        if let Some(why) = asked.excess() {
            self.outputs.push_back(Output::AbortModel);
            self.take_failure(ModelError::Refused(why.to_owned()));
        }
    }

    fn take_answer(&mut self, finish: FinishReason, usage: Usage) {
        self.flush();
        let (Some(asked), Some(turn)) = (self.asked.take(), self.session.turn()) else { return };
        let turn_number = turn.number;
        match asked.asking {
            Asking::Summary { .. } if asked.text.trim().is_empty() => {
                self.asked = Some(asked);
                self.take_failure(ModelError::BrokenOff("the summary is empty".to_owned()));
            }
            Asking::Summary { through } => {
                self.summary_failures = 0;
                self.append(Body::Compacted { through, summary: Text::Inline(asked.text), usage });
            }
            Asking::Answer => {
                let tool_calls = name_apart(asked.tool_calls, &turn.call_ids);
                let reasoning = (!asked.reasoning.is_empty()).then_some(Text::Inline(asked.reasoning));
                let text = Text::Inline(asked.text);
                self.append(Body::Answered { turn: turn_number, text, reasoning, tool_calls, finish, usage });
            }
        }
    }

    fn take_failure(&mut self, error: ModelError) {
        let (Some(asked), Some(playbook)) = (self.asked.take(), self.playbook.clone()) else { return };
        let Some(turn) = self.session.turn() else { return };
        let (number, why) = (turn.number, error.to_string());
        let failures = match asked.asking {
            Asking::Answer => turn.failures,
            Asking::Summary { .. } => self.summary_failures,
        };
        let wait =
            (failures < playbook.limits.retries).then(|| self.wait(&playbook, failures, &error)).flatten();
        self.retry_at = wait.map(|wait| self.now.instant + wait);
        match (asked.asking, wait) {
            (Asking::Summary { .. }, Some(_)) => self.summary_failures += 1,
            // Then without one: the model may still manage.
            (Asking::Summary { .. }, None) => {
                self.summary_failures = playbook.limits.retries.saturating_add(1)
            }
            (Asking::Answer, _) => {
                let retry_ms = wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
                self.append(Body::ModelFailed { turn: number, why: why.clone(), retry_ms });
                if wait.is_none() {
                    self.stop_with(TurnOutcome::Failed { why });
                }
            }
        }
    }

    /// How long to wait before a failed call is repeated; none when that is of no use.
    fn wait(&self, playbook: &Playbook, failures: u32, error: &ModelError) -> Option<Duration> {
        let limits = &playbook.limits;
        let asked_for = match error {
            ModelError::Refused(_) => return None,
            ModelError::Busy { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let doubled = limits.retry_first.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX));
        let jittered = doubled.mul_f64(0.75 + 0.5 * self.unit());
        Some(jittered.max(asked_for).min(limits.retry_max))
    }

    /// A number from 0 to 1 that differs from session to session and from call to call.
    fn unit(&self) -> f64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.id.as_bytes()).update(&self.session.last().0.to_be_bytes());
        hasher.update(&self.calls.to_be_bytes());
        f64::from(hasher.finalize().as_bytes()[0]) / 255.0
    }

    fn step_tools(&mut self, playbook: &Playbook) -> bool {
        // What changes something waits for all before it, and all after wait for it.
        let (mut all_before_ended, mut is_blocked) = (true, false);
        for index in 0..self.session.turn().map_or(0, |turn| turn.calls.len()) {
            let Some(call) = self.session.turn().and_then(|turn| turn.calls.get(index)) else { return false };
            if call.state == CallState::Ended {
                continue;
            }
            let only_reads = playbook.rules.only_reads(&call.call);
            let runs = call.state == CallState::Started && self.running.contains_key(&call.call.id);
            let may_go = !is_blocked && (only_reads || all_before_ended);
            if may_go && !runs {
                let call = call.clone();
                if self.step_call(playbook, &call, only_reads) {
                    return true;
                }
            }
            (all_before_ended, is_blocked) = (false, is_blocked || !only_reads);
        }
        false
    }

    /// One call whose time has come; whether anything was done.
    fn step_call(&mut self, playbook: &Playbook, call: &Call, only_reads: bool) -> bool {
        let Some(turn) = self.session.turn() else { return false };
        let (number, by) = (turn.number, turn.speakers.clone());
        let id = call.call.id.clone();
        match call.state {
            CallState::Ended => false,
            CallState::Asked { .. } => {
                self.undecided.entry(id).or_insert(self.now.instant);
                false
            }
            CallState::Allowed => self.start_tool(playbook, number, call, by),
            CallState::Refused { again: true } => self.skip(number, id, ToolOutcome::Unknown, MAY_HAVE_RUN),
            CallState::Refused { again: false } => {
                self.skip(number, id, ToolOutcome::Denied, "whoever was asked did not allow it")
            }
            CallState::Started if only_reads => self.start_tool(playbook, number, call, by),
            CallState::Started => match playbook.interrupted {
                Interrupted::Tell => self.skip(number, id, ToolOutcome::Unknown, MAY_HAVE_RUN),
                Interrupted::Ask => {
                    let why = "the node went down while it ran, and it may have done its work".to_owned();
                    self.append(Body::ToolAsked { turn: number, call: id, why });
                    true
                }
            },
            CallState::Wanted => match self.verdict(playbook, call, &by) {
                Verdict::Allow => self.start_tool(playbook, number, call, by),
                Verdict::Ask(why) => {
                    self.append(Body::ToolAsked { turn: number, call: id, why });
                    true
                }
                Verdict::Deny(why) => self.skip(number, id, ToolOutcome::Denied, &why),
                Verdict::NoSuchTool => {
                    let why = format!("there is no tool {}", call.call.name);
                    self.skip(number, id, ToolOutcome::Failed, &why)
                }
            },
        }
    }

    /// A turn may do what everybody may who spoke in it; one in which nobody did may do nothing.
    fn verdict(&self, playbook: &Playbook, call: &Call, by: &[Party]) -> Verdict {
        let verdicts = by.iter().map(|party| playbook.rules.verdict(&call.call, party));
        let nobody = || Verdict::Deny("nobody is known to have asked for it".to_owned());
        verdicts.reduce(Verdict::stricter).unwrap_or_else(nobody)
    }

    fn start_tool(&mut self, playbook: &Playbook, turn: TurnNumber, call: &Call, by: Vec<Party>) -> bool {
        let Some(by) = by.into_iter().next() else {
            return self.skip(turn, call.call.id.clone(), ToolOutcome::Denied, "nobody asked for it");
        };
        if self.running.len() >= playbook.limits.tools_max.max(1) {
            return false;
        }
        self.append(Body::ToolStarted { turn, call: call.call.id.clone() });
        self.running.insert(call.call.id.clone(), Running::default());
        self.outputs.push_back(Output::RunTool { call: call.call.clone(), by });
        true
    }

    fn skip(&mut self, turn: TurnNumber, call: ToolCallId, outcome: ToolOutcome, why: &str) -> bool {
        self.append(Body::ToolEnded { turn, call, result: told(outcome, why) });
        true
    }

    pub(super) fn tick(&mut self) {
        let now = self.now.instant;
        let Some(limits) = self.playbook.as_ref().map(|playbook| playbook.limits.clone()) else { return };
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        let (silence, bound) = match &self.asked {
            Some(Asked { heard: Some(heard), .. }) => (Some(*heard), limits.model_idle),
            Some(asked) => (Some(asked.since), limits.model_first),
            None => (None, Duration::ZERO),
        };
        if silence.is_some_and(|since| since + bound <= now) {
            self.outputs.push_back(Output::AbortModel);
            self.take_failure(ModelError::Unavailable(format!("nothing was heard for {bound:?}")));
        }
        let Some(turn) = self.session.turn() else { return };
        let number = turn.number;
        let is_over = |since: &std::time::Instant| *since + limits.decision <= now;
        let over: Vec<_> = self.undecided.extract_if(.., |_, since| is_over(since)).collect();
        for (call, _) in over {
            let again = self.session.turn().and_then(|turn| turn.call(&call)).map(|call| call.state);
            let (outcome, why) = match again {
                Some(CallState::Asked { again: true }) => (ToolOutcome::Unknown, MAY_HAVE_RUN),
                _ => (ToolOutcome::Denied, "nobody decided in time"),
            };
            self.skip(number, call, outcome, why);
        }
    }
}

const MAY_HAVE_RUN: &str = "the node went down while this ran: whether it did its work is not known. Look before you \
                            repeat it";

fn may_have_run(state: CallState) -> bool {
    matches!(
        state,
        CallState::Started | CallState::Asked { again: true } | CallState::Refused { again: true }
    )
}

fn open_calls(calls: &[Call]) -> Vec<(ToolCallId, CallState)> {
    let open = calls.iter().filter(|call| call.state != CallState::Ended);
    open.map(|call| (call.call.id.clone(), call.state)).collect()
}

fn told(outcome: ToolOutcome, why: &str) -> ToolResult {
    ToolResult { outcome, parts: vec![Part::Text { text: Text::Inline(why.to_owned()) }] }
}
