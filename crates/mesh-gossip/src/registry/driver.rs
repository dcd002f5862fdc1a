//! The task that owns a node's registry: its sign of life, the file, and the rounds of asking others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::contents::Contents;
use super::discovery::{Ask, Mdns, Place, Rounds, Sighting};
use super::file::{FileError, Found, RegistryFile, Stamp};
use super::local::{Change, Local, Moved};
use super::node::{Entry, Facts, Status};
use super::{Clock, View};

/// A node that does not answer for so long is asked again in the next round.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// What others are told of a stop may take so long; they notice by the silence else.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// Requests of one round that run at a time; more wait for their turn.
const ASKS_MAX: usize = 16;
/// Rounds of asking in the time of one heartbeat: news pass three nodes before the next one.
const ROUNDS_PER_BEAT: u32 = 3;

pub(super) enum Command {
    Set(Facts),
    /// Entries that came from elsewhere: an announcement, a bridge. Answered when they are merged and written.
    Learn(Vec<Entry>, oneshot::Sender<()>),
    /// Entries whose nodes somebody else sees alive.
    Seen(Vec<Entry>),
}

pub(super) struct Driver {
    pub(super) local: Local,
    pub(super) file: RegistryFile,
    pub(super) clock: Clock,
    pub(super) heartbeat: Duration,
    pub(super) poll: Duration,
    pub(super) rounds: Rounds,
    pub(super) ask: Option<Arc<dyn Ask>>,
    pub(super) mdns: Option<Mdns>,
    pub(super) views: watch::Sender<Arc<View>>,
    pub(super) stamp: Option<Stamp>,
    /// Whether it was said that another one has this node's name.
    pub(super) contested: bool,
    /// What was last said of the file, so that a folder that is away is told of once.
    pub(super) fault: Option<String>,
    /// The places that did not answer the last time.
    pub(super) silent: BTreeMap<String, String>,
}

type Answer = (Place, Result<Vec<Entry>, String>);

impl Driver {
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, cancel: CancellationToken) {
        let start = Instant::now();
        let (mut beat, mut poll, mut round) = (start + self.heartbeat, start + self.poll, start);
        let mut asks: JoinSet<Answer> = JoinSet::new();
        let mut waiting: Vec<Place> = Vec::new();
        loop {
            let stale = self.local.tick(now()).map(Instant::from_std);
            self.publish();
            while asks.len() < ASKS_MAX
                && let Some(place) = waiting.pop()
            {
                self.begin(&mut asks, place);
            }
            let next = [beat, poll, round].into_iter().chain(stale).min().unwrap_or(beat);
            tokio::select! { biased;
                () = cancel.cancelled() => break,
                () = sleep_until(next) => {
                    let at = Instant::now();
                    if at >= beat {
                        beat = at + self.heartbeat;
                        self.local.beat(Status::Online, (self.clock)());
                        self.write().await;
                    }
                    if at >= poll {
                        poll = at + self.poll;
                        self.look().await;
                    }
                    if at >= round {
                        round = at + self.heartbeat / ROUNDS_PER_BEAT;
                        if waiting.is_empty() && self.ask.is_some() {
                            waiting = self.rounds.targets(&self.local);
                        }
                    }
                }
                command = commands.recv() => match command {
                    Some(command) => self.handle(command).await,
                    None => break,
                },
                Some(answer) = asks.join_next() => match answer {
                    Ok((place, answer)) => self.answered(&place, answer).await,
                    Err(error) => tracing::warn!(%error, "asking a node of the registry failed"),
                },
                sighting = sighting(&mut self.mdns) => match sighting {
                    Some(Sighting::Found { instance, place }) => {
                        if self.rounds.found(instance, place.clone()) {
                            waiting.push(place);
                        }
                    }
                    Some(Sighting::Lost { instance }) => self.rounds.lost(&instance),
                    None => self.mdns = None,
                },
            }
        }
        asks.shutdown().await;
        self.goodbye().await;
    }

    async fn handle(&mut self, command: Command) {
        let now_ms = (self.clock)();
        match command {
            Command::Set(facts) => {
                if self.local.set(facts, now_ms) {
                    self.write().await;
                }
            }
            Command::Learn(entries, reply) => {
                let moved = self.local.merge(entries, now(), now_ms);
                self.pass_on(moved).await;
                self.publish(); // whoever is answered reads it there
                let _ = reply.send(()); // who asked may have gone
            }
            Command::Seen(entries) => {
                let sight = |entry| self.local.sight(entry, self.heartbeat, now(), now_ms);
                let moved = entries.into_iter().map(sight).max().unwrap_or_default();
                self.pass_on(moved).await;
            }
        }
    }

    /// Signs of life alone wait for this node's own.
    async fn pass_on(&mut self, moved: Moved) {
        if moved == Moved::News {
            self.write().await;
        }
    }

    fn begin(&self, asks: &mut JoinSet<Answer>, place: Place) {
        let Some(ask) = &self.ask else { return };
        let asked = ask.exchange(place.clone(), self.local.own().value());
        asks.spawn(async move {
            let answer = match timeout(ASK_TIMEOUT, asked).await {
                Ok(Ok(value)) => Contents::read(value).map(told).map_err(|fault| fault.to_string()),
                Ok(Err(error)) => Err(chain(error.as_ref())),
                Err(_) => Err(format!("no answer for {} s", ASK_TIMEOUT.as_secs())),
            };
            (place, answer)
        });
    }

    async fn answered(&mut self, place: &Place, answer: Result<Vec<Entry>, String>) {
        match answer {
            Ok(entries) => {
                if self.silent.remove(&place.to_string()).is_some() {
                    tracing::info!(%place, "a node of the registry answers again");
                }
                let moved = self.local.merge(entries, now(), (self.clock)());
                self.pass_on(moved).await;
            }
            Err(why) => {
                if self.silent.get(&place.to_string()) != Some(&why) {
                    tracing::warn!(%place, why, "a node of the registry does not answer; it is asked again and again");
                    self.silent.insert(place.to_string(), why);
                }
            }
        }
    }

    /// Reads the file when it changed, and writes it when it lacks something.
    async fn look(&mut self) {
        let (file, before) = (self.file.clone(), self.stamp);
        let looked = blocking(move || {
            let stamp = file.stamp();
            if stamp.is_some() && stamp == before {
                Ok(None)
            } else {
                file.read().map(|found| Some((stamp, found)))
            }
        });
        let lacking = match looked.await {
            Ok(None) => false,
            Ok(Some((stamp, Found::Contents(contents)))) => {
                self.stamp = stamp;
                self.local.merge(contents.nodes().values().cloned(), now(), (self.clock)());
                self.local.is_missing_from(&contents)
            }
            Ok(Some(_)) => true,
            Err(error) => {
                self.failed(&error);
                false
            }
        };
        if lacking {
            self.write().await;
        }
    }

    /// Merges what is known here with what the file holds, on both sides. Once more when somebody else counted in this node's
    /// name; after that the next look goes on.
    pub(super) async fn write(&mut self) {
        for _ in 0..2 {
            let (file, known, now_ms) = (self.file.clone(), self.local.clone(), (self.clock)());
            let written =
                blocking(move || file.update_stamped(now_ms, |contents| known.write_into(contents))).await;
            match written {
                Ok((contents, stamp)) => {
                    if self.fault.take().is_some() {
                        tracing::info!(path = %self.file.path().display(), "the registry's file is kept again");
                    }
                    self.stamp = stamp;
                    self.local.merge(contents.nodes().values().cloned(), now(), now_ms);
                    if !self.local.is_missing_from(&contents) {
                        return;
                    }
                }
                Err(error) => return self.failed(&error),
            }
        }
    }

    fn failed(&mut self, error: &FileError) {
        let text = chain(error);
        if self.fault.as_ref() != Some(&text) {
            tracing::warn!(error = text, "the registry's file is not kept; it is tried again and again");
            self.fault = Some(text);
        }
    }

    fn publish(&mut self) {
        for change in self.local.take_changes() {
            match change {
                Change::Joined(node) => tracing::info!(node, "a node is in the registry"),
                Change::Left(node) => tracing::info!(node, "a node of the registry has stopped"),
                Change::Stale(node) => tracing::warn!(node, "a node of the registry is silent"),
                Change::Contested if self.contested => {}
                Change::Contested => {
                    self.contested = true;
                    tracing::warn!(
                        node = self.local.own().id(),
                        "somebody else writes this node's entry of the registry: no two nodes may have one name"
                    );
                }
                Change::Returned(node) => tracing::info!(node, "a node of the registry is back"),
            }
        }
        let view = View::of(&self.local);
        self.views.send_if_modified(|before| {
            let differs = **before != view;
            if differs {
                *before = Arc::new(view);
            }
            differs
        });
    }

    /// Says offline in the file, to others and on the network.
    async fn goodbye(&mut self) {
        self.local.beat(Status::Offline, (self.clock)());
        self.write().await;
        self.publish();
        let mut asks = JoinSet::new();
        for place in self.rounds.targets(&self.local).into_iter().take(ASKS_MAX) {
            self.begin(&mut asks, place);
        }
        let told = async { while asks.join_next().await.is_some() {} };
        if timeout(GOODBYE_TIMEOUT, told).await.is_err() {
            tracing::debug!("not everybody heard that this node stops");
        }
        if let Some(mdns) = self.mdns.take() {
            blocking(move || mdns.close()).await;
        }
    }
}

/// Runs what waits for a disk or a network on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.ends_with(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}

/// What an answer says of nodes. That one is silent there is no news here: either it is here too, or it moves.
fn told(contents: Contents) -> Vec<Entry> {
    contents.nodes().values().filter(|entry| !entry.is_hearsay()).cloned().collect()
}

async fn sighting(mdns: &mut Option<Mdns>) -> Option<Sighting> {
    match mdns {
        Some(mdns) => mdns.next().await,
        None => std::future::pending().await,
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
