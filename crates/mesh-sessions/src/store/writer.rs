//! The one task that writes. Whatever arrives while a commit is under way is in the next one: a group of events is as
//! durable as each alone would be, at the price of one wait for the disk. The next group is made while one is written.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use futures_util::future::BoxFuture;
use sqlx::{Connection, Row, SqliteConnection};
use tokio::sync::mpsc;

use super::effects::TO_INDEX;
use super::error::StorageError;
use super::head::Head;
use super::lock::Lock;
use super::place::ROWS_MAX;
use super::plan::{Admitted, Plan, WriteJob};
use super::{read, search, statement};
use crate::ids::{BlobId, SessionId};
use crate::log::Topics;

/// Jobs taken at a time: a group is written in a few milliseconds, so that the first of it does not wait for long.
const GROUP_JOBS_MAX: usize = 1024;

/// Bytes of events after which a group is written at once.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Heads in memory, of about 150 bytes each. When there are more all are forgotten, and read again as they are needed.
const HEADS_MAX: usize = 10_000;

/// Sessions that a file ever had, up to which their ids are kept in memory, in a few megabytes: who forks need not wait for
/// a look into the file.
const IDS_MAX: i64 = 50_000;

/// Texts that may wait to be indexed; then they are as soon as nothing is to be written.
const UNINDEXED_MAX: usize = 64;

/// Work for the writer.
pub(super) enum Job {
    /// Events, written with those of others.
    Write(WriteJob),
    /// Anything else, done alone between two groups.
    Alone(Task),
    /// The end, after all that was asked before.
    Close,
}

/// Something that the writer does alone; it answers by itself.
pub(super) type Task = Box<dyn for<'a> FnOnce(&'a mut Writer) -> BoxFuture<'a, ()> + Send>;

/// How much was written since the file was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) events: AtomicU64,
    pub(super) commits: AtomicU64,
}

/// The state of the task.
pub(super) struct Writer {
    pub(super) connection: SqliteConnection,
    pub(super) heads: HashMap<SessionId, Head>,
    pub(super) topics: Arc<Topics>,
    /// The ids of all sessions, hidden ones too, once somebody has asked; none again when other ids come or go than those
    /// of new sessions.
    pub(super) ids: Option<HashSet<SessionId>>,
    /// Rows of sessions that are being imported.
    pub(super) imports: HashSet<i64>,
    /// Texts that are to be indexed, as far as is known.
    pub(super) unindexed: usize,
    counters: Arc<Counters>,
    last_row: i64,
    lock: Lock,
}

impl Writer {
    pub(super) async fn new(
        mut connection: SqliteConnection,
        topics: Arc<Topics>,
        counters: Arc<Counters>,
        lock: Lock,
    ) -> Result<Self, StorageError> {
        let sql = "SELECT coalesce(max(row), 0) FROM sessions";
        let last_row = sqlx::query(sql).fetch_one(&mut connection).await?.try_get(0)?;
        Ok(Self {
            connection,
            heads: HashMap::new(),
            topics,
            ids: None,
            imports: HashSet::new(),
            unindexed: 0,
            counters,
            last_row,
            lock,
        })
    }

    /// Writes until it is told to end, or nobody is left who could ask for more.
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let (mut group, mut waiting) = (Vec::new(), VecDeque::new());
        while !waiting.is_empty() || jobs.recv_many(&mut group, GROUP_JOBS_MAX).await > 0 {
            waiting.extend(group.drain(..));
            let mut plan = Plan::default();
            let mut alone = None;
            while let Some(job) = waiting.pop_front() {
                match job {
                    Job::Write(job) => plan.admit(&mut self, job).await,
                    Job::Alone(task) => alone = Some(task),
                    Job::Close => jobs.close(),
                }
                if alone.is_some() || plan.bytes > GROUP_BYTES_MAX {
                    break;
                }
            }
            match alone {
                // What comes meanwhile comes after it.
                Some(task) => {
                    self.commit(plan, None, &mut waiting).await;
                    task(&mut self).await;
                }
                None => self.commit(plan, Some(&mut jobs), &mut waiting).await,
            }
            if self.unindexed >= UNINDEXED_MAX && waiting.is_empty() && jobs.is_empty() {
                self.index().await;
            }
        }
        self.end().await;
    }

    async fn index(&mut self) {
        if let Err(error) = search::index(self).await {
            tracing::warn!(%error, "texts of sessions could not be indexed; the next search tries it again");
            self.note(&error);
            self.unindexed = 0;
        }
    }

    /// Writes a group. What comes while it is written is made the next one, which is begun before those of this one are told: so
    /// the disk does not wait for them. It is made of what can be seen in memory to follow; the first job that takes a look into
    /// the file waits until all this is written, and those after it with it.
    async fn commit(
        &mut self,
        mut plan: Plan,
        mut jobs: Option<&mut mpsc::Receiver<Job>>,
        waiting: &mut VecDeque<Job>,
    ) {
        let mut written = Vec::new();
        while !plan.admitted.is_empty() {
            let Plan { rows, statements, admitted, heads, .. } = plan;
            let events = rows.len() as u64;
            let said = statements.iter().filter(|statement| statement.sql == TO_INDEX).count();
            let mut next = Plan::default();
            let done = {
                let mut committing = pin!(statement::commit(&mut self.connection, rows, statements));
                let mut done = poll_fn(|context| Poll::Ready(committing.as_mut().poll(context))).await;
                tell(&self.topics, mem::take(&mut written));
                loop {
                    if let Poll::Ready(done) = done {
                        break done;
                    }
                    let room = GROUP_JOBS_MAX.saturating_sub(next.admitted.len());
                    let is_open = waiting.is_empty() && room > 0 && next.bytes <= GROUP_BYTES_MAX;
                    let more = jobs.as_mut().filter(|_| is_open);
                    tokio::select! {
                        biased;
                        finished = &mut committing => done = Poll::Ready(finished),
                        more = recv_more(more, room) => match more {
                            Some(more) => {
                                for job in more {
                                    let job = match job {
                                        Job::Write(job) if waiting.is_empty() => {
                                            next.join([&heads, &self.heads], job).err().map(Job::Write)
                                        }
                                        job => Some(job),
                                    };
                                    waiting.extend(job);
                                }
                            }
                            // Nobody is left who could ask for more.
                            None => jobs = None,
                        }
                    }
                }
            };
            match done.map_err(StorageError::from) {
                Ok(()) => {
                    self.counters.events.fetch_add(events, Ordering::Relaxed);
                    self.counters.commits.fetch_add(1, Ordering::Relaxed);
                    self.unindexed += said;
                    if self.heads.len() > HEADS_MAX {
                        self.heads.clear();
                    }
                    self.heads.extend(heads);
                    written = admitted;
                }
                Err(error) => {
                    tracing::warn!(%error, events, "events could not be written");
                    self.note(&error);
                    // What is in the file now is asked of the file. The next group was to follow this one.
                    self.heads.clear();
                    self.ids = None;
                    let failed = admitted.into_iter().chain(mem::take(&mut next.admitted));
                    failed.for_each(|admitted| admitted.acknowledge(Err(error.clone())));
                }
            }
            plan = next;
        }
        tell(&self.topics, written);
    }

    /// The end of a session's log; none when it is not here.
    pub(super) async fn head(&mut self, session: SessionId) -> Result<Option<Head>, StorageError> {
        if let Some(head) = self.heads.get(&session) {
            return Ok(Some(head.clone()));
        }
        let head = Head::load(&mut self.connection, session).await.inspect_err(|error| self.note(error))?;
        if let Some(head) = &head {
            self.heads.insert(session, head.clone());
        }
        Ok(head)
    }

    /// A row for a new session, which none had since the file was opened: what is known by a row stays true.
    pub(super) fn next_row(&mut self) -> Result<i64, StorageError> {
        if self.last_row >= ROWS_MAX {
            return Err(StorageError::Full);
        }
        self.last_row += 1;
        Ok(self.last_row)
    }

    /// Whether there is a session of this id, hidden or not; if not, there will be.
    pub(super) async fn take_id(&mut self, session: SessionId) -> Result<bool, StorageError> {
        if self.last_row > IDS_MAX {
            let row =
                sqlx::query("SELECT 1 FROM sessions WHERE session = ?").bind(session.as_bytes().to_vec());
            return Ok(row.fetch_optional(&mut self.connection).await?.is_some());
        }
        let ids = match &mut self.ids {
            Some(ids) => ids,
            none => {
                let sql = "SELECT session FROM sessions WHERE length(session) = 16";
                let rows = sqlx::query(sql).fetch_all(&mut self.connection).await?;
                let ids = rows.iter().map(|row| read::session_id(row.try_get(0)?));
                none.insert(ids.collect::<Result<_, StorageError>>()?)
            }
        };
        Ok(!ids.insert(session))
    }

    pub(super) async fn has_blob(&mut self, blob: BlobId) -> Result<bool, StorageError> {
        let row = sqlx::query("SELECT 1 FROM blobs WHERE hash = ?").bind(blob.0.to_vec());
        Ok(row.fetch_optional(&mut self.connection).await?.is_some())
    }

    /// Remembers damage for the next opening.
    pub(super) fn note(&self, error: &StorageError) {
        if matches!(error, StorageError::Damaged { .. }) {
            self.lock.mark_damaged();
        }
    }

    async fn end(self) {
        let Self { mut connection, topics, lock, .. } = self;
        topics.close();
        let done = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await;
        match (done, connection.close().await) {
            (Ok(_), Ok(())) => lock.mark_clean(),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, "the session store was not closed in order; it is checked when it is opened");
            }
        }
    }
}

/// The jobs that come next, when any are wanted; none when there will never be one again.
async fn recv_more(jobs: Option<&mut &mut mpsc::Receiver<Job>>, room: usize) -> Option<Vec<Job>> {
    let Some(jobs) = jobs else { return std::future::pending().await };
    let mut more = Vec::new();
    (jobs.recv_many(&mut more, room).await > 0).then_some(more)
}

/// Tells everybody that what they asked for is on the disk.
fn tell(topics: &Topics, written: Vec<Admitted>) {
    for admitted in written {
        topics.publish(admitted.session, &admitted.events, admitted.bytes);
        admitted.acknowledge(Ok(()));
    }
}
