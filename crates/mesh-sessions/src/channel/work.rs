//! A delegation under way, and whoever waits for what comes of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::desk::Piece;
use super::fault::{Code, Fault};
use super::message::{MessageResponse, Status};

/// What a delegation has said so far. It is written by its own task alone.
pub(crate) struct Work {
    begun: Instant,
    said: Mutex<Said>,
    /// Rises with each change of `said`.
    changes: watch::Sender<u64>,
    /// Those who wait.
    readers: watch::Sender<usize>,
    /// Somebody wants it to end.
    cancelled: CancellationToken,
}

#[derive(Default)]
struct Said {
    agent: String,
    session: Option<String>,
    text: String,
    outcome: Option<Result<MessageResponse, Fault>>,
}

/// How a delegation is carried out.
pub(crate) struct Terms {
    /// When it is given up.
    pub(crate) deadline: Duration,
    /// How long it goes on when nobody waits; none for as long as it takes.
    pub(crate) orphaned: Option<Duration>,
    /// The longest answer.
    pub(crate) answer_bytes_max: usize,
}

impl Work {
    /// Nothing yet.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            said: Mutex::default(),
            changes: watch::Sender::new(0),
            readers: watch::Sender::new(0),
            cancelled: CancellationToken::new(),
        })
    }

    /// A reader from the beginning.
    pub(crate) fn read(self: &Arc<Self>) -> Reader {
        self.readers.send_modify(|readers| *readers += 1);
        Reader { work: self.clone(), changes: self.changes.subscribe(), at: 0, has_begun: false }
    }

    /// Takes what the agent says until it is done, and ends it when it is not to go on.
    pub(crate) async fn carry_out(
        &self,
        mut pieces: BoxStream<'static, Piece>,
        terms: Terms,
        stop: CancellationToken,
    ) {
        let mut orphaned = std::pin::pin!(self.is_orphaned(terms.orphaned));
        let mut deadline = std::pin::pin!(tokio::time::sleep(terms.deadline));
        let outcome = loop {
            let piece = tokio::select! {
                biased;
                piece = pieces.next() => piece,
                () = &mut deadline => {
                    let within = terms.deadline.as_millis();
                    let why = format!("the agent was not done within {within} ms");
                    break Err(Fault::new(Code::TimedOut, why).with_mend("allow more by timeoutMs"));
                }
                () = &mut orphaned => {
                    break Err(Fault::new(Code::Conflict, "cancelled: nobody waited for the answer any more")
                        .with_mend("send it again under another Idempotency-Key"));
                }
                () = self.cancelled.cancelled() => {
                    break Err(Fault::new(Code::Conflict, "cancelled, as somebody asked for"));
                }
                () = stop.cancelled() => {
                    break Err(Fault::new(Code::Unavailable, "the node is shutting down"));
                }
            };
            match piece {
                Some(Piece::Begun { agent, session }) => self.change(|said| {
                    said.agent = agent;
                    said.session = session;
                }),
                Some(Piece::Text(text)) => {
                    if self.lock().text.len() + text.len() > terms.answer_bytes_max {
                        break Err(too_long(terms.answer_bytes_max));
                    }
                    self.change(|said| said.text.push_str(&text));
                }
                Some(Piece::Done { answer })
                    if answer.as_ref().is_some_and(|a| a.len() > terms.answer_bytes_max) =>
                {
                    break Err(too_long(terms.answer_bytes_max));
                }
                Some(Piece::Done { answer }) => break Ok(answer),
                Some(Piece::Failed(fault)) => break Err(fault),
                None => break Err(Fault::new(Code::Internal, "the agent ended without an answer")),
            }
        };
        drop(pieces);
        let duration_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.change(|said| {
            said.outcome = Some(outcome.map(|answer| MessageResponse {
                response: answer.unwrap_or_else(|| said.text.clone()),
                agent: said.agent.clone(),
                duration_ms,
                status: Status::Completed,
            }));
        });
    }

    /// Ends it early, for everybody who waits.
    pub(crate) fn cancel(&self) {
        self.cancelled.cancel();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.is_cancelled()
    }

    /// What came of it; none while it is under way.
    pub(crate) fn outcome(&self) -> Option<Result<MessageResponse, Fault>> {
        self.lock().outcome.clone()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().outcome.is_some()
    }

    pub(crate) fn is_done_well(&self) -> bool {
        matches!(self.lock().outcome, Some(Ok(_)))
    }

    /// What it holds in memory.
    pub(crate) fn bytes(&self) -> usize {
        let said = self.lock();
        let answer = said.outcome.as_ref().and_then(|outcome| outcome.as_ref().ok());
        said.text.len() + answer.map_or(0, |answer| answer.response.len())
    }

    async fn is_orphaned(&self, after: Option<Duration>) {
        let Some(after) = after else { return std::future::pending().await };
        let mut readers = self.readers.subscribe();
        loop {
            // Its sender is `self`: it does not close.
            let _ = readers.wait_for(|readers| *readers == 0).await;
            let comes_back = readers.wait_for(|readers| *readers > 0);
            if tokio::time::timeout(after, comes_back).await.is_err() {
                return;
            }
        }
    }

    fn change(&self, how: impl FnOnce(&mut Said)) {
        how(&mut self.lock());
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_long(bytes_max: usize) -> Fault {
    Fault::new(Code::AgentFailed, format!("the agent's answer is longer than {bytes_max} bytes"))
        .with_mend("ask for a shorter one")
}

/// Somebody who waits for a delegation. Dropped, it waits no more.
pub(crate) struct Reader {
    work: Arc<Work>,
    changes: watch::Receiver<u64>,
    /// Bytes of the text that were returned.
    at: usize,
    has_begun: bool,
}

/// What a reader hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// The agent is at work.
    Begun { agent: String, session: Option<String> },
    /// More of the answer.
    Text(String),
    /// It is over.
    Over(Result<MessageResponse, Fault>),
}

impl Reader {
    /// What is new, once there is something; nothing comes after [`News::Over`]. Cancel safe.
    pub(crate) async fn next(&mut self) -> News {
        loop {
            // Seen before it is looked at: what comes in between wakes the wait below.
            self.changes.borrow_and_update();
            if let Some(news) = self.look() {
                return news;
            }
            // The work holds the sender, and this holds the work.
            let _ = self.changes.changed().await;
        }
    }

    /// The outcome, once there is one. Cancel safe.
    pub(crate) async fn outcome(&mut self) -> Result<MessageResponse, Fault> {
        loop {
            self.changes.borrow_and_update();
            if let Some(outcome) = self.work.lock().outcome.clone() {
                return outcome;
            }
            let _ = self.changes.changed().await;
        }
    }

    fn look(&mut self) -> Option<News> {
        let said = self.work.lock();
        if !self.has_begun && !said.agent.is_empty() {
            self.has_begun = true;
            return Some(News::Begun { agent: said.agent.clone(), session: said.session.clone() });
        }
        if self.at < said.text.len() {
            let text = said.text[self.at..].to_owned();
            self.at = said.text.len();
            return Some(News::Text(text));
        }
        said.outcome.clone().map(News::Over)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.work.readers.send_modify(|readers| *readers -= 1);
    }
}
