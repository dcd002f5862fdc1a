//! A host in miniature: a log, a clock, a model and tools that do what a test says.

#![allow(clippy::unwrap_used)]

mod chance;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_identity::{NodeKey, Role, ScopeId};
use serde_json::json;

use super::*;
use crate::content::{Part, Text, ToolCall, ToolOutcome, ToolResult, Usage};
use crate::event::{Body, Event, Party, TurnOutcome};
use crate::ids::{EventNumber, SessionId, ToolCallId, TurnNumber};
use crate::model::{FinishReason, ModelError, ModelPiece};

const START_MS: u64 = 1_000_000;

/// `read` may run, `write` may run, `ask…` is asked about, `deny…` is denied; clients get nothing. `read` and `ask_read` only
/// look.
struct TestRules;

impl Rules for TestRules {
    fn verdict(&self, call: &ToolCall, by: &Party) -> Verdict {
        match call.name.as_str() {
            "read" | "write" | "ask" | "ask_read" if by.role == Some(Role::Client) => {
                Verdict::Deny("not for clients".to_owned())
            }
            "read" | "write" => Verdict::Allow,
            "ask" | "ask_read" => Verdict::Ask("to be sure".to_owned()),
            "deny" => Verdict::Deny("never".to_owned()),
            _ => Verdict::NoSuchTool,
        }
    }

    fn only_reads(&self, call: &ToolCall) -> bool {
        call.name.ends_with("read")
    }
}

pub(super) fn playbook() -> Playbook {
    Playbook {
        model: "m".to_owned(),
        peer: None,
        limits: Limits::default(),
        compaction: None,
        interrupted: Interrupted::Tell,
        rules: Arc::new(TestRules),
    }
}

pub(super) fn host() -> mesh_identity::NodeId {
    NodeKey::from_seed([1; 32]).node_id()
}

pub(super) fn me() -> Party {
    Party::local(host())
}

pub(super) fn client() -> Party {
    Party::peer(NodeKey::from_seed([2; 32]).node_id(), scope(), Role::Client)
}

pub(super) fn scope() -> ScopeId {
    let key = NodeKey::from_seed([7; 32]);
    mesh_identity::Founding::with_recovery(&key, NodeKey::from_seed([8; 32])).root.id()
}

pub(super) fn session_id() -> SessionId {
    SessionId::from_uuid(uuid::Uuid::from_u128(7))
}

pub(super) fn text(text: &str) -> Vec<Part> {
    vec![Part::Text { text: Text::Inline(text.to_owned()) }]
}

pub(super) fn call(id: &str, name: &str) -> ToolCall {
    ToolCall { id: id.parse().unwrap(), name: name.to_owned(), arguments: json!({}) }
}

pub(super) fn fold(log: &[Event]) -> Session {
    let mut session = Session::default();
    log.iter().for_each(|event| session.apply(event));
    session
}

pub(super) struct Sim {
    pub(super) core: Core,
    pub(super) log: Vec<Event>,
    pub(super) playbook: Option<Playbook>,
    pub(super) start: Instant,
    pub(super) passed: Duration,
    /// The model call under way.
    pub(super) asked: Option<(u64, Asking)>,
    /// Tools that run.
    pub(super) tools: BTreeMap<ToolCallId, ToolCall>,
    pub(super) cancelled: BTreeSet<ToolCallId>,
    /// Every run of a tool, in order.
    pub(super) ran: Vec<ToolCallId>,
    pub(super) replies: BTreeMap<u64, Result<EventNumber, Refusal>>,
    pub(super) commands: u64,
    /// How many outputs are performed before the host dies.
    pub(super) dies_after: Option<usize>,
}

impl Sim {
    pub(super) fn new() -> Self {
        Self::with(playbook())
    }

    pub(super) fn with(playbook: Playbook) -> Self {
        let body = Body::Created { agent: "coder".parse().unwrap(), owner: me() };
        Self::on(vec![Event { number: EventNumber(1), at_ms: START_MS, body }], Some(playbook))
    }

    pub(super) fn on(log: Vec<Event>, playbook: Option<Playbook>) -> Self {
        let (start, passed) = (Instant::now(), Duration::ZERO);
        let now = Now { instant: start, unix_ms: START_MS };
        let mut sim = Self {
            core: Core::open(session_id(), host(), fold(&log), playbook.clone(), now),
            log,
            playbook,
            start,
            passed,
            asked: None,
            tools: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            ran: Vec::new(),
            replies: BTreeMap::new(),
            commands: 0,
            dies_after: None,
        };
        sim.perform();
        sim
    }

    pub(super) fn now(&self) -> Now {
        let passed_ms = u64::try_from(self.passed.as_millis()).unwrap();
        Now { instant: self.start + self.passed, unix_ms: START_MS + passed_ms }
    }

    pub(super) fn input(&mut self, input: Input) {
        self.core.handle(input, self.now());
        self.perform();
    }

    /// Performs every output, or dies in the middle.
    pub(super) fn perform(&mut self) {
        while let Some(output) = self.core.poll_output() {
            if let Some(left) = &mut self.dies_after {
                if *left == 0 {
                    self.dies_after = None;
                    return self.restart();
                }
                *left -= 1;
            }
            self.perform_one(output);
        }
        assert_eq!(*self.core.session(), fold(&self.log), "the core knows what the log says");
        if let Some(deadline) = self.core.next_deadline() {
            assert!(deadline > self.now().instant || self.core.is_idle(), "the next tick lies ahead");
        }
    }

    fn perform_one(&mut self, output: Output) {
        match output {
            Output::Append(bodies) => {
                assert!(!bodies.is_empty());
                for body in bodies {
                    let number = EventNumber(self.log.len() as u64 + 1);
                    self.log.push(Event { number, at_ms: self.now().unix_ms, body });
                }
            }
            Output::CallModel { call, asking } => {
                assert_eq!(self.asked.replace((call, asking)), None, "one model call at a time");
            }
            Output::AbortModel => assert!(self.asked.take().is_some(), "there is a call to abort"),
            Output::RunTool { call, by } => {
                assert_eq!(by.node, fold(&self.log).turn().unwrap().speakers[0].node);
                self.ran.push(call.id.clone());
                assert!(self.tools.insert(call.id.clone(), call).is_none(), "it does not run already");
            }
            Output::CancelTool { call } => {
                assert!(self.tools.contains_key(&call) && self.cancelled.insert(call), "once, and running");
            }
            Output::Reply { id, result } => {
                assert!(id <= self.commands && self.replies.insert(id, result).is_none(), "one reply");
            }
        }
    }

    /// The host is gone, and a new one opens the log.
    pub(super) fn restart(&mut self) {
        (self.asked, self.dies_after) = (None, None);
        self.tools.clear();
        self.cancelled.clear();
        self.passed += Duration::from_secs(1);
        // Through text, as stores keep snapshots.
        let snapshot = serde_json::to_string(&fold(&self.log)).unwrap();
        let session = serde_json::from_str(&snapshot).unwrap();
        self.core = Core::open(session_id(), host(), session, self.playbook.clone(), self.now());
        self.perform();
    }

    pub(super) fn command(&mut self, by: Party, command: Command) -> u64 {
        self.commands += 1;
        let id = self.commands;
        self.input(Input::Command { id, by, command });
        id
    }

    /// Sends a command that is answered at once.
    pub(super) fn ask(&mut self, by: Party, command: Command) -> Result<EventNumber, Refusal> {
        let id = self.command(by, command);
        self.replies.get(&id).cloned().expect("an answer")
    }

    pub(super) fn prompt(&mut self, id: &str) {
        let command = Command::Prompt { prompt: id.parse().unwrap(), parts: text(id) };
        self.ask(me(), command).unwrap();
    }

    pub(super) fn say(&mut self, said: ModelSaid) {
        let (call, _) = self.asked.expect("a model is asked");
        if !matches!(
            said,
            ModelSaid::Piece(ModelPiece::Text(_) | ModelPiece::Reasoning(_) | ModelPiece::ToolCall(_))
        ) {
            self.asked = None;
        }
        self.input(Input::Model { call, said });
    }

    pub(super) fn answer(&mut self, text: &str, calls: Vec<ToolCall>) {
        if !text.is_empty() {
            self.say(ModelSaid::Piece(ModelPiece::Text(text.to_owned())));
        }
        for call in calls {
            self.say(ModelSaid::Piece(ModelPiece::ToolCall(call)));
        }
        if self.asked.is_some() {
            let usage = Usage { input_tokens: 10, output_tokens: 5, cost_micros: Some(3) };
            self.say(ModelSaid::Piece(ModelPiece::Finished { reason: FinishReason::Done, usage }));
        }
    }

    pub(super) fn fail(&mut self, why: &str) {
        self.say(ModelSaid::Failed(ModelError::Unavailable(why.to_owned())));
    }

    pub(super) fn end_tool(&mut self, id: &str) {
        let call: ToolCallId = id.parse().unwrap();
        self.tools.remove(&call).expect("it runs");
        let outcome = if self.cancelled.remove(&call) { ToolOutcome::Cancelled } else { ToolOutcome::Done };
        self.input(Input::ToolEnded { call, result: ToolResult { outcome, parts: text("done") } });
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.passed += time;
        self.input(Input::Tick);
    }

    /// Lets time pass until the core wants to be told.
    pub(super) fn pass_to_deadline(&mut self) {
        let deadline = self.core.next_deadline().expect("a deadline");
        self.pass(deadline.saturating_duration_since(self.now().instant));
    }

    pub(super) fn kinds(&self) -> Vec<String> {
        self.log.iter().map(|event| kind(&event.body)).collect()
    }

    pub(super) fn outcomes(&self) -> Vec<(TurnNumber, TurnOutcome)> {
        let ended = |event: &Event| match &event.body {
            Body::TurnEnded { turn, outcome, .. } => Some((*turn, outcome.clone())),
            _ => None,
        };
        self.log.iter().filter_map(ended).collect()
    }

    pub(super) fn tool_outcome(&self, id: &str) -> Option<ToolOutcome> {
        self.log.iter().rev().find_map(|event| match &event.body {
            Body::ToolEnded { call, result, .. } if call.as_str() == id => Some(result.outcome),
            _ => None,
        })
    }
}

pub(super) fn kind(body: &Body) -> String {
    serde_json::to_value(body).unwrap()["kind"].as_str().unwrap().to_owned()
}
