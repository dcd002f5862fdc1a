//! Answers that outlive the backend that began them.
//!
//! While an answer passes, what its caller has got is kept. When its backend dies, another one (or the same, once it is
//! back) is asked to go on behind the text so far; the caller sees comments, then the rest. What can be gone on with
//! stands in `docs/protocols/gateway.md`.

mod continuation;
mod delivery;
mod events;
mod fields;
mod go_on;
mod kept;
mod resume;
mod rewrite;
mod told;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use tokio::sync::mpsc;

use super::attempt::{Forward, Maker};
use super::body::TakenBody;
use super::endpoint::Endpoint;
use super::own::OwnCall;
use super::relay::{Broken, Relay};
use super::serve::{Caller, Core};
use delivery::Delivery;
pub(crate) use events::{Held, TooLong, data_of, events};
pub(crate) use fields::{Fields, split_value};
use go_on::GoOn;
use kept::Kept;

/// Pieces of a continued answer made ahead of the caller. Few: each waits until the caller reads.
const AHEAD_MAX: usize = 4;

/// A request, kept until its answer is over.
pub(crate) struct Asked {
    pub(crate) endpoint: Endpoint,
    pub(crate) headers: HeaderMap,
    pub(crate) id: HeaderValue,
    pub(crate) body: TakenBody,
    pub(crate) model: Arc<str>,
    /// Who made the answer last, and is asked last to go on with it.
    pub(crate) maker: Option<Maker>,
    /// The agent of this node that asked, if one did.
    pub(crate) own: Option<Arc<OwnCall>>,
}

impl Asked {
    /// Who goes on asking.
    pub(crate) fn caller(&self) -> Caller {
        self.own.clone().map_or(Caller::Local, Caller::Own)
    }

    /// This request with another body, for those who can go on with an answer.
    pub(crate) fn forward(&self, body: Bytes) -> Forward<'_> {
        let model = self.model.clone();
        Forward {
            endpoint: self.endpoint,
            headers: &self.headers,
            id: &self.id,
            body,
            model,
            continuing: true,
            last: None,
            // Only this node's own llama-server goes on, and it has no quota.
            on_behalf_of: None,
        }
    }
}

/// An answer on its way to the caller, whoever makes it.
pub(crate) struct Survivor {
    phase: Phase,
}

enum Phase {
    /// The first backend's answer, byte for byte.
    Passing(Box<Passing>),
    /// As much, but nothing is kept of it any more: a failure ends it.
    Plain(Box<Relay>),
    /// After a failure.
    Made(Made),
    Over,
}

struct Passing {
    core: Arc<Core>,
    asked: Asked,
    relay: Relay,
    kept: Kept,
}

/// An answer that is made in steps: the steps are polled by whoever reads it, so that they end with it.
pub(crate) struct Made {
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    pieces: mpsc::Receiver<Bytes>,
}

impl Survivor {
    /// `relay` is the answer to `asked`. Without memory to keep it, it passes unkept.
    pub(crate) fn new(core: Arc<Core>, asked: Asked, relay: Relay) -> Self {
        let phase = match Kept::new(core.bodies.clone()) {
            Some(kept) => Phase::Passing(Box::new(Passing { core, asked, relay, kept })),
            None => Phase::Plain(Box::new(relay)),
        };
        Self { phase }
    }

    /// An answer that is made in steps from its beginning.
    pub(crate) fn made(made: Made) -> Self {
        Self { phase: Phase::Made(made) }
    }

    pub(crate) fn is_over(&self) -> bool {
        match &self.phase {
            Phase::Passing(_) | Phase::Made(_) => false,
            Phase::Plain(relay) => relay.is_done(),
            Phase::Over => true,
        }
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            match &mut self.phase {
                Phase::Passing(passing) => match ready!(passing.poll_step(cx)) {
                    Step::Pass(piece) => return Poll::Ready(Some(Ok(piece))),
                    Step::Last(piece) => {
                        self.phase = Phase::Over;
                        return Poll::Ready((!piece.is_empty()).then_some(Ok(piece)));
                    }
                    Step::Unkept(piece) => {
                        if let Phase::Passing(mut passing) = std::mem::replace(&mut self.phase, Phase::Over) {
                            passing.relay.note_sent(&piece);
                            self.phase = Phase::Plain(Box::new(passing.relay));
                        }
                        return Poll::Ready(Some(Ok(piece)));
                    }
                    Step::Broken { why, clean_end } => {
                        if let Phase::Passing(passing) = std::mem::replace(&mut self.phase, Phase::Over) {
                            self.phase = Phase::Made(passing.go_on(why, clean_end));
                        }
                    }
                },
                Phase::Plain(relay) => return relay.poll_next(cx),
                Phase::Made(made) => {
                    let piece = ready!(made.poll_next(cx));
                    if piece.is_none() {
                        self.phase = Phase::Over;
                    }
                    return Poll::Ready(piece.map(Ok));
                }
                Phase::Over => return Poll::Ready(None),
            }
        }
    }
}

/// What comes of the backend's next piece.
enum Step {
    Pass(Bytes),
    /// The answer is complete behind this, which may be empty.
    Last(Bytes),
    /// The answer is not kept from here on.
    Unkept(Bytes),
    /// The backend failed. `clean_end`: it ended the answer as HTTP wants it, with the answer's own end missing and this
    /// half event last.
    Broken {
        why: String,
        clean_end: Option<Bytes>,
    },
}

impl Passing {
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        loop {
            return Poll::Ready(match ready!(self.relay.poll_piece(cx)) {
                Some(Ok(piece)) => match self.kept.held.pass(piece) {
                    Ok(whole) if whole.is_empty() => continue,
                    Ok(whole) if self.kept.note(&whole) => {
                        self.relay.note_passed(&whole);
                        Step::Pass(whole)
                    }
                    Ok(whole) => {
                        let half = self.kept.held.take();
                        Step::Unkept(if half.is_empty() {
                            whole
                        } else {
                            [&whole[..], &half].concat().into()
                        })
                    }
                    Err(TooLong(all)) => Step::Unkept(all),
                },
                None => {
                    let rest: Bytes = self.kept.held.take().into();
                    let told = self.kept.told();
                    if told.over || told.finished || told.strange.is_some() {
                        Step::Last(rest)
                    } else {
                        Step::Broken { why: "the backend ended it early".into(), clean_end: Some(rest) }
                    }
                }
                Some(Err(_)) if self.kept.told().over => {
                    self.relay.complete();
                    Step::Last(Bytes::new())
                }
                Some(Err(why)) => {
                    self.relay.failed();
                    Step::Broken { why, clean_end: None }
                }
            });
        }
    }

    fn go_on(mut self: Box<Self>, why: String, clean_end: Option<Bytes>) -> Made {
        let told = std::mem::take(self.kept.told());
        let Self { core, asked, relay, kept } = *self;
        // Its connection is of no use any more; its slot may be what the next attempt needs.
        drop(relay);
        Made::new(|out| async move {
            GoOn::new(core, asked, told, Delivery::plain(out)).run(why, clean_end).await;
            // The text's share of the memory.
            drop(kept);
        })
    }
}

impl Made {
    pub(crate) fn new<F: Future<Output = ()> + Send + 'static>(
        work: impl FnOnce(mpsc::Sender<Bytes>) -> F,
    ) -> Self {
        let (out, pieces) = mpsc::channel(AHEAD_MAX);
        Self { work: Some(Box::pin(work(out))), pieces }
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Poll::Ready(Some(piece)) = self.pieces.poll_recv(cx) {
            return Poll::Ready(Some(piece));
        }
        if let Some(work) = &mut self.work
            && work.as_mut().poll(cx).is_ready()
        {
            self.work = None;
        }
        self.pieces.poll_recv(cx)
    }
}
