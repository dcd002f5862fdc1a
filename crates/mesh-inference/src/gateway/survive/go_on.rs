//! Going on with an answer elsewhere.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, select_all};
use http::StatusCode;
use mesh_routing::Target;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Asked;
use super::continuation::Continuation;
use super::delivery::{Delivery, Left};
use super::events::{Held, TooLong, event, events};
use super::rewrite::{Counts, closing, rewrite};
use super::told::Told;
use crate::backend::Backend;
use crate::gateway::attempt::{Forward, Maker, Taken};
use crate::gateway::endpoint::Endpoint;
use crate::gateway::error::ApiError;
use crate::gateway::relay::Relay;
use crate::gateway::serve::{Caller, Core};
use crate::gateway::stats::Stats;

/// Keeps the caller's connection, and its patience, while nothing else comes.
const COMMENT: &[u8] = b": the answer goes on soon\n\n";
/// Between two comments.
const COMMENT_EVERY: Duration = Duration::from_secs(3);
/// Between two rounds over those who might go on. A round is cheap: whoever is not ready is not asked.
const ROUND_EVERY: Duration = Duration::from_millis(200);
/// Times that one answer may lose its host; a request that kills each of them must end.
const HOSTS_MAX: usize = 16;
/// Pieces taken in one step.
const GATHERED_MAX: usize = 64;
/// Longest answer read whole, in bytes: one token and its counts, or an error.
const WHOLE_MAX: usize = 256 * 1024;

/// One answer that lost its host.
pub(crate) struct GoOn {
    core: Arc<Core>,
    asked: Asked,
    told: Told,
    delivery: Delivery,
    /// Tokens of the request itself, once counted.
    prompt: Option<u64>,
}

/// Why a host did not finish the answer.
enum Lost {
    /// Another may.
    Host(String),
    /// Nobody can.
    Answer(String),
    /// The caller has left.
    Caller,
}

/// What a host makes.
#[derive(Clone, Copy)]
enum Making {
    /// The answer from its beginning, to be passed on as it is.
    Whole,
    /// Its rest, with the counts of what came before.
    Rest(Option<Counts>),
}

/// What a round over the hosts has found.
enum Begun {
    /// The rest of the answer.
    Rest(Box<Relay>, Option<Counts>),
    /// There is no rest: why it ended, if that was not told, and its counts, if they are wanted.
    Nothing(Option<&'static str>, Option<Counts>),
}

impl GoOn {
    pub(crate) fn new(core: Arc<Core>, asked: Asked, told: Told, delivery: Delivery) -> Self {
        Self { core, asked, told, delivery, prompt: None }
    }

    /// Sends the rest of the answer, and one terminal event.
    ///
    /// `clean_end`: the host closed the answer as HTTP wants it. When nobody can go on with such an answer it ends as
    /// its host ended it, with this last.
    pub(crate) async fn run(mut self, why: String, clean_end: Option<Bytes>) {
        let body = self.asked.body.bytes.clone();
        let continuation = match Continuation::of(self.asked.endpoint, &body) {
            Ok(continuation) => continuation,
            Err(_) if clean_end.is_some() => {
                let _ = self.send(clean_end.unwrap_or_default()).await;
                return;
            }
            Err(pinned) => {
                return self.give_up(&format!("{why}; it has {pinned}, so no other can go on with it")).await;
            }
        };
        tracing::info!(model = &*self.asked.model, why, "Transient disconnect detected");
        let mut why = why;
        for _ in 0..HOSTS_MAX {
            match self.with_next(&continuation, &why).await {
                Ok(()) | Err(Lost::Caller) => return,
                Err(Lost::Host(next)) => why = next,
                Err(Lost::Answer(why)) => return self.give_up(&why).await,
            }
        }
        self.give_up(&format!("{why}, and {} hosts before it were lost too", HOSTS_MAX - 1)).await;
    }

    /// Passes on an answer from its beginning, and goes on with it when its host is lost.
    pub(crate) async fn run_whole(mut self, relay: Relay) {
        match self.pass(relay, Making::Whole).await {
            Ok(()) | Err(Lost::Caller) => {}
            Err(Lost::Host(why) | Lost::Answer(why)) => self.run(why, None).await,
        }
    }

    async fn give_up(&mut self, why: &str) {
        tracing::warn!(model = &*self.asked.model, why, "an answer broke off");
        Stats::add(&self.core.stats.lost);
        let last = ApiError::upstream_lost(why).last_event(self.asked.endpoint.stream_form());
        let _ = self.send(last).await;
    }

    async fn send(&mut self, piece: Bytes) -> Result<(), Lost> {
        self.delivery.send(piece).await.map_err(|Left| Lost::Caller)
    }

    /// Finds the next host and passes on what it says, until the answer or the host ends.
    async fn with_next(&mut self, continuation: &Continuation<'_>, why: &str) -> Result<(), Lost> {
        if let Some(strange) = self.told.strange {
            return Err(Lost::Answer(format!("{why}; it has {strange}, so no other can go on with it")));
        }
        if self.told.finished && (self.told.counted || !continuation.wants_counts()) {
            return self.send(event("[DONE]")).await;
        }
        self.send(Bytes::from_static(COMMENT)).await?;
        let out = self.delivery.comments();
        let begun = commenting(&out, self.next_host(continuation, why)).await?;
        Stats::add(&self.core.stats.continued);
        tracing::info!(model = &*self.asked.model, "Stream reconnected successfully");
        match begun {
            Begun::Rest(relay, counts) => self.pass(*relay, Making::Rest(counts)).await,
            Begun::Nothing(reason, counts) => {
                let chat = self.asked.endpoint == Endpoint::Chat;
                if chat && reason.is_some() {
                    self.send(closing(&self.told, chat, reason, None)).await?;
                    if continuation.wants_counts() {
                        self.send(closing(&self.told, chat, None, counts)).await?;
                    }
                } else {
                    self.send(closing(&self.told, chat, reason, counts)).await?;
                }
                self.send(event("[DONE]")).await
            }
        }
    }

    /// Asks whoever might go on, round by round, until one does or the time is over.
    async fn next_host(&mut self, continuation: &Continuation<'_>, why: &str) -> Result<Begun, Lost> {
        let limit = self.core.config.continue_timeout;
        let deadline = Instant::now() + limit;
        loop {
            let tried = match self.round(continuation).await {
                Ok(begun) => return Ok(begun),
                Err(Lost::Host(tried)) => tried,
                Err(lost) => return Err(lost),
            };
            if self.core.is_dropped(&self.asked.model) {
                return Err(Lost::Answer(format!("{why}; the model was dropped")));
            }
            if Instant::now() + ROUND_EVERY >= deadline {
                tracing::warn!(model = &*self.asked.model, after = ?limit, "Stream reconnection timeout");
                return Err(Lost::Answer(format!("{why}; nobody went on with it within {limit:?}: {tried}")));
            }
            self.core.until_something_changes(&self.asked.model).await;
        }
    }

    async fn round(&mut self, continuation: &Continuation<'_>) -> Result<Begun, Lost> {
        let counts = self.count(continuation).await?;
        let left = match (continuation.limit(), counts) {
            (Some(limit), Some(counts)) => Some(limit.saturating_sub(counts.produced)),
            _ => None,
        };
        if self.told.finished {
            return Ok(Begun::Nothing(None, counts));
        }
        if left == Some(0) && self.told.has_text() {
            return Ok(Begun::Nothing(Some("length"), counts));
        }
        let taken = self.ask(continuation.body(&self.told, left)).await?;
        self.asked.maker = Some(taken.maker);
        if !taken.is_event_stream() {
            return Err(Lost::Host("it answers without a stream".into()));
        }
        Ok(Begun::Rest(Box::new(taken.relay), counts))
    }

    /// The tokens of the prompt and of the text so far, when anybody needs to know.
    async fn count(&mut self, continuation: &Continuation<'_>) -> Result<Option<Counts>, Lost> {
        if !self.told.has_text() && !self.told.finished {
            return Ok(None);
        }
        if continuation.limit().is_none() && !continuation.wants_counts() {
            return Ok(None);
        }
        let one_each = self.told.is_ascii() && continuation.holds_nothing_back();
        if self.prompt.is_none() && (continuation.wants_counts() || !one_each) {
            self.prompt = Some(self.tokens_of(continuation.counting_body(&Told::default())).await?);
        }
        let produced = match self.prompt {
            Some(prompt) if !one_each => {
                let whole = self.tokens_of(continuation.counting_body(&self.told)).await?;
                whole.saturating_sub(prompt).max(self.told.chunks)
            }
            _ => self.told.chunks,
        };
        Ok(Some(Counts { prompt: self.prompt, produced }))
    }

    async fn tokens_of(&self, body: Vec<u8>) -> Result<u64, Lost> {
        #[derive(Deserialize)]
        struct Counted {
            usage: Usage,
        }
        #[derive(Deserialize)]
        struct Usage {
            prompt_tokens: u64,
        }
        let taken = self.ask(body).await?;
        let whole = read_whole(taken.relay).await.map_err(Lost::Host)?;
        let counted: Counted = serde_json::from_slice(&whole)
            .map_err(|_| Lost::Host("it does not count the tokens of a prompt".into()))?;
        Ok(counted.usage.prompt_tokens)
    }

    /// Asks the hosts of this moment, best first.
    async fn ask(&self, body: Vec<u8>) -> Result<Taken, Lost> {
        let forward = self.asked.forward(body.into());
        let local = self.core.going_on_here(&self.asked.model);
        let refused = |error: ApiError| Lost::Host(error.message);
        let targets = self.core.targets(&self.asked.caller(), &self.asked.model, &local).map_err(refused)?;
        let taken = self.ask_the_lost_one_last(&forward, targets, local).await.map_err(refused)?;
        if taken.head.status == StatusCode::OK {
            return Ok(taken);
        }
        let status = taken.head.status;
        let said = read_whole(taken.relay).await.unwrap_or_default();
        let said: String = String::from_utf8_lossy(&said).chars().take(300).collect();
        Err(Lost::Answer(format!("to go on with it was refused ({}): {said}", status.as_u16())))
    }

    /// Whoever lost the answer may lose it again, though it still looks ready: it hangs, or its death has not shown yet.
    async fn ask_the_lost_one_last(
        &self,
        forward: &Forward<'_>,
        targets: Vec<Target>,
        local: Vec<Arc<Backend>>,
    ) -> Result<Taken, ApiError> {
        let lost = self.asked.maker;
        let is_lost = |backend: &Arc<Backend>| lost == Some(Maker::Backend(self.core.backend_key(backend)));
        let (last_here, here): (Vec<_>, Vec<_>) = local.into_iter().partition(is_lost);
        let (last, first): (Vec<_>, Vec<_>) = targets.into_iter().partition(|target| match target {
            Target::Local => here.is_empty(),
            Target::Peer { node, .. } => lost == Some(Maker::Peer(*node)),
        });
        let mut tried = self.core.try_all(forward, &first, &here).await;
        if tried.is_err() && !(last.is_empty() && last_here.is_empty()) {
            let last = if last_here.is_empty() { last } else { vec![Target::Local] };
            tried = self.core.try_all(forward, &last, &last_here).await;
        }
        tried
    }

    /// Passes on what a host says, as part of the one answer.
    async fn pass(&mut self, mut relay: Relay, making: Making) -> Result<(), Lost> {
        let mut held = Held::default();
        let mut waiting = true;
        loop {
            let next = relay.next();
            let out = self.delivery.comments();
            let next = if waiting { commenting(&out, next.map(Ok)).await? } else { next.await };
            let whole = match next {
                Some(Ok(piece)) => self.with_more(&mut held, piece, &mut relay),
                None | Some(Err(_)) if self.told.over => {
                    relay.complete();
                    return Ok(());
                }
                // As its first host ended it; what is missing is the end mark, which nobody else needs to make.
                None if self.told.finished => return self.send(event("[DONE]")).await,
                None => return Err(Lost::Host("the backend ended it early".into())),
                Some(Err(why)) => {
                    relay.failed();
                    return Err(Lost::Host(why));
                }
            };
            let mut made = Vec::with_capacity(whole.len());
            for event in events(&whole) {
                let event = match making {
                    Making::Whole => Some(Bytes::copy_from_slice(event)),
                    Making::Rest(counts) => rewrite(event, &self.told, counts),
                };
                let Some(event) = event else { continue };
                self.told.hear(&event);
                made.extend_from_slice(&event);
            }
            waiting &= made.is_empty();
            self.send(made.into()).await?;
        }
    }
}

impl GoOn {
    /// Takes what else is there already: where each step costs a round trip, steps should be large.
    fn with_more(&self, held: &mut Held, first: Bytes, relay: &mut Relay) -> Bytes {
        let pass = |held: &mut Held, piece| held.pass(piece).unwrap_or_else(|TooLong(all)| all);
        let mut whole = pass(held, first);
        for _ in 0..GATHERED_MAX {
            let Some(Some(Ok(piece))) = relay.take_ready() else { break };
            whole = [whole, pass(held, piece)].concat().into();
        }
        whole
    }
}

impl Core {
    /// This node's backends that can go on with an answer of a model.
    fn going_on_here(&self, model: &str) -> Vec<Arc<Backend>> {
        self.local(&Caller::Local, model).into_iter().filter(|backend| backend.continues()).collect()
    }

    /// Whether nobody is to be waited for.
    pub(in crate::gateway) fn is_dropped(&self, model: &str) -> bool {
        self.going_on_here(model).is_empty() && self.routes.is_dropped(model)
    }

    /// Waits a moment, less when a backend of the model comes up meanwhile.
    pub(in crate::gateway) async fn until_something_changes(&self, model: &str) {
        let mut list = self.backends.watch();
        let mut states: Vec<_> =
            self.going_on_here(model).iter().map(|backend| backend.state.clone()).collect();
        // What changed before this round was seen by it, or is seen by the next one.
        list.mark_unchanged();
        states.iter_mut().for_each(watch::Receiver::mark_unchanged);
        let mut changes: Vec<BoxFuture<'_, ()>> = vec![changed(&mut list).boxed()];
        changes.extend(states.iter_mut().map(|state| changed(state).boxed()));
        let _ = tokio::time::timeout(ROUND_EVERY, select_all(changes)).await;
    }
}

/// Waits for a change, for ever when there will be none.
async fn changed<T>(value: &mut watch::Receiver<T>) {
    if value.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits for `work`, telling the caller now and then that something is still coming.
async fn commenting<T>(
    out: &mpsc::Sender<Bytes>,
    work: impl Future<Output = Result<T, Lost>>,
) -> Result<T, Lost> {
    let mut work = pin!(work);
    loop {
        match tokio::time::timeout(COMMENT_EVERY, work.as_mut()).await {
            Ok(done) => return done,
            Err(_) => out.send(Bytes::from_static(COMMENT)).await.map_err(|_| Lost::Caller)?,
        }
    }
}

async fn read_whole(mut relay: Relay) -> Result<Vec<u8>, String> {
    let mut whole = Vec::new();
    while let Some(piece) = relay.next().await {
        let piece = piece?;
        if whole.len() + piece.len() > WHOLE_MAX {
            return Err("its answer is too long".into());
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole)
}

impl fmt::Debug for GoOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GoOn").field("model", &self.asked.model).finish_non_exhaustive()
    }
}
