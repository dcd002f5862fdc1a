//! What the host of a session does about it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_identity::NodeId;

use super::answer::{Asked, split};
use super::command::{Command, QUEUE_MAX, Refusal, STEERS_MAX};
use super::rules::{Compaction, Interrupted, Limits, Rules};
use super::session::{Rest, Session};
use super::turn::CallState;
use crate::content::{ToolCall, ToolResult};
use crate::event::{Body, Event, Party, TurnOutcome};
use crate::ids::{EventNumber, PromptId, SessionId, ToolCallId};
use crate::model::{ModelError, ModelPiece};

/// What a tool has printed beyond this many bytes is not told to those who watch; the model gets what the tool returns.
const PRINTED_BYTES_MAX: usize = 256 * 1024;

/// The time: `instant` for every wait, `unix_ms` for what stands in events.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Never goes back.
    pub instant: Instant,
    /// Milliseconds since 1970.
    pub unix_ms: u64,
}

/// How an agent's turns go: what of its configuration the core needs.
#[derive(Clone)]
pub struct Playbook {
    /// The model.
    pub model: String,
    /// The node to ask; none for whatever routing prefers.
    pub peer: Option<NodeId>,
    /// Bounds.
    pub limits: Limits,
    /// When what models are told is made shorter; never without.
    pub compaction: Option<Compaction>,
    /// What becomes of calls that may have run.
    pub interrupted: Interrupted,
    /// What may run.
    pub rules: Arc<dyn Rules>,
}

/// What happens to a session.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Somebody asks for something. Answered by [`Output::Reply`] of this id, once.
    Command {
        /// Of the reply.
        id: u64,
        /// Who.
        by: Party,
        /// What.
        command: Command,
    },
    /// The host goes down in order. Answered like a command when nothing of the session runs any more.
    Shutdown {
        /// Of the reply.
        id: u64,
    },
    /// Of the model call of this number.
    Model {
        /// As [`Output::CallModel`] said.
        call: u64,
        /// What.
        said: ModelSaid,
    },
    /// A running tool has printed something.
    Printed {
        /// The call.
        call: ToolCallId,
        /// What.
        text: String,
    },
    /// A tool has ended; comes once for each [`Output::RunTool`].
    ToolEnded {
        /// The call.
        call: ToolCallId,
        /// What came of it, long texts as blobs.
        result: ToolResult,
    },
    /// [`Core::next_deadline`] has come.
    Tick,
}

/// What is heard of a model call.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelSaid {
    /// A piece of its answer.
    Piece(ModelPiece),
    /// It failed, or ended without its last piece.
    Failed(ModelError),
}

/// What the driver is to do; in order, each done before the next.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Write these events durably. When that fails, the core is of no use any more: open a new one on the log.
    Append(Vec<Body>),
    /// Ask the model, with the context of [`Core::session`] as it is now.
    CallModel {
        /// For [`Input::Model`].
        call: u64,
        /// What to ask.
        asking: Asking,
    },
    /// End the model call that is under way.
    AbortModel,
    /// Run a tool.
    RunTool {
        /// The call.
        call: ToolCall,
        /// On whose behalf.
        by: Party,
    },
    /// End a tool: first politely, then for good. [`Input::ToolEnded`] still comes.
    CancelTool {
        /// The call.
        call: ToolCallId,
    },
    /// The answer to a command: the last event that it wrote, or the session's last.
    Reply {
        /// Of the command.
        id: u64,
        /// The answer.
        result: Result<EventNumber, Refusal>,
    },
}

/// What a model is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// What to say next.
    Answer,
    /// A summary of everything up to this event.
    Summary {
        /// The last event that it has to cover.
        through: EventNumber,
    },
}

/// A live session at its host.
pub struct Core {
    pub(super) id: SessionId,
    me: NodeId,
    pub(super) session: Session,
    pub(super) playbook: Option<Playbook>,
    pub(super) outputs: VecDeque<Output>,
    pub(super) asked: Option<Asked>,
    pub(super) calls: u64,
    pub(super) retry_at: Option<Instant>,
    pub(super) summary_failures: u32,
    pub(super) running: BTreeMap<ToolCallId, Running>,
    /// Since when somebody is asked about a call.
    pub(super) undecided: BTreeMap<ToolCallId, Instant>,
    /// The turn is to end so, and who waits for it.
    pub(super) stop: Option<(TurnOutcome, Vec<u64>)>,
    /// Prompts to be ended without an answer, and by whom.
    pub(super) dropped: Vec<(PromptId, Party)>,
    pub(super) closing: Option<Closing>,
    /// How long the turn has been worked on.
    pub(super) worked: Duration,
    pub(super) now: Now,
}

#[derive(Debug, Default)]
pub(super) struct Running {
    pub(super) is_cancelled: bool,
    pending: String,
    printed: usize,
    unshown: usize,
}

/// What is done when nothing runs any more.
#[derive(Debug)]
pub(super) enum Closing {
    Suspend { why: String, by: Option<Party>, replies: Vec<u64> },
    Archive { by: Party, reply: u64 },
    HandOver { to: NodeId, reply: u64 },
}

impl Core {
    /// A session as its log has left it. What it has to do, it does from here on. Without a playbook (its agent is not
    /// configured here) it can be read, and its turn fails.
    pub fn open(id: SessionId, me: NodeId, session: Session, playbook: Option<Playbook>, now: Now) -> Self {
        let worked = session.turn().map_or(Duration::ZERO, |turn| turn.worked);
        let mut core = Self {
            id,
            me,
            session,
            playbook,
            outputs: VecDeque::new(),
            asked: None,
            calls: 0,
            retry_at: None,
            summary_failures: 0,
            running: BTreeMap::new(),
            undecided: BTreeMap::new(),
            stop: None,
            dropped: Vec::new(),
            closing: None,
            worked,
            now,
        };
        if core.is_mine() && core.session.has_work() {
            core.append(Body::Resumed);
            core.advance();
        }
        core
    }

    /// What the log says, once every output has been performed.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Whether nothing is under way and nothing will be before the next command.
    pub fn is_idle(&self) -> bool {
        let runs = self.asked.is_some() || !self.running.is_empty() || self.closing.is_some();
        let goes_on = *self.session.rest() == Rest::None && self.session.turn().is_some() && self.is_mine();
        !runs && !goes_on && self.outputs.is_empty()
    }

    /// Takes in what has happened.
    pub fn handle(&mut self, input: Input, now: Now) {
        self.count_work(now);
        match input {
            Input::Command { id, by, command } => self.command(id, by, command),
            Input::Shutdown { id } => self.shut_down(id),
            Input::Model { call, said } => self.hear(call, said),
            Input::Printed { call, text } => self.print(&call, &text),
            Input::ToolEnded { call, result } => self.end_tool(call, result),
            Input::Tick => self.tick(),
        }
        self.advance();
    }

    /// What is to be done next; to be asked until there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty() {
            self.flush();
        }
        self.outputs.pop_front()
    }

    /// When [`Input::Tick`] is wanted.
    pub fn next_deadline(&self) -> Option<Instant> {
        let limits = &self.playbook.as_ref()?.limits;
        let model = self.asked.as_ref().map(|asked| match asked.heard {
            Some(heard) => heard + limits.model_idle,
            None => asked.since + limits.model_first,
        });
        let decision = self.undecided.values().min().map(|since| *since + limits.decision);
        let left = limits.time.filter(|_| self.is_working() && self.stop.is_none() && self.closing.is_none());
        let time = left.map(|time| self.now.instant + time.saturating_sub(self.worked));
        [model, decision, time, self.retry_at].into_iter().flatten().min()
    }

    /// The node that writes the log, when it is not this one.
    pub(super) fn moved(&self) -> Option<NodeId> {
        self.session.host().filter(|host| **host != self.me).copied()
    }

    /// Whether this node may go on with it.
    pub(super) fn is_mine(&self) -> bool {
        self.moved().is_none() && !self.session.is_on_its_way()
    }

    pub(super) fn append(&mut self, body: Body) {
        let number = self.session.last().next();
        self.session.apply(&Event { number, at_ms: self.now.unix_ms, body: body.clone() });
        match self.outputs.back_mut() {
            Some(Output::Append(bodies)) => bodies.push(body),
            _ => self.outputs.push_back(Output::Append(vec![body])),
        }
    }

    pub(super) fn reply(&mut self, id: u64, result: Result<(), Refusal>) {
        let result = result.map(|()| self.session.last());
        self.outputs.push_back(Output::Reply { id, result });
    }

    /// Writes down what has come of answers and tools.
    pub(super) fn flush(&mut self) {
        let Some(turn) = self.session.turn().map(|turn| turn.number) else { return };
        let mut bodies = self.asked.as_mut().map(|asked| asked.drain(turn)).unwrap_or_default();
        for (call, running) in &mut self.running {
            let printed = |text| Body::ToolPrinted { turn, call: call.clone(), text };
            bodies.extend(split(&std::mem::take(&mut running.pending)).map(printed));
        }
        bodies.into_iter().for_each(|body| self.append(body));
    }

    /// Whether time counts as work on the turn.
    fn is_working(&self) -> bool {
        self.session.turn().is_some()
            && (self.asked.is_some() || self.retry_at.is_some() || !self.running.is_empty())
    }

    fn count_work(&mut self, now: Now) {
        if self.is_working() {
            self.worked += now.instant.saturating_duration_since(self.now.instant);
        }
        self.now = now;
    }

    fn command(&mut self, id: u64, by: Party, command: Command) {
        match self.decide(id, by, command) {
            Ok(true) => self.reply(id, Ok(())),
            Ok(false) => {}
            Err(refusal) => self.reply(id, Err(refusal)),
        }
    }

    /// Does what is asked; whether it is done.
    fn decide(&mut self, id: u64, by: Party, command: Command) -> Result<bool, Refusal> {
        let right = self.session.right_of(&by).ok_or(Refusal::NoSuchSession)?;
        let needs = command.needs();
        if right < needs {
            return Err(Refusal::NotAllowed { needs });
        }
        if command == Command::Watch {
            return Ok(true);
        }
        if let Some(to) = self.moved() {
            return Err(Refusal::Moved { to });
        }
        match (self.session.rest(), &self.closing) {
            (Rest::Archived, _) | (_, Some(Closing::Archive { .. })) => return Err(Refusal::Archived),
            (_, Some(Closing::Suspend { .. } | Closing::HandOver { .. })) => return Err(Refusal::Closing),
            _ if self.session.is_on_its_way() => return Err(Refusal::Closing),
            _ => command.check()?,
        }
        match command {
            Command::Watch => {}
            Command::Prompt { .. } if self.session.is_board() => {
                return Err(Refusal::WrongKind { is_board: true });
            }
            Command::Post { post, agent, parts } => {
                if !self.session.is_board() {
                    return Err(Refusal::WrongKind { is_board: false });
                }
                self.wake();
                self.append(Body::Posted { post, by, agent, parts });
            }
            Command::Prompt { prompt, parts } => {
                if self.playbook.is_none() {
                    return Err(Refusal::NoAgent);
                }
                if self.session.queue().len() >= QUEUE_MAX {
                    return Err(Refusal::QueueFull);
                }
                self.wake();
                self.append(Body::Prompted { prompt, by, parts });
            }
            Command::Steer { turn, parts } => {
                let now = self.session.turn().ok_or(Refusal::NoSuchTurn)?;
                if turn.is_some_and(|turn| turn != now.number) || self.stop.is_some() {
                    return Err(Refusal::NoSuchTurn);
                }
                if now.unheard.len() >= STEERS_MAX {
                    return Err(Refusal::QueueFull);
                }
                let turn = now.number;
                self.wake();
                self.append(Body::Steered { turn, by, parts });
            }
            Command::Cancel { turn } => return self.cancel(id, by, turn),
            Command::Decide { turn, call, allowed } => {
                let now = self.session.turn().filter(|now| now.number == turn).ok_or(Refusal::NoSuchTurn)?;
                let state = now.call(&call).map(|call| call.state);
                if !matches!(state, Some(CallState::Asked { .. })) || self.stop.is_some() {
                    return Err(Refusal::NoSuchCall);
                }
                self.undecided.remove(&call);
                self.append(Body::ToolDecided { turn, call, allowed, by });
            }
            Command::Name { name } => self.append(Body::Named { name }),
            Command::Label { labels } => self.append(Body::Labelled { labels }),
            Command::Share { shares } => self.append(Body::Shared { shares }),
            Command::Suspend { why } => {
                if !matches!(self.session.rest(), Rest::Suspended { by: Some(_) }) {
                    self.closing = Some(Closing::Suspend { why, by: Some(by), replies: vec![id] });
                    return Ok(false);
                }
            }
            Command::Resume => self.wake(),
            Command::Archive => {
                self.closing = Some(Closing::Archive { by, reply: id });
                return Ok(false);
            }
            Command::HandOver { to } if to == self.me => {}
            Command::HandOver { to } => {
                self.closing = Some(Closing::HandOver { to, reply: id });
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn wake(&mut self) {
        if *self.session.rest() != Rest::None {
            self.append(Body::Resumed);
        }
    }

    fn cancel(&mut self, id: u64, by: Party, turn: Option<crate::ids::TurnNumber>) -> Result<bool, Refusal> {
        let now = self.session.turn().map(|now| now.number);
        if turn.is_some() && turn != now || now.is_none() && self.session.queue().is_empty() {
            return Err(Refusal::NoSuchTurn);
        }
        self.wake();
        if turn.is_none() {
            let waiting = self.session.queue().iter().map(|queued| (queued.prompt.clone(), by.clone()));
            self.dropped = waiting.collect();
        }
        let stop = self.stop.get_or_insert_with(|| (TurnOutcome::Cancelled { by }, Vec::new()));
        stop.1.push(id);
        Ok(false)
    }

    fn shut_down(&mut self, id: u64) {
        match self.closing.take() {
            Some(Closing::Suspend { why, by, mut replies }) => {
                replies.push(id);
                self.closing = Some(Closing::Suspend { why, by, replies });
            }
            Some(Closing::Archive { reply, .. } | Closing::HandOver { reply, .. }) => {
                self.reply(reply, Err(Refusal::Closing));
                self.suspend_for_shutdown(id);
            }
            None => self.suspend_for_shutdown(id),
        }
    }

    fn suspend_for_shutdown(&mut self, id: u64) {
        let has_work = self.session.turn().is_some() || !self.session.queue().is_empty();
        if *self.session.rest() != Rest::None || !has_work || !self.is_mine() {
            return self.reply(id, Ok(()));
        }
        let why = "the node is shutting down".to_owned();
        self.closing = Some(Closing::Suspend { why, by: None, replies: vec![id] });
    }

    fn print(&mut self, call: &ToolCallId, text: &str) {
        let Some(running) = self.running.get_mut(call) else { return };
        let room = PRINTED_BYTES_MAX.saturating_sub(running.printed);
        let shown = &text[..text.floor_char_boundary(room)];
        running.pending.push_str(shown);
        running.printed += shown.len();
        running.unshown += text.len() - shown.len();
    }

    fn end_tool(&mut self, call: ToolCallId, result: ToolResult) {
        let Some(turn) = self.session.turn().map(|turn| turn.number) else { return };
        let Some(running) = self.running.get_mut(&call) else { return };
        if running.unshown > 0 {
            running.pending.push_str(&format!("\n[{} more bytes not shown]\n", running.unshown));
        }
        self.flush();
        self.running.remove(&call);
        self.append(Body::ToolEnded { turn, call, result });
    }
}
