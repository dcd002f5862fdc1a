//! A delegation under way, and whoever waits for what comes of it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::desk::Piece;
use super::fault::{Code, Fault};
use super::message::{MessageResponse, Status};
use super::metrics::{Counters, Ending};

/// What a delegation has said so far. It is written by its own task alone.
pub(crate) struct Work {
    begun: Instant,
    said: Mutex<Said>,
    /// Tells of each change of `said`.
    changed: Notify,
    /// Those who wait.
    readers: AtomicUsize,
    /// Somebody wants it to end.
    is_cancelled: AtomicBool,
    /// Tells of each change of these two.
    wanted: Notify,
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
            changed: Notify::new(),
            readers: AtomicUsize::new(0),
            is_cancelled: AtomicBool::new(false),
            wanted: Notify::new(),
        })
    }

    /// A reader from the beginning.
    pub(crate) fn read(self: &Arc<Self>) -> Reader {
        self.readers.fetch_add(1, SeqCst);
        self.wanted.notify_waiters();
        Reader { work: self.clone(), at: 0, has_begun: false }
    }

    /// Takes what the agent says until it is done, and ends it when it is not to go on.
    pub(crate) async fn carry_out(
        &self,
        mut pieces: BoxStream<'static, Piece>,
        terms: Terms,
        stop: &CancellationToken,
        counters: &Counters,
    ) {
        let mut unwanted = std::pin::pin!(self.unwanted(terms.orphaned));
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
                fault = &mut unwanted => break Err(fault),
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
        // Counted before anybody hears of it.
        counters.delegated(Ending::of(&outcome));
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
        self.is_cancelled.store(true, SeqCst);
        self.wanted.notify_waiters();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(SeqCst)
    }

    /// What came of it; none while it is under way.
    pub(crate) fn outcome(&self) -> Option<Result<MessageResponse, Fault>> {
        self.lock().outcome.clone()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().outcome.is_some()
    }

    /// What it holds in memory.
    pub(crate) fn bytes(&self) -> usize {
        let said = self.lock();
        let answer = said.outcome.as_ref().and_then(|outcome| outcome.as_ref().ok());
        said.text.len() + answer.map_or(0, |answer| answer.response.len())
    }

    /// Resolves when it is to end early: cancelled, or without anybody who waits for so long.
    async fn unwanted(&self, orphaned: Option<Duration>) -> Fault {
        let has_readers = || self.readers.load(SeqCst) > 0;
        loop {
            self.until(|| !has_readers() && orphaned.is_some() || self.is_cancelled()).await;
            if self.is_cancelled() {
                return Fault::new(Code::Conflict, "cancelled, as somebody asked for");
            }
            let comes_back = self.until(|| has_readers() || self.is_cancelled());
            if tokio::time::timeout(orphaned.unwrap_or_default(), comes_back).await.is_err() {
                return Fault::new(Code::Conflict, "cancelled: nobody waited for the answer any more")
                    .with_mend("send it again under another Idempotency-Key");
            }
        }
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        loop {
            // Hears of every change from here on.
            let wanted = self.wanted.notified();
            if is_so() {
                return;
            }
            wanted.await;
        }
    }

    fn change(&self, how: impl FnOnce(&mut Said)) {
        how(&mut self.lock());
        self.changed.notify_waiters();
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
        let work = self.work.clone();
        loop {
            // Heard of from before it is looked at: what comes in between ends the wait below.
            let changed = work.changed.notified();
            if let Some(news) = self.look() {
                return news;
            }
            changed.await;
        }
    }

    /// The outcome, once there is one. Cancel safe.
    pub(crate) async fn outcome(&self) -> Result<MessageResponse, Fault> {
        loop {
            let changed = self.work.changed.notified();
            if let Some(outcome) = self.work.outcome() {
                return outcome;
            }
            changed.await;
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
        self.work.readers.fetch_sub(1, SeqCst);
        self.work.wanted.notify_waiters();
    }
}
