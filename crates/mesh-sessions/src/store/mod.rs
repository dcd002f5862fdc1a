//! Sessions on disk: a numbered log of events for each, in one SQLite file.
//!
//! [`Store`] is the handle. Appends of all sessions that arrive while a commit is under way go into the next one, with
//! `synchronous=FULL`: what was acknowledged is on the disk. An event is never changed and its number never given again.
//! A fork is one row that names a parent and a cut; its reader walks through its parents. Each event has a checksum over
//! all before it in its session, so that a reader never gets anything but what was written.
//!
//! The store does not decide what may be said in a session (that is the state machine's) and reads no clock.

mod blobs;
mod chain;
mod check;
mod effects;
mod error;
mod hand_over;
mod head;
mod list;
mod lock;
mod open;
mod place;
mod plan;
mod read;
mod repair;
mod retain;
mod search;
mod statement;
mod transfer;
mod writer;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod rights_tests;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use sqlx::SqlitePool;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub use blobs::{BLOB_BYTES_MAX, PutError, SNAPSHOT_BYTES_MAX};
pub use check::{Check, Damage};
pub use error::{AppendError, CreateError, ForkError, OpenError, ReadError, StorageError};
pub use hand_over::Bringing;
pub(crate) use hand_over::Summary;
pub use list::{Filter, Kind, LIST_MAX, Listed, ResolveError, State};
pub use read::ReadLimit;
pub use repair::{Lost, Repair};
pub use retain::{Retained, Retention};
pub use search::{HITS_MAX, Hit};
pub(crate) use transfer::Sign;
pub use transfer::{ExportError, ImportError, Imported};

use chain::Checksum;
use plan::{Addition, Draft, WriteJob};
use writer::{Counters, Job, Writer};

use crate::event::{Body, Event};
use crate::ids::{EventNumber, SessionId};
use crate::log::{Follower, Topics};

/// The longest event, in bytes of JSON: arguments of a tool that writes a whole file stand in one.
pub const EVENT_BYTES_MAX: usize = 1024 * 1024;

/// The most forks in a row, each of the one before: a reader walks through all of them.
pub const FORKS_MAX: u32 = 1000;

/// Jobs that wait for the writer; who has another waits for a place. A group takes as many.
const JOBS_MAX: usize = 1024;

/// How a store works.
#[derive(Debug, Clone)]
pub struct Config {
    /// Reads at a time, each with a thread of its own; 4 by default, as more find no core.
    pub readers: u32,
    /// The structure of a file that was not closed in order is checked at its opening when it has at most so many bytes:
    /// 64 MiB by default, which takes some tenths of a second. Events are checked whenever they are read.
    pub check_bytes_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { readers: 4, check_bytes_max: 64 * 1024 * 1024 }
    }
}

/// Events for the end of a log.
#[derive(Debug, Clone)]
pub struct Append {
    /// The session.
    pub session: SessionId,
    /// The epoch in which the caller writes it: 1 for its first host.
    pub epoch: u64,
    /// What the caller takes for the last event; none when it does not matter.
    pub after: Option<EventNumber>,
    /// The caller's clock, in milliseconds since 1970.
    pub at_ms: u64,
    /// What happened, in order.
    pub bodies: Vec<Body>,
}

/// The sessions of a node; clones share them.
///
/// Cancel safety of all that writes: a dropped future may or may not take effect, in whole. What reads changes nothing.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    jobs: mpsc::Sender<Job>,
    read: SqlitePool,
    topics: Arc<Topics>,
    counters: Arc<Counters>,
    repair: Option<Repair>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// How much a store has written since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Events.
    pub events: u64,
    /// Transactions that wrote them.
    pub commits: u64,
}

impl Store {
    /// Opens the file at `path`, making it when it is not there; its folder must be. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`OpenError`]; then nothing is left open.
    pub async fn open(path: &Path, config: Config) -> Result<Self, OpenError> {
        let open::Opened { connection, read, lock, repair } = open::open(path, &config).await?;
        let (topics, counters) = (Arc::new(Topics::default()), Arc::new(Counters::default()));
        let writer = Writer::new(connection, topics.clone(), counters.clone(), lock).await;
        let writer = writer.map_err(|source| OpenError::Storage { path: path.to_owned(), source })?;
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let task = tokio::spawn(writer.run(queue));
        let inner = Inner { jobs, read, topics, counters, repair, writer: Mutex::new(Some(task)) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Ends the store: what was asked for before is done, followers end, later calls fail. Idempotent.
    ///
    /// When the last clone is dropped without it the same happens a little later.
    pub async fn close(&self) {
        let writer = self.inner.writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // Readers first: the last connection that is closed clears the write-ahead log away.
            self.inner.read.close().await;
            let _ = self.inner.jobs.send(Job::Close).await;
            if let Err(error) = writer.await {
                tracing::warn!(%error, "the writer of the session store did not end in order");
            }
        }
    }

    /// Makes a session. `bodies` starts with [`Body::Created`].
    ///
    /// # Errors
    /// [`CreateError`]; then nothing was written.
    pub async fn create(
        &self,
        session: SessionId,
        at_ms: u64,
        bodies: Vec<Body>,
    ) -> Result<Vec<Arc<Event>>, CreateError> {
        let drafts = Draft::all(bodies).map_err(|error| CreateError::Events(Box::new(error)))?;
        self.write(session, at_ms, drafts, |reply| Addition::Create { reply }).await?
    }

    /// Adds events to a session. Returns once they are on the disk, with the numbers that they got.
    ///
    /// # Errors
    /// [`AppendError`]; then none was written.
    pub async fn append(&self, append: Append) -> Result<Vec<Arc<Event>>, AppendError> {
        let Append { session, epoch, after, at_ms, bodies } = append;
        let drafts = Draft::all(bodies)?;
        self.write(session, at_ms, drafts, |reply| Addition::Append { epoch, after, reply }).await?
    }

    /// Makes a session whose events up to `cut` are those of `parent`, whatever the parent does later, in the same small
    /// time and space however long it is. `bodies` starts with [`Body::Forked`], which gets the number after the cut.
    ///
    /// # Errors
    /// [`ForkError`]; then nothing was written.
    pub async fn fork(
        &self,
        parent: SessionId,
        cut: EventNumber,
        session: SessionId,
        at_ms: u64,
        bodies: Vec<Body>,
    ) -> Result<Vec<Arc<Event>>, ForkError> {
        let drafts = Draft::all(bodies).map_err(|error| ForkError::Events(Box::new(error)))?;
        self.write(session, at_ms, drafts, |reply| Addition::Fork { parent, cut, reply }).await?
    }

    /// Follows a session: the events after `after` that there are, then those to come. It never holds the writer up; who
    /// follows slowly reads from the file.
    ///
    /// # Errors
    /// [`ReadError`]: there is no such session, or it has no event of this number, so that what the caller has read is
    /// not in this log.
    pub async fn follow(&self, session: SessionId, after: EventNumber) -> Result<Follower, ReadError> {
        Follower::new(self.clone(), &self.inner.topics, session, after).await
    }

    /// What the opening did to a broken file; none when the file was whole.
    pub fn repair(&self) -> Option<&Repair> {
        self.inner.repair.as_ref()
    }

    /// How much was written since the opening.
    pub fn counts(&self) -> Counts {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Counts { events: read(&self.inner.counters.events), commits: read(&self.inner.counters.commits) }
    }

    /// Who follows a session now, and how often.
    pub fn followers(&self) -> usize {
        self.inner.topics.followers()
    }

    async fn write<E>(
        &self,
        session: SessionId,
        at_ms: u64,
        drafts: Vec<Draft>,
        addition: impl FnOnce(plan::Reply<E>) -> Addition,
    ) -> Result<Result<Vec<Arc<Event>>, E>, StorageError> {
        let (reply, answer) = oneshot::channel();
        let at_ms = i64::try_from(at_ms).unwrap_or(i64::MAX);
        let job = WriteJob { session, at_ms, drafts, addition: addition(reply) };
        self.inner.jobs.send(Job::Write(job)).await.map_err(|_| StorageError::Closed)?;
        answer.await.map_err(|_| StorageError::Closed)
    }

    /// Has the writer do something alone, between two groups.
    async fn alone<T: Send + 'static>(
        &self,
        task: impl for<'a> FnOnce(&'a mut Writer) -> BoxFuture<'a, Result<T, StorageError>> + Send + 'static,
    ) -> Result<T, StorageError> {
        let (reply, answer) = oneshot::channel();
        let task: writer::Task = Box::new(move |writer| {
            Box::pin(async move {
                let done = task(writer).await.inspect_err(|error| writer.note(error));
                let _ = reply.send(done);
            })
        });
        self.inner.jobs.send(Job::Alone(task)).await.map_err(|_| StorageError::Closed)?;
        answer.await.map_err(|_| StorageError::Closed)?
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("counts", &self.counts()).finish_non_exhaustive()
    }
}
