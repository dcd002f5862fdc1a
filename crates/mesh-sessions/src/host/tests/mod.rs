//! A node's sessions over a real store, with models and tools that do as they are told.

#![allow(clippy::unwrap_used)]

mod crash;
mod life;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use mesh_identity::{NodeKey, Role};
use serde_json::{Value, json};

use super::*;
use crate::content::{ToolCall, ToolOutcome, Usage};
use crate::event::{Event, TurnOutcome};
use crate::model::{FinishReason, Message, ModelAnswer, ModelCall, ModelError, ModelPiece, ToolSpec};
use crate::policy::Policy;
use crate::store;
use crate::tool::{Ran, Tool, ToolRun};

type Pieces = Vec<Result<ModelPiece, ModelError>>;

/// A model that answers as a function of what it is told.
#[derive(Clone)]
pub(crate) struct Script {
    answer: Arc<dyn Fn(&ModelCall) -> Pieces + Send + Sync>,
    pub(crate) calls: Arc<Mutex<Vec<ModelCall>>>,
    /// Between two pieces.
    pub(crate) pause: Duration,
}

impl Script {
    pub(crate) fn new(answer: impl Fn(&ModelCall) -> Pieces + Send + Sync + 'static) -> Self {
        Self { answer: Arc::new(answer), calls: Arc::default(), pause: Duration::ZERO }
    }

    /// Repeats what it was told last.
    pub(crate) fn echo() -> Self {
        Self::new(|call| match call.messages.last() {
            Some(Message::User(parts)) => match parts.last() {
                Some(Shown::Text(text)) => said(&format!("you said {text}")),
                other => said(&format!("{other:?}")),
            },
            other => said(&format!("{other:?}")),
        })
    }
}

impl ModelClient for Script {
    fn call(&self, call: ModelCall) -> BoxFuture<'static, Result<ModelAnswer, ModelError>> {
        let pieces = (self.answer)(&call);
        self.calls.lock().unwrap().push(call);
        let pause = self.pause;
        let pieces = stream::iter(pieces).then(move |piece| async move {
            match pause.is_zero() {
                true => tokio::task::yield_now().await,
                false => tokio::time::sleep(pause).await,
            }
            piece
        });
        async move { Ok(ModelAnswer { peer: None, pieces: pieces.boxed() }) }.boxed()
    }
}

pub(crate) fn said(text: &str) -> Pieces {
    let words = text.split_inclusive(' ').map(|word| Ok(ModelPiece::Text(word.to_owned())));
    words.chain([finished()]).collect()
}

pub(crate) fn wants(calls: &[(&str, &str)]) -> Pieces {
    let call = |(id, name): &(&str, &str)| {
        let call =
            ToolCall { id: id.parse().unwrap(), name: (*name).to_owned(), arguments: json!({"at": id}) };
        Ok(ModelPiece::ToolCall(call))
    };
    calls.iter().map(call).chain([finished()]).collect()
}

fn finished() -> Result<ModelPiece, ModelError> {
    let usage = Usage { input_tokens: 7, output_tokens: 3, cost_micros: None };
    Ok(ModelPiece::Finished { reason: FinishReason::Done, usage })
}

/// A tool that counts, and does what the test says.
#[derive(Clone)]
pub(crate) struct TestTool {
    name: &'static str,
    reads: bool,
    pub(crate) runs: Arc<AtomicUsize>,
    does: Arc<dyn Fn(ToolRun) -> BoxFuture<'static, Ran> + Send + Sync>,
}

impl TestTool {
    pub(crate) fn new<F>(
        name: &'static str,
        reads: bool,
        does: impl Fn(ToolRun) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Ran> + Send + 'static,
    {
        Self { name, reads, runs: Arc::default(), does: Arc::new(move |run| does(run).boxed()) }
    }

    pub(crate) fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }
}

impl Tool for TestTool {
    fn spec(&self) -> ToolSpec {
        let (name, description) = (self.name.to_owned(), "for tests".to_owned());
        ToolSpec { name, description, parameters: json!({"type": "object"}) }
    }

    fn only_reads(&self, _: &Value) -> bool {
        self.reads
    }

    fn run(&self, run: ToolRun) -> BoxFuture<'static, Ran> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        (self.does)(run)
    }
}

/// A node's folder, and what is configured.
pub(crate) struct Host {
    folder: tempfile::TempDir,
    pub(crate) script: Script,
    pub(crate) tools: Vec<TestTool>,
    pub(crate) config: Config,
    pub(crate) me: NodeId,
}

pub(crate) fn me() -> Party {
    Party::local(host_id())
}

pub(crate) fn host_id() -> NodeId {
    NodeKey::from_seed([1; 32]).node_id()
}

pub(crate) fn guest(role: Role) -> Party {
    let founder = NodeKey::from_seed([7; 32]);
    let scope = mesh_identity::Founding::with_recovery(&founder, NodeKey::from_seed([8; 32])).root.id();
    Party::peer(NodeKey::from_seed([2; 32]).node_id(), scope, role)
}

impl Host {
    pub(crate) fn new(script: Script) -> Self {
        let config = Config { tool_grace: Duration::from_millis(50), ..Config::default() };
        Self { folder: tempfile::tempdir().unwrap(), script, tools: Vec::new(), config, me: host_id() }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("sessions.db")
    }

    pub(crate) fn agent(&self) -> Agent {
        let mut agent = Agent::new("coder".parse().unwrap(), "m");
        agent.instructions = "be brief".to_owned();
        agent.tools = self.tools.iter().map(|tool| Arc::new(tool.clone()) as Arc<dyn Tool>).collect();
        agent.policy = Policy::trusting_the_owner();
        agent.limits.retry_first = Duration::from_millis(1);
        agent
    }

    pub(crate) async fn start(&self) -> Sessions {
        let store = Store::open(&self.file(), store::Config::default()).await.unwrap();
        let client = Arc::new(self.script.clone());
        Sessions::start(self.me, store, client, vec![self.agent()], self.config.clone()).await.unwrap()
    }

    /// As if the process were killed: nothing of it goes on, and nobody is told.
    pub(crate) async fn crash(&self, sessions: Sessions) {
        let (store, inner) = (sessions.store().clone(), sessions.inner.clone());
        drop(sessions);
        inner.tasks.close();
        inner.tasks.wait().await;
        store.close().await;
    }
}

pub(crate) fn new_id() -> SessionId {
    SessionId::from_uuid(uuid::Uuid::now_v7())
}

pub(crate) async fn create(sessions: &Sessions) -> SessionId {
    let id = new_id();
    let new =
        NewSession { agent: "coder".parse().unwrap(), name: None, labels: BTreeMap::new(), chain: None };
    sessions.create(id, &me(), new).await.unwrap();
    id
}

pub(crate) fn text(text: &str) -> Vec<Shown> {
    vec![Shown::Text(text.to_owned())]
}

pub(crate) async fn prompt(sessions: &Sessions, session: SessionId, id: &str) -> EventNumber {
    sessions.prompt(session, &me(), id.parse().unwrap(), text(id)).await.unwrap()
}

/// All events up to the end of this many turns.
pub(crate) async fn until_turns(sessions: &Sessions, session: SessionId, turns: usize) -> Vec<Arc<Event>> {
    until(sessions, session, move |events| outcomes(events).len() >= turns).await
}

/// All events up to the first with which the condition holds.
pub(crate) async fn until(
    sessions: &Sessions,
    session: SessionId,
    holds: impl Fn(&[Arc<Event>]) -> bool,
) -> Vec<Arc<Event>> {
    let mut following = sessions.follow(session, &me(), EventNumber::START).await.unwrap();
    let mut events = Vec::new();
    while !holds(&events) {
        match tokio::time::timeout(Duration::from_secs(20), following.next()).await {
            Ok(event) => events.push(event.unwrap()),
            Err(_) => panic!("waited in vain after {:?}", kinds(&events)),
        }
    }
    let numbers: Vec<u64> = events.iter().map(|event| event.number.0).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "each once, in order");
    events
}

pub(crate) fn outcomes(events: &[Arc<Event>]) -> Vec<TurnOutcome> {
    let outcome = |event: &Arc<Event>| match &event.body {
        Body::TurnEnded { outcome, .. } => Some(outcome.clone()),
        _ => None,
    };
    events.iter().filter_map(outcome).collect()
}

pub(crate) fn answers(events: &[Arc<Event>]) -> Vec<String> {
    let answer = |event: &Arc<Event>| match &event.body {
        Body::Answered { text: crate::content::Text::Inline(text), .. } => Some(text.clone()),
        _ => None,
    };
    events.iter().filter_map(answer).collect()
}

pub(crate) fn kinds(events: &[Arc<Event>]) -> Vec<String> {
    let kind =
        |event: &Arc<Event>| serde_json::to_value(&event.body).unwrap()["kind"].as_str().unwrap().to_owned();
    events.iter().map(kind).collect()
}

pub(crate) fn has_kind(events: &[Arc<Event>], kind: &str) -> bool {
    kinds(events).iter().any(|known| known == kind)
}

pub(crate) fn tool_outcome(events: &[Arc<Event>], id: &str) -> Option<ToolOutcome> {
    events.iter().find_map(|event| match &event.body {
        Body::ToolEnded { call, result, .. } if call.as_str() == id => Some(result.outcome),
        _ => None,
    })
}
