//! One session that an editor has open: its events become updates, whoever caused them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_control::{
    CancelTurn, Client, DecideTool, EndReason, EventPart, Followed, Happened, PromptPart, PromptSession,
    SessionEvent, SessionFollow,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::rpc::{Fault, INTERNAL, notice};
use super::update::{Updates, call_id, stop_reason};
use super::{Asking, Out};
use crate::session::seen::Calls;
use crate::session::teller::said;
use crate::session::turn::{address, ended, new_id, patiently};

/// Calls that the editor may be asked about at a time; more wait for `qmt-cli session allow`.
const ASKED_MAX: usize = 16;

/// A session that is open. Clones are handles to the same one.
#[derive(Clone)]
pub(super) struct Conversation {
    client: Client,
    /// What the editor calls it.
    id: String,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    /// Where it is now.
    address: String,
    /// The editor's prompts that are not answered yet.
    prompts: HashMap<String, Prompted>,
    /// Why nothing more comes; none while it goes on.
    ended: Option<Fault>,
}

struct Prompted {
    turn: Option<u32>,
    done: oneshot::Sender<Result<Value, Fault>>,
}

impl Conversation {
    /// `id` is the session's id with its node.
    pub(super) fn new(client: Client, id: &str) -> Self {
        let shared = Shared { address: id.to_owned(), ..Shared::default() };
        Self { client, id: id.to_owned(), shared: Arc::new(Mutex::new(shared)) }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn address(&self) -> String {
        self.shared().address.clone()
    }

    /// Says something, and waits until its turn has ended.
    pub(super) async fn prompt(&self, parts: Vec<PromptPart>) -> Result<Value, Fault> {
        let (done, outcome) = oneshot::channel();
        let prompt = new_id();
        {
            let mut shared = self.shared();
            if let Some(fault) = &shared.ended {
                return Err(fault.clone());
            }
            shared.prompts.insert(prompt.clone(), Prompted { turn: None, done });
        }
        let request = PromptSession { session: self.address(), prompt, parts };
        if let Err(error) = patiently(|_| (), || self.client.prompt(&request)).await {
            self.shared().prompts.remove(&request.prompt);
            return Err(error.into());
        }
        outcome.await.unwrap_or_else(|_| Err(Fault::new(INTERNAL, "the session was closed")))
    }

    /// Ends the turn that answers the editor; when its prompt still waits, all that wait and the turn before them.
    pub(super) async fn cancel(&self) {
        let turn = self.shared().prompts.values().find_map(|prompted| prompted.turn);
        let cancel = CancelTurn { session: self.address(), turn };
        // Nobody waits for the answer: that the turn ended is an event.
        let _ = patiently(|_| (), || self.client.cancel(&cancel)).await;
    }

    /// Sends the events up to `last` as updates and returns the reader, which is to go on in [`Conversation::run`].
    pub(super) async fn replay(&self, out: &Out, last: u64) -> Result<Live, Fault> {
        let mut live = self.live(0);
        while live.follow.at() < last {
            match live.follow.next().await? {
                Followed::Event(event) => live.take(self, out, &event).await,
                Followed::Lost(_) => {}
                Followed::End(end) => {
                    if end.end != EndReason::Archived {
                        return Err(Fault::new(INTERNAL, ended(end.end, end.why.as_deref()).message()));
                    }
                    break;
                }
            }
        }
        Ok(live)
    }

    /// A reader of the events after a number.
    pub(super) fn live(&self, after: u64) -> Live {
        let follow = self.client.follow_session(&self.address(), after);
        Live { follow, updates: Updates::default(), calls: Calls::default() }
    }

    /// Sends events as updates, asks the editor about tools, and answers its prompts, until the session ends.
    pub(super) async fn run(self, mut live: Live, out: Out, asking: mpsc::Sender<Asking>) {
        let mut asked = JoinSet::new();
        // What waited before the editor came waits for it too.
        for call in live.calls.asked().to_vec() {
            self.ask(&mut asked, &asking, call.turn, &call.call, &live.calls);
        }
        let fault = loop {
            let followed = tokio::select! {
                followed = live.follow.next() => followed,
                Some(_) = asked.join_next() => continue,
            };
            match followed {
                Ok(Followed::Event(event)) => {
                    live.take(&self, &out, &event).await;
                    if let Happened::ToolAsked { turn, call, .. } = event.happened() {
                        self.ask(&mut asked, &asking, turn, &call, &live.calls);
                    }
                }
                Ok(Followed::Lost(_)) => {}
                Ok(Followed::End(end)) if end.end == EndReason::Moved && end.node.is_some() => {
                    let id = self.id.rsplit_once('@').map_or(self.id.as_str(), |(id, _)| id);
                    let moved = address(id, &end.node.unwrap_or_default());
                    live.follow = self.client.follow_session(&moved, live.follow.at());
                    self.shared().address = moved;
                }
                Ok(Followed::End(end)) => {
                    break Fault::new(INTERNAL, ended(end.end, end.why.as_deref()).message());
                }
                Err(error) => break error.into(),
            }
        };
        let mut shared = self.shared();
        for (_, prompted) in shared.prompts.drain() {
            let _ = prompted.done.send(Err(fault.clone())); // an editor that took it back hears nothing
        }
        shared.ended = Some(fault);
    }

    /// Asks the editor about a call, and decides as it says.
    fn ask(
        &self,
        asked: &mut JoinSet<()>,
        asking: &mpsc::Sender<Asking>,
        turn: u32,
        call: &str,
        calls: &Calls,
    ) {
        if asked.len() >= ASKED_MAX {
            return;
        }
        let option = |id: &str, name: &str, kind: &str| json!({"optionId": id, "name": name, "kind": kind});
        let params = json!({
            "sessionId": self.id,
            "toolCall": {"toolCallId": call_id(turn, call), "title": calls.line(call)},
            "options": [option("allow", "Allow", "allow_once"), option("deny", "Deny", "reject_once")],
        });
        let (answer, answered) = oneshot::channel();
        let (conversation, asking, call) = (self.clone(), asking.clone(), call.to_owned());
        asked.spawn(async move {
            if asking.send(Asking { params, answer }).await.is_err() {
                return;
            }
            // Without an answer that chooses, the call goes on waiting: its turn was cancelled, or others may decide.
            let Ok(Some(result)) = answered.await else { return };
            let allowed =
                match (result["outcome"]["outcome"].as_str(), result["outcome"]["optionId"].as_str()) {
                    (Some("selected"), Some("allow")) => true,
                    (Some("selected"), Some("deny")) => false,
                    _ => return,
                };
            let decision = DecideTool { session: conversation.address(), turn, call, allowed };
            // One who was quicker has decided already, which the events say.
            let _ = patiently(|_| (), || conversation.client.decide(&decision)).await;
        });
    }

    /// Notes what an event means for the editor's prompts. Whether it is one of them.
    fn note(&self, happened: &Happened) -> bool {
        let mut shared = self.shared();
        match happened {
            Happened::Prompted { prompt, .. } => return shared.prompts.contains_key(prompt),
            Happened::TurnStarted { turn, prompt } => {
                if let Some(prompted) = shared.prompts.get_mut(prompt) {
                    prompted.turn = Some(*turn);
                }
            }
            Happened::TurnEnded { turn, outcome, .. } => {
                let own = shared.prompts.iter().find(|(_, prompted)| prompted.turn == Some(*turn));
                if let Some(id) = own.map(|(id, _)| id.clone())
                    && let Some(prompted) = shared.prompts.remove(&id)
                {
                    let answer = match stop_reason(outcome) {
                        Ok(word) => Ok(json!({"stopReason": word})),
                        Err(why) => Err(Fault::new(INTERNAL, format!("the turn failed: {why}"))),
                    };
                    let _ = prompted.done.send(answer); // an editor that took it back hears nothing
                }
            }
            _ => {}
        }
        false
    }
}

/// A reader of a session, and how far it got.
pub(super) struct Live {
    follow: SessionFollow,
    updates: Updates,
    calls: Calls,
}

impl Live {
    async fn take(&mut self, conversation: &Conversation, out: &Out, event: &SessionEvent) {
        let happened = event.happened();
        self.calls.take(&happened);
        let parts: &[EventPart] = match &happened {
            Happened::Prompted { parts, .. } | Happened::Steered { parts, .. } => parts,
            Happened::ToolEnded { result, .. } => &result.parts,
            _ => &[],
        };
        let words = said(&conversation.client, &conversation.address(), parts).await;
        let updates = self.updates.of(&happened, &words);
        // A turn's end is told after all of its updates, and its prompt is not told to who said it.
        let is_own = matches!(happened, Happened::Prompted { .. }) && conversation.note(&happened);
        for update in updates.into_iter().filter(|_| !is_own) {
            let params = json!({"sessionId": conversation.id, "update": update});
            out.send(notice("session/update", params)).await;
        }
        if !matches!(happened, Happened::Prompted { .. }) {
            conversation.note(&happened);
        }
    }
}
