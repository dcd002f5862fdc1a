//! Saving what is whole of a broken file.
//!
//! Every session is copied up to its last good event into a new file; the broken one stays beside it under a name that
//! says so, for whoever wants to try more. The exchange of the two survives a crash at any point.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use futures_util::TryStreamExt;
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection};

use super::chain::Checksum;
use super::effects::effects;
use super::error::{OpenError, StorageError};
use super::open::{beside, connect, options, private_file};
use super::place::{end, number_of, place};
use super::read::{Link, session_id};
use super::retain::blob_id;
use super::statement::{self, EventRow, Statement, Value};
use crate::event::Body;
use crate::ids::{BlobId, EventNumber, SessionId};

/// Events that are copied at a time.
const STEP: i64 = 500;

/// What a broken file has cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// What was wrong.
    pub why: String,
    /// Where the broken file is now.
    pub broken: PathBuf,
    /// Sessions that were saved, in whole or in part.
    pub sessions: u64,
    /// Their events.
    pub events: u64,
    /// Sessions that lost something.
    pub lost: Vec<Lost>,
    /// Contents that events name and that are lost.
    pub blobs: Vec<BlobId>,
}

/// What a session has lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The session.
    pub session: SessionId,
    /// The last event that was saved; 0 when the whole session is lost.
    pub kept: EventNumber,
    /// The last event that it had, as far as that can be told.
    pub last: Option<EventNumber>,
}

/// Ends a repair that a crash interrupted after all was saved.
pub(super) fn finish(path: &Path) -> io::Result<()> {
    let repaired = beside(path, ".repaired");
    if !repaired.try_exists()? {
        return Ok(());
    }
    // The new file must never be seen beside the old one's log.
    for ending in ["-wal", "-shm"] {
        remove(&beside(path, ending))?;
    }
    fs::rename(&repaired, path)?;
    sync_folder(path)
}

/// Saves what is whole, and puts it where the broken file is.
pub(super) async fn repair(path: &Path, why: String) -> Result<Repair, OpenError> {
    let file = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::File { what, path, source }
    };
    let new = beside(path, ".repairing");
    for ending in ["", "-wal", "-shm"] {
        let old = beside(&new, ending);
        remove(&old).map_err(file("remove", &old))?;
    }
    let broken = keep(path).map_err(file("keep a copy of", path))?;
    private_file(&new).map_err(file("make", &new))?;
    let mut salvage = Salvage { to: connect(&new).await?, rows: BTreeMap::new(), at_ms: 0, events: 0 };
    let storage = |source| OpenError::Storage { path: path.to_owned(), source };
    let saved = salvage.all(path).await;
    let (lost, blobs) = saved.map_err(storage)?;
    let Salvage { to, rows, events, .. } = salvage;
    to.close().await.map_err(|source| storage(source.into()))?;
    File::open(&new).and_then(|file| file.sync_all()).map_err(file("write", &new))?;
    fs::rename(&new, beside(path, ".repaired")).map_err(file("rename", &new))?;
    sync_folder(path).and_then(|()| finish(path)).map_err(file("replace", path))?;
    Ok(Repair { why, broken, sessions: rows.len() as u64, events, lost, blobs })
}

/// Gives the broken file a second name, and its log too.
fn keep(path: &Path) -> io::Result<PathBuf> {
    let mut number = 1_u32;
    let broken = loop {
        let broken = beside(path, &format!(".broken-{number}"));
        match fs::hard_link(path, &broken) {
            Ok(()) => break broken,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    };
    let log = beside(path, "-wal");
    if log.try_exists()? {
        // A copy: the reader of the broken file may change the original.
        fs::copy(&log, beside(&broken, "-wal"))?;
    }
    sync_folder(path)?;
    Ok(broken)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// The new file, and what is in it.
struct Salvage {
    to: SqliteConnection,
    rows: BTreeMap<i64, Saved>,
    /// The latest time of an event.
    at_ms: i64,
    events: u64,
}

/// A session in the new file.
struct Saved {
    session: SessionId,
    fork: Option<(SessionId, u64)>,
    last: u64,
}

type Losses = (Vec<Lost>, Vec<BlobId>);

impl Salvage {
    async fn all(&mut self, path: &Path) -> Result<Losses, StorageError> {
        let mut lost = Vec::new();
        // All of it is forced to the disk at the end, before the file takes its place.
        sqlx::query("PRAGMA synchronous = OFF").execute(&mut self.to).await?;
        // A file that cannot even be opened has nothing to save.
        let Ok(mut from) = options(path).connect().await else { return Ok((lost, Vec::new())) };
        for (row, (session, hidden)) in known_sessions(&mut from).await {
            let last = self.session(&mut from, row, session, hidden).await?;
            let had = last_of(&mut from, row).await;
            if had.is_none_or(|had| had > last) {
                lost.push(Lost { session, kept: EventNumber(last), last: had.map(EventNumber) });
            }
        }
        self.link_forks(&mut lost).await?;
        self.contents(&mut from).await?;
        let sql = "DELETE FROM blob_uses WHERE NOT EXISTS (SELECT 1 FROM blobs b WHERE b.hash = blob_uses.hash) RETURNING hash";
        let rows = sqlx::query(sql).fetch_all(&mut self.to).await?;
        let missing =
            rows.iter().map(|row| blob_id(row.try_get(0)?)).collect::<Result<BTreeSet<_>, StorageError>>()?;
        // What it says of itself while it is closed changes nothing.
        let _ = from.close().await;
        Ok((lost, missing.into_iter().collect()))
    }

    /// Copies a session up to its last good event, and returns the number of that one; 0 when none is good.
    async fn session(
        &mut self,
        from: &mut SqliteConnection,
        row: i64,
        session: SessionId,
        hidden: i64,
    ) -> Result<u64, StorageError> {
        let mut saved: Option<Saved> = None;
        let mut link = Link { session, number: 0, checksum: None };
        let mut at = place(row, 0);
        let mut limit = STEP;
        loop {
            let sql = "SELECT place, at, body, checksum FROM events WHERE place > ? AND place <= ? ORDER BY place LIMIT ?";
            let page = sqlx::query(sql).bind(at).bind(end(row)).bind(limit).fetch_all(&mut *from).await;
            let page = match page {
                Ok(page) if page.is_empty() => break,
                Ok(page) => page,
                // Those before the broken page can be read alone.
                Err(_) if limit > 1 => {
                    limit = (limit / 10).max(1);
                    continue;
                }
                Err(_) => break,
            };
            let (mut rows, mut statements, mut is_broken) = (Vec::new(), Vec::new(), false);
            for found in &page {
                if saved.is_none() {
                    let Some(first) = first(found, session) else { return Ok(0) };
                    link = Link { session, number: first.last, checksum: Some(Checksum::start(session)) };
                    statements.push(made(row, &first, hidden));
                    saved = Some(first);
                }
                let Ok(Some((event, _))) = link.follow(found) else {
                    is_broken = true;
                    break;
                };
                let (at_ms, body): (i64, String) = (found.try_get(1)?, found.try_get(2)?);
                self.at_ms = self.at_ms.max(at_ms);
                at = place(row, link.number);
                statements.extend(effects(row, link.number, at_ms, &event.body));
                rows.push(EventRow { place: at, at_ms, body, checksum: found.try_get(3)? });
            }
            self.events += rows.len() as u64;
            if !rows.is_empty() {
                // The session's row is made first, for the effects to change it.
                statement::commit(&mut self.to, rows, statements).await?;
            }
            if is_broken {
                break;
            }
        }
        let Some(mut saved) = saved.filter(|saved| link.number > saved.last) else { return Ok(0) };
        saved.last = link.number;
        self.rows.insert(row, saved);
        Ok(link.number)
    }

    /// Ties forks to their parents; one whose parent has lost what it needs is lost with it.
    async fn link_forks(&mut self, lost: &mut Vec<Lost>) -> Result<(), StorageError> {
        loop {
            let rows: BTreeMap<SessionId, (i64, u64)> =
                self.rows.iter().map(|(row, saved)| (saved.session, (*row, saved.last))).collect();
            let reaches =
                |(parent, cut): &(SessionId, u64)| rows.get(parent).is_some_and(|(_, last)| last >= cut);
            let orphan = |saved: &Saved| saved.fork.as_ref().is_some_and(|fork| !reaches(fork));
            let Some((&row, saved)) = self.rows.iter().find(|(_, saved)| orphan(saved)) else { break };
            let had = EventNumber(saved.last);
            lost.retain(|lost| lost.session != saved.session);
            lost.push(Lost { session: saved.session, kept: EventNumber(0), last: Some(had) });
            self.events -= saved.last - saved.fork.map_or(0, |(_, cut)| cut);
            self.forget(row).await?;
            self.rows.remove(&row);
        }
        let parents: BTreeMap<SessionId, i64> =
            self.rows.iter().map(|(row, saved)| (saved.session, *row)).collect();
        let mut statements = Vec::new();
        for (row, saved) in &self.rows {
            let (mut depth, mut at) = (0, saved.fork);
            while let Some((parent, _)) = at {
                depth += 1;
                at = parents.get(&parent).and_then(|row| self.rows.get(row)?.fork);
            }
            let parent = saved.fork.and_then(|(parent, _)| parents.get(&parent));
            let parent = parent.map_or(Value::Null, |row| Value::Number(*row));
            // The agent of a fork is that of the session which is none.
            let sql = "UPDATE sessions SET parent = ?, depth = ? WHERE row = ?";
            statements.push(Statement::new(sql, [parent, Value::Number(depth), Value::Number(*row)]));
        }
        let sql = "WITH RECURSIVE line (fork, row, parent, agent) AS (SELECT row, row, parent, agent FROM sessions \
             UNION ALL SELECT line.fork, s.row, s.parent, s.agent FROM line JOIN sessions s ON s.row = line.parent) \
             UPDATE sessions SET agent = (SELECT agent FROM line WHERE fork = sessions.row AND parent IS NULL) \
             WHERE parent IS NOT NULL";
        statements.push(Statement::new(sql, []));
        Ok(statement::commit(&mut self.to, Vec::new(), statements).await?)
    }

    async fn forget(&mut self, row: i64) -> Result<(), StorageError> {
        let places = [Value::Number(place(row, 0)), Value::Number(end(row))];
        let row = [Value::Number(row)];
        let statements = vec![
            Statement::new("DELETE FROM events WHERE place BETWEEN ? AND ?", places.clone()),
            Statement::new("DELETE FROM to_index WHERE place BETWEEN ? AND ?", places),
            Statement::new("DELETE FROM prompts WHERE session = ?", row.clone()),
            Statement::new("DELETE FROM shares WHERE session = ?", row.clone()),
            Statement::new("DELETE FROM blob_uses WHERE session = ?", row.clone()),
            Statement::new("DELETE FROM sessions WHERE row = ?", row),
        ];
        Ok(statement::commit(&mut self.to, Vec::new(), statements).await?)
    }

    /// Copies the contents that are what their names say.
    async fn contents(&mut self, from: &mut SqliteConnection) -> Result<(), StorageError> {
        let last = sqlx::query("SELECT max(row) FROM blob_bytes").fetch_one(&mut *from).await;
        let last = last.ok().and_then(|row| row.try_get::<Option<i64>, _>(0).ok().flatten());
        for row in 1..=last.unwrap_or(0) {
            let found = sqlx::query("SELECT bytes FROM blob_bytes WHERE row = ?")
                .bind(row)
                .fetch_optional(&mut *from)
                .await;
            let Ok(Some(bytes)) = found.map(|row| row.and_then(|row| row.try_get::<Vec<u8>, _>(0).ok()))
            else {
                continue;
            };
            let id = BlobId::of(&bytes);
            super::blobs::put(&mut self.to, id, &bytes, self.at_ms).await?;
        }
        Ok(())
    }
}

/// The sessions of a broken file, by row: from their table, or else from its index.
async fn known_sessions(from: &mut SqliteConnection) -> BTreeMap<i64, (SessionId, i64)> {
    let mut known = BTreeMap::new();
    for sql in [
        "SELECT row, session, 0 FROM sessions INDEXED BY sqlite_autoindex_sessions_1 ORDER BY session",
        "SELECT row, session, 0 FROM sessions INDEXED BY sqlite_autoindex_sessions_1 ORDER BY session DESC",
        "SELECT row, session, hidden FROM sessions NOT INDEXED ORDER BY row",
        "SELECT row, session, hidden FROM sessions NOT INDEXED ORDER BY row DESC",
    ] {
        let mut rows = sqlx::query(sql).fetch(&mut *from);
        while let Ok(Some(row)) = rows.try_next().await {
            let (Ok(number), Ok(session), Ok(hidden)) = (row.try_get(0), row.try_get(1), row.try_get(2))
            else {
                continue;
            };
            let Ok(session) = session_id(session) else { continue };
            known.insert(number, (session, hidden));
        }
    }
    // What was imported in part is no session yet.
    known.retain(|_, (_, hidden)| *hidden < 2);
    known
}

/// The last event that a session had.
async fn last_of(from: &mut SqliteConnection, row: i64) -> Option<u64> {
    let sql = "SELECT place FROM events WHERE place BETWEEN ? AND ? ORDER BY place DESC LIMIT 1";
    let found = sqlx::query(sql).bind(place(row, 0)).bind(end(row)).fetch_optional(from).await;
    Some(number_of(found.ok()??.try_get(0).ok()?))
}

/// What the first event of a session makes it; `last` is the number before it. None when it is no first event.
fn first(found: &sqlx::sqlite::SqliteRow, session: SessionId) -> Option<Saved> {
    let number = number_of(found.try_get(0).ok()?);
    match serde_json::from_str(found.try_get(2).ok()?).ok()? {
        Body::Forked { parent, cut, .. } if number == cut.0 + 1 => {
            Some(Saved { session, fork: Some((parent, cut.0)), last: cut.0 })
        }
        _ if number == 1 => Some(Saved { session, fork: None, last: 0 }),
        _ => None,
    }
}

/// What makes the row of a session; its events tell the rest.
fn made(row: i64, saved: &Saved, hidden: i64) -> Statement {
    let values = [
        Value::Number(row),
        Value::Bytes(saved.session.as_bytes().to_vec()),
        Value::Number(saved.fork.map_or(0, |(_, cut)| cut.cast_signed())),
        Value::Number(hidden),
    ];
    let sql = "INSERT INTO sessions (row, session, cut, agent, owner, state, hidden) VALUES (?, ?, ?, '', '', 'created', ?)";
    Statement::new(sql, values)
}
