//! Sessions as text: one JSON object a line, to keep, to look at, to take elsewhere.
//!
//! A head line names the session, an end line counts the events and hashes all lines before it. Between them stand the
//! events as everywhere else, and before the first event that names a content a line with the content. A fork is written
//! whole, with what it has of its parents.

use std::collections::BTreeSet;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_identity::{NodeId, Signature};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::blobs::{BLOB_BYTES_MAX, put};
use super::chain::Checksum;
use super::effects::{blobs, effects};
use super::error::{ReadError, StorageError};
use super::place::{EVENTS_MAX, end, place};
use super::read::ReadLimit;
use super::statement::{self, EventRow, Statement, Value};
use super::writer::Writer;
use super::{Job, Store};
use crate::event::{Body, Event};
use crate::ids::{AgentId, BlobId, EventNumber, SessionId};

/// The version of the format.
const VERSION: u32 = 1;

/// The longest line: the longest content in base64, with its name.
const LINE_BYTES_MAX: usize = BLOB_BYTES_MAX / 3 * 4 + 1024;

/// Events that an import writes at a time.
const STEP: usize = 500;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    qmt_session: u32,
    session: SessionId,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    blob: BlobId,
    base64: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    end: u64,
    blake3: String,
    /// Of the node that hands the session over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature: Option<Signature>,
}

/// Signs a text that has this last event and this hash, or does not.
pub(crate) type Sign<'a> = &'a (dyn Fn(EventNumber, &blake3::Hash) -> Option<Signature> + Send + Sync);

/// A session was not written out, or not wholly.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The session could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A content that an event names is not in the store.
    #[error("blob {0} is not in the store any more")]
    NoSuchBlob(BlobId),
    /// Whoever takes the text did not take it.
    #[error("cannot write the session")]
    Write(#[from] io::Error),
}

impl From<StorageError> for ExportError {
    fn from(error: StorageError) -> Self {
        Self::Read(error.into())
    }
}

/// A session was not imported. No session has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The text could not be read.
    #[error("cannot read the session")]
    Read(#[from] io::Error),
    /// A line is not what stands there in an export.
    #[error("line {line}: {why}")]
    Line {
        /// Which; the first is 1.
        line: u64,
        /// Why not.
        why: String,
    },
    /// The text ends too early, or is not what was exported.
    #[error("the text is not what was exported: {0}")]
    Torn(&'static str),
    /// The session is here with another history.
    #[error("session {session} is here, and goes another way from event {at} on; nothing was overwritten")]
    Differs {
        /// The session.
        session: SessionId,
        /// The first event that is another.
        at: EventNumber,
    },
    /// It is not what the importer is to take in.
    #[error("the session is not taken in: {0}")]
    NotWanted(String),
    /// The session was deleted here while forks need it, or went on while it was imported.
    #[error("session {0} cannot be replaced now: it went on, or it was deleted and forks still need it")]
    InTheWay(SessionId),
    /// The file failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// What an import has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// The session.
    pub session: SessionId,
    /// Its last event.
    pub last: EventNumber,
    /// Events that were not here before.
    pub added: u64,
}

impl Store {
    /// Writes a session out as text, up to its last event of now. Returns how many events it has.
    ///
    /// # Errors
    /// [`ExportError`]; then the text ends early, which its import notices.
    pub async fn export<W: AsyncWrite + Unpin>(
        &self,
        session: SessionId,
        to: &mut W,
    ) -> Result<u64, ExportError> {
        self.export_signed(session, to, &|_, _| None).await
    }

    /// [`Store::export`] with a signature at its end.
    pub(crate) async fn export_signed<W: AsyncWrite + Unpin>(
        &self,
        session: SessionId,
        to: &mut W,
        sign: Sign<'_>,
    ) -> Result<u64, ExportError> {
        let last = self.last(session).await?;
        let mut out = Lines { to, digest: blake3::Hasher::new() };
        out.write(&Head { qmt_session: VERSION, session }).await?;
        let (mut at, mut told) = (EventNumber::START, BTreeSet::new());
        while at < last {
            for event in self.read(session, at, ReadLimit::default()).await? {
                at = event.number;
                if at > last {
                    break;
                }
                for blob in blobs(&event.body) {
                    if told.insert(blob) {
                        let bytes = self.blob(blob).await?.ok_or(ExportError::NoSuchBlob(blob))?;
                        out.write(&Content { blob, base64: STANDARD.encode(bytes) }).await?;
                    }
                }
                out.write(&event).await?;
            }
        }
        let digest = out.digest.finalize();
        let (blake3, signature) = (digest.to_hex().to_string(), sign(last, &digest));
        out.write(&End { end: last.0, blake3, signature }).await?;
        out.to.flush().await?;
        Ok(last.0)
    }

    /// Takes a session in from text. One that is here already goes on where it ends, if all that is here stands in the text
    /// too; nothing is ever overwritten. Takes effect at once at the end, or not at all.
    ///
    /// # Errors
    /// [`ImportError`].
    pub async fn import<R: AsyncBufRead + Unpin>(
        &self,
        from: &mut R,
        now_ms: u64,
    ) -> Result<Imported, ImportError> {
        self.import_if(from, now_ms, &|_| Ok(None)).await
    }

    /// [`Store::import`] of what the check lets through, which is asked when all has come and nothing has changed. What it answers is
    /// written as the event after the last, when this one is new here.
    pub(super) async fn import_if<R: AsyncBufRead + Unpin>(
        &self,
        from: &mut R,
        now_ms: u64,
        check: Check<'_>,
    ) -> Result<Imported, ImportError> {
        let mut text = Text { from, digest: blake3::Hasher::new(), line: 0, bytes: Vec::new() };
        text.next().await?;
        let head: Head = text.parse("it does not begin an exported session")?;
        if head.qmt_session != VERSION {
            return Err(text.wrong(format!("version {} of the format is not known here", head.qmt_session)));
        }
        let row = self.alone(|writer| Box::pin(begin(writer))).await?;
        let staging = Staging { store: self, row };
        let taken = self.take(&mut text, head.session, row, now_ms, check).await;
        drop(staging);
        // What was taken in and is not needed goes; it hinders nobody until it does.
        let purged = self.purge().await;
        let imported = taken?;
        purged?;
        Ok(imported)
    }

    async fn take<R: AsyncBufRead + Unpin>(
        &self,
        text: &mut Text<'_, R>,
        session: SessionId,
        row: i64,
        now_ms: u64,
        check: Check<'_>,
    ) -> Result<Imported, ImportError> {
        let here = match self.last(session).await {
            Ok(last) => last,
            Err(ReadError::Storage(error)) => return Err(error.into()),
            Err(_) => EventNumber::START,
        };
        let mut batch = Batch {
            row,
            last: 0,
            checksum: Checksum::start(session),
            rows: Vec::new(),
            statements: Vec::new(),
            says: Says::new(session),
        };
        let mut known = Vec::new().into_iter();
        loop {
            text.next().await?;
            if text.starts_with(b"{\"blob\"") {
                self.take_content(text, now_ms).await?;
                continue;
            }
            if text.starts_with(b"{\"end\"") {
                break;
            }
            let event: Event = text.parse("it is no event")?;
            if batch.last < here.0 {
                if known.len() == 0 {
                    let after = EventNumber(batch.last);
                    let read = self.read(session, after, ReadLimit::default()).await;
                    known = match read {
                        Ok(events) => events.into_iter(),
                        Err(ReadError::Storage(error)) => return Err(error.into()),
                        Err(_) => return Err(ImportError::InTheWay(session)), // deleted this moment
                    };
                }
                let number = batch.last + 1;
                if known.next().as_ref() != Some(&event) {
                    return Err(ImportError::Differs { session, at: EventNumber(number) });
                }
            }
            for blob in blobs(&event.body) {
                if !self.alone(move |writer| Box::pin(writer.has_blob(blob))).await? {
                    return Err(text.wrong(format!("it names blob {blob}, which stands nowhere before")));
                }
            }
            batch.push(event).map_err(|why| text.wrong(why.to_owned()))?;
            if batch.rows.len() >= STEP {
                self.write_batch(&mut batch).await.map_err(|error| text.duplicate(error))?;
            }
        }
        let digest = text.before_this_line();
        let end: End = text.parse("it is no end")?;
        if end.end != batch.last || end.blake3 != digest.to_hex().as_str() {
            return Err(ImportError::Torn("its end names another number of events or another hash"));
        }
        if batch.last == 0 {
            return Err(text.wrong("there is no event before".to_owned()));
        }
        if text.more().await? {
            return Err(ImportError::Torn("it goes on after its end"));
        }
        self.write_batch(&mut batch).await.map_err(|error| text.duplicate(error))?;
        let last = EventNumber(batch.last);
        let mut last = last;
        let signed = end.signature.map(|signature| (digest, signature));
        let more =
            check(&Says { here, last, signed, ..batch.says.clone() }).map_err(ImportError::NotWanted)?;
        if let Some(body) = more.filter(|_| last >= here) {
            last = last.next();
            batch
                .push(Event { number: last, at_ms: now_ms, body })
                .map_err(|why| text.wrong(why.to_owned()))?;
            self.write_batch(&mut batch).await?;
        }
        let fits = self.alone(move |writer| Box::pin(finish(writer, row, session, here, last))).await?;
        if !fits {
            return Err(ImportError::InTheWay(session));
        }
        Ok(Imported { session, last: last.max(here), added: last.0.saturating_sub(here.0) })
    }

    async fn take_content<R: AsyncBufRead + Unpin>(
        &self,
        text: &Text<'_, R>,
        now_ms: u64,
    ) -> Result<(), ImportError> {
        let Content { blob, base64 } = text.parse("it is no content")?;
        let bytes = STANDARD.decode(base64).map_err(|_| text.wrong("it is no base64".to_owned()))?;
        if bytes.len() > BLOB_BYTES_MAX || BlobId::of(&bytes) != blob {
            return Err(text.wrong("the content is not what its name says".to_owned()));
        }
        let now_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
        let put = self.alone(move |writer| {
            Box::pin(async move { put(&mut writer.connection, blob, &bytes, now_ms).await })
        });
        Ok(put.await?)
    }

    async fn write_batch(&self, batch: &mut Batch) -> Result<(), StorageError> {
        let (rows, statements) = (std::mem::take(&mut batch.rows), std::mem::take(&mut batch.statements));
        if rows.is_empty() {
            return Ok(());
        }
        self.alone(move |writer| {
            Box::pin(async move { Ok(statement::commit(&mut writer.connection, rows, statements).await?) })
        })
        .await
    }
}

/// Makes a hidden session to write to, and returns its row.
async fn begin(writer: &mut Writer) -> Result<i64, StorageError> {
    let row = writer.next_row()?;
    let sql = "INSERT INTO sessions (row, session, agent, owner, state, hidden) VALUES (?, ?, '', '', 'created', 2)";
    let insert = sqlx::query(sql).bind(row).bind(hidden_id(row));
    insert.execute(&mut writer.connection).await?;
    writer.imports.insert(row);
    Ok(row)
}

/// What stands for the id of a session that is none: shorter than an id.
fn hidden_id(row: i64) -> Vec<u8> {
    row.to_be_bytes().to_vec()
}

/// Makes the hidden session the one that it is, in the place of the one that is here; false when that one is not at `here`.
async fn finish(
    writer: &mut Writer,
    row: i64,
    session: SessionId,
    here: EventNumber,
    last: EventNumber,
) -> Result<bool, StorageError> {
    let old = writer.head(session).await?;
    if old.as_ref().map_or(0, |old| old.last) != here.0 {
        return Ok(false);
    }
    if last <= here {
        return Ok(true); // nothing new: the hidden one is cleared away
    }
    let id = Value::Bytes(session.as_bytes().to_vec());
    let mut statements = Vec::new();
    if let Some(old) = &old {
        let old = old.row;
        let moved = Value::Number(place(row, 0) - place(old, 0));
        let hide = "UPDATE sessions SET session = ?, hidden = 1, name = NULL WHERE row = ?";
        statements.push(Statement::new(hide, [Value::Bytes(hidden_id(old)), Value::Number(old)]));
        let adopt = "UPDATE sessions SET parent = ? WHERE parent = ?";
        statements.push(Statement::new(adopt, [Value::Number(row), Value::Number(old)]));
        let states = "UPDATE snapshots SET place = place + ? WHERE place BETWEEN ? AND ?";
        statements
            .push(Statement::new(states, [moved, Value::Number(place(old, 0)), Value::Number(end(old))]));
    } else {
        let sql = "SELECT 1 FROM sessions WHERE session = ?";
        let taken = sqlx::query(sql).bind(session.as_bytes().to_vec());
        if taken.fetch_optional(&mut writer.connection).await?.is_some() {
            return Ok(false);
        }
    }
    let show = "UPDATE sessions SET session = ?, hidden = 0 WHERE row = ?";
    statements.push(Statement::new(show, [id, Value::Number(row)]));
    statement::commit(&mut writer.connection, Vec::new(), statements).await?;
    writer.heads.remove(&session);
    writer.ids = None;
    writer.topics.reached(session, last);
    Ok(true)
}

/// Keeps a hidden session from being cleared away while it is written.
struct Staging<'a> {
    store: &'a Store,
    row: i64,
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        let row = self.row;
        let end: super::writer::Task = Box::new(move |writer| {
            Box::pin(async move {
                writer.imports.remove(&row);
            })
        });
        // When the queue is full the row is cleared away after the next opening.
        let _ = self.store.inner.jobs.try_send(Job::Alone(end));
    }
}

/// Events on their way into a hidden session.
struct Batch {
    row: i64,
    last: u64,
    checksum: Checksum,
    rows: Vec<EventRow>,
    statements: Vec<Statement>,
    says: Says,
}

/// What an import says of its session.
#[derive(Debug, Clone)]
pub(super) struct Says {
    pub(super) session: SessionId,
    pub(super) agent: Option<AgentId>,
    /// The epoch and the host that it ends with; none when it was never handed over.
    pub(super) host: Option<(u64, NodeId)>,
    /// The one before.
    pub(super) host_before: Option<NodeId>,
    /// Whether it ends with being handed over.
    pub(super) is_handed_over: bool,
    /// The hash of the text, and who brings it says by this that it is so.
    pub(super) signed: Option<(blake3::Hash, Signature)>,
    /// Whether nobody has signed the delegations that it says have led to it.
    pub(super) is_forged: bool,
    /// The last event that is here, and the one that there would be.
    pub(super) here: EventNumber,
    pub(super) last: EventNumber,
}

/// Why an import is not wanted, or what is to be written behind it.
pub(super) type Check<'a> = &'a (dyn Fn(&Says) -> Result<Option<Body>, String> + Send + Sync);

impl Says {
    fn new(session: SessionId) -> Self {
        let (here, last) = (EventNumber::START, EventNumber::START);
        Self {
            session,
            agent: None,
            host: None,
            host_before: None,
            is_handed_over: false,
            signed: None,
            is_forged: false,
            here,
            last,
        }
    }

    fn take_in(&mut self, body: &Body) {
        self.is_handed_over = false;
        match body {
            Body::Created { agent, .. } => self.agent = Some(agent.clone()),
            Body::Delegated { scope, chain } => self.is_forged |= !chain.is_signed(scope),
            Body::Forked { .. } => (self.host, self.host_before, self.is_forged) = (None, None, false),
            Body::HandedOver { epoch, to } if self.host.is_none_or(|(last, _)| *epoch > last) => {
                self.host_before = self.host.map(|(_, host)| host);
                (self.host, self.is_handed_over) = (Some((*epoch, *to)), true);
            }
            _ => {}
        }
    }
}

impl Batch {
    fn push(&mut self, event: Event) -> Result<(), &'static str> {
        if event.number.0 != self.last + 1 || event.number.0 > EVENTS_MAX {
            return Err("its number is not the next one");
        }
        match (self.last, &event.body) {
            (0, Body::Created { .. }) => {}
            (0, _) => return Err("a session starts with being created"),
            (_, Body::Created { .. }) => return Err("a session is created once"),
            _ => {}
        }
        let body = serde_json::to_string(&event.body).map_err(|_| "it is no JSON")?;
        if body.len() > super::EVENT_BYTES_MAX {
            return Err("it is longer than an event may be");
        }
        let at_ms = i64::try_from(event.at_ms).map_err(|_| "its time is none")?;
        self.last += 1;
        self.says.take_in(&event.body);
        self.checksum = self.checksum.next(self.last, at_ms, &body);
        self.statements.extend(effects(self.row, self.last, at_ms, &event.body));
        let (place, checksum) = (place(self.row, self.last), self.checksum.to_vec());
        self.rows.push(EventRow { place, at_ms, body, checksum });
        Ok(())
    }
}

/// Lines on their way out.
struct Lines<'a, W> {
    to: &'a mut W,
    digest: blake3::Hasher,
}

impl<W: AsyncWrite + Unpin> Lines<'_, W> {
    async fn write(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(line)?;
        line.push(b'\n');
        self.digest.update(&line);
        self.to.write_all(&line).await
    }
}

/// Lines on their way in.
struct Text<'a, R> {
    from: &'a mut R,
    digest: blake3::Hasher,
    line: u64,
    bytes: Vec<u8>,
}

impl<R: AsyncBufRead + Unpin> Text<'_, R> {
    async fn next(&mut self) -> Result<(), ImportError> {
        self.digest.update(&self.bytes);
        self.bytes.clear();
        self.line += 1;
        let bound = LINE_BYTES_MAX as u64;
        (&mut *self.from).take(bound).read_until(b'\n', &mut self.bytes).await?;
        match self.bytes.last() {
            Some(b'\n') => Ok(()),
            _ if self.bytes.len() as u64 == bound => {
                Err(self.wrong(format!("it is longer than {bound} bytes")))
            }
            _ => Err(ImportError::Torn("it ends before its end line")),
        }
    }

    async fn more(&mut self) -> Result<bool, ImportError> {
        Ok(!self.from.fill_buf().await?.is_empty())
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self, what: &str) -> Result<T, ImportError> {
        serde_json::from_slice(&self.bytes).map_err(|error| self.wrong(format!("{what} ({error})")))
    }

    fn starts_with(&self, start: &[u8]) -> bool {
        self.bytes.starts_with(start)
    }

    /// The hash of all lines before this one.
    fn before_this_line(&self) -> blake3::Hash {
        self.digest.finalize()
    }

    fn wrong(&self, why: String) -> ImportError {
        ImportError::Line { line: self.line, why }
    }

    /// What the text has twice, the database refuses.
    fn duplicate(&self, error: StorageError) -> ImportError {
        match &error {
            StorageError::Sqlite(source)
                if source.as_database_error().is_some_and(|error| error.is_unique_violation()) =>
            {
                self.wrong("here or some lines before a prompt stands a second time".to_owned())
            }
            _ => error.into(),
        }
    }
}
