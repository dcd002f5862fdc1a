//! Models that are not on this machine yet: from members close by, else from the hub or a URL.
//!
//! A [`Fetch`] downloads what [`source::Source`] names, checks it, and puts it into the first model folder, where the next
//! scan of the catalogue finds it. It also serves `blob/1`, by which members take files from this node. What has come of a
//! file is kept beside its place as `NAME.part`, and every download goes on from there.
//!
//! **Invariant:** bytes of members count only where a SHA-256 says in the end that they are right: the hub's, the caller's,
//! or, for a model that nothing but its name is known of, the one that all members who have it agree on.
//!
//! `docs/protocols/blob.md` says how it works.

mod blob;
mod config;
mod digest;
mod disk;
mod error;
mod index;
mod job;
mod part;
mod progress;
mod source;
mod stats;
mod stream;
#[cfg(test)]
mod tests;
mod way;
mod web;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use mesh_transport::{Handler, Protocol, Transport};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Config, ENDPOINT};
pub use digest::Sha256Hash;
pub use error::FetchError;
pub use progress::{Progress, Stage};
pub use source::{HubFile, Source, SourceError, UrlFile};
pub use stats::FetchStats;
pub use way::Proxies;

use blob::Blobs;
use job::Job;
use progress::Meter;
use stats::Counters;
use web::Web;

/// Downloads models, and gives them to members. Clones are handles to the same one.
#[derive(Clone)]
pub struct Fetch {
    inner: Arc<Inner>,
}

struct Inner {
    config: Arc<Config>,
    web: Web,
    transport: Option<Transport>,
    blobs: Blobs,
    counters: Arc<Counters>,
    running: Mutex<BTreeMap<String, Weak<Running>>>,
    turns: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A download that is under way or has ended. Clones, and everybody who asks for the same model meanwhile, share it; with the
/// last of them dropped it is stopped, and what has come is kept.
#[derive(Clone)]
pub struct Pull {
    running: Arc<Running>,
}

struct Running {
    progress: watch::Receiver<Progress>,
    outcome: watch::Receiver<Option<Result<Pulled, FetchError>>>,
    cancel: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// A model that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Its files, in order.
    pub files: Vec<PathBuf>,
    /// Size of all of them.
    pub bytes: u64,
    /// What says that they are right.
    pub checked: Checked,
}

/// What says that a file is the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Checked {
    /// Nothing but its length, and the security of the connection.
    Not,
    /// The SHA-256 that all members agree on who have a model of this name.
    Members,
    /// The SHA-256 of the hub, or of the URL's fragment.
    Sha256,
    /// It was here before, and was not looked at.
    Here,
}

impl Fetch {
    /// What members ask for files by.
    pub const PROTOCOL: Protocol = blob::PROTOCOL;

    /// Ready to download; with a transport, members are asked first. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When transport security cannot be set up.
    pub fn new(config: Config, transport: Option<Transport>) -> Result<Self, rustls::Error> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let counters = Arc::new(Counters::default());
        let blobs = Blobs::new(&config, counters.clone(), tasks.clone(), stop.child_token());
        let inner = Inner {
            web: Web::new(&config)?,
            turns: Arc::new(Semaphore::new(config.pulls_max.max(1))),
            config: Arc::new(config),
            transport,
            blobs,
            counters,
            running: Mutex::default(),
            tasks,
            stop,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Serves [`Fetch::PROTOCOL`] to members: GGUF files of the model folders, and nothing else.
    pub fn handler(&self) -> Arc<dyn Handler> {
        self.inner.blobs.handler()
    }

    /// What a text means to this node.
    ///
    /// # Errors
    /// [`SourceError`].
    pub fn source(&self, text: &str) -> Result<Source, SourceError> {
        Source::parse(text, &self.inner.config.endpoint)
    }

    /// Begins to download a model, or joins the download of it that is under way.
    ///
    /// # Errors
    /// [`FetchError::Source`] and [`FetchError::NoFolder`]; all else comes from [`Pull::done`].
    pub fn pull(&self, text: &str) -> Result<Pull, FetchError> {
        let source = self.source(text)?;
        if self.inner.config.folders.is_empty() {
            return Err(FetchError::NoFolder);
        }
        let key = format!("{source:?}");
        let mut running = self.inner.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, running| running.strong_count() > 0);
        if let Some(running) = running.get(&key).and_then(Weak::upgrade)
            && running.outcome.borrow().is_none()
        {
            return Ok(Pull { running });
        }
        let (meter, progress) = Meter::new(self.inner.counters.clone());
        let (told, outcome) = watch::channel(None);
        let cancel = self.inner.stop.child_token();
        let new = Arc::new(Running { progress, outcome, cancel: cancel.clone() });
        running.insert(key, Arc::downgrade(&new));
        drop(running);
        let job = Job {
            config: self.inner.config.clone(),
            web: self.inner.web.clone(),
            transport: self.inner.transport.clone(),
            blobs: self.inner.blobs.clone(),
            meter,
            stop: cancel.clone(),
        };
        let (turns, name) = (self.inner.turns.clone(), source.to_string());
        self.inner.tasks.spawn(async move {
            let run = async {
                let _turn = turns.acquire_owned().await;
                job.run(source).await
            };
            let ended = tokio::select! {
                biased;
                () = cancel.cancelled() => Err(FetchError::Cancelled),
                ended = run => ended,
            };
            match &ended {
                Ok(pulled) => tracing::info!(model = name, bytes = pulled.bytes, "a model has come"),
                Err(error) => tracing::info!(model = name, %error, "a model did not come"),
            }
            told.send_replace(Some(ended));
        });
        Ok(Pull { running: new })
    }

    /// What has come and what was given away, so far.
    pub fn stats(&self) -> FetchStats {
        self.inner.counters.snapshot()
    }

    /// Stops every download and whatever is served. Idempotent; returns when no task is left.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Pull {
    /// How far it is. The channel ends with the download.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.running.progress.clone()
    }

    /// How it ended; `None` while it is under way.
    pub fn outcome(&self) -> Option<Result<Pulled, FetchError>> {
        self.running.outcome.borrow().clone()
    }

    /// Waits until the model is here. Cancel safe: the download goes on while a [`Pull`] of it is held.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn done(&self) -> Result<Pulled, FetchError> {
        let mut outcome = self.running.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().unwrap_or(Err(FetchError::Cancelled)),
            Err(_) => Err(FetchError::Cancelled), // the runtime ends
        }
    }
}

impl std::fmt::Debug for Pull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pull").field("progress", &*self.running.progress.borrow()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Fetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetch").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

/// Between the half of it and all of it.
fn jittered(time: Duration) -> Duration {
    let mut random = [0; 2];
    // Without randomness the wait is the whole one.
    let part =
        getrandom::fill(&mut random).map_or(1.0, |()| f64::from(u16::from_le_bytes(random)) / 65_536.0);
    time.mul_f64(0.5 + part / 2.0)
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = cause.source();
    }
    text
}
